"""How a dialect reaches its server: model requests through the limits, the rest straight."""

from __future__ import annotations

from typing import Any

from preread.backend import Billed
from preread.providers.dialect import Ask, Call, Dialect
from preread.providers.estimate import Estimate
from preread.providers.lanes import Cost
from preread.providers.limits import Want
from preread.providers.sender import Sender, Used
from preread.providers.warmth import Warmth

LONG = 128  # tokens, more than usual blocks
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
        self.silent: bool | None = None  # about what it reused; None: not known yet

    async def ask(self, call: Call, ask: Ask, output: int) -> dict[str, Any]:
        tells = self.silent is None and self._reuses(ask)
        body = await self._sender.ask(call, self._want(ask, output), self._used, ask.flight)
        if tells:
            self.silent = not self._dialect.counts(body).told
        return body

    async def tell(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        return await self._sender.tell(method, path, body)

    def _want(self, ask: Ask, output: int) -> Want:
        """What to reserve. Where cached tokens are free of limits, a warm beginning is not
        reserved; a miss is taken afterwards."""
        if ask.raw is not None:
            text = ask.raw
            own = len(text) if isinstance(text, list) else self._estimate.of_text(text)
            return Want(Cost(int(own * SLACK), output))
        whole = Cost(int(self._estimate.tokens(ask.messages) * SLACK), output)
        group = ask.group if ask.reuse else ""
        if self._dialect.traits.cached_limited or not self._warmth.warm(ask.group):
            return Want(whole, group)
        own = self._estimate.tokens(ask.messages[ask.shared :])
        return Want(Cost(int(own * SLACK), output), group, whole)

    def _reuses(self, ask: Ask) -> bool:
        """Whether a server that says what it reused has something to say: some leave it out where
        it was nothing."""
        if not (ask.reuse and self._warmth.warm(ask.group)):
            return False
        least = max(LONG, 2 * self._dialect.traits.min_prefix)
        return self._estimate.tokens(ask.messages[: ask.shared]) >= least

    def _used(self, body: dict[str, Any]) -> Used:
        counts = self._dialect.counts(body)
        cached = counts.cached if self._dialect.traits.cached_limited else 0
        return Used(Cost(counts.computed + cached, counts.output), Billed(*counts[:4]))
