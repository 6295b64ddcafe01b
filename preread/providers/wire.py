"""How a dialect reaches its server: model requests through the limits, the rest straight."""

from __future__ import annotations

from typing import Any

from preread.providers.dialect import Ask, Call, Dialect
from preread.providers.estimate import Estimate
from preread.providers.limits import Cost
from preread.providers.sender import Sender
from preread.providers.warmth import Warmth

SLACK = 1.05  # an estimate that is reserved should rather be too large


class LimitedWire:
    """See preread.providers.dialect.Wire."""

    def __init__(
        self, dialect: Dialect, sender: Sender, estimate: Estimate, warmth: Warmth
    ) -> None:
        self._dialect = dialect
        self._sender = sender
        self._estimate = estimate
        self._warmth = warmth

    async def ask(self, call: Call, ask: Ask, output: int) -> dict[str, Any]:
        return await self._sender.ask(call, self._cost(ask, output), self._used, ask.flight)

    async def tell(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        return await self._sender.tell(method, path, body)

    def _cost(self, ask: Ask, output: int) -> Cost:
        """What to reserve. Where cached tokens are free of limits, a warm beginning is not
        reserved; a miss is taken afterwards."""
        if ask.raw is not None:
            text = ask.raw
            own = len(text) if isinstance(text, list) else self._estimate.of_text(text)
            return Cost(int(own * SLACK), output)
        free = not self._dialect.traits.cached_limited and self._warmth.warm(ask.group)
        counted = ask.messages[ask.shared :] if free else ask.messages
        return Cost(int(self._estimate.tokens(counted) * SLACK), output)

    def _used(self, body: dict[str, Any]) -> Cost:
        counts = self._dialect.counts(body)
        cached = counts.cached if self._dialect.traits.cached_limited else 0
        return Cost(counts.computed + cached, counts.output)
