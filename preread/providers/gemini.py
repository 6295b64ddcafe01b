"""Gemini's dialect: identical beginnings are reused by themselves and for nothing (implicit, never
promised), or kept as a `cachedContent` that is paid for by the hour, promised, and deleted at the
end."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from preread.backend import Choose, Generate, RequestBatch
from preread.errors import ModelNotFound, ProviderError
from preread.providers import chat, usage
from preread.providers.dialect import Ask, Call, Facts, Said, Teller, Traits, Wire
from preread.providers.labels import beyond_first_tokens, by_first_token
from preread.providers.usage import Counts
from preread.types import Message

HOST = "https://generativelanguage.googleapis.com"
KEPT_S = 3600  # a cachedContent's life
EARLY_S = 300  # it is renewed so long before its end
MOST_TOPS = 20
COUNTING = 4  # calls at once
MAY_NOT_THINK = re.compile(r"^gemini-2\.5-flash")  # where a budget of 0 is allowed


@dataclass(slots=True)
class _Kept:
    """A cachedContent: its name ("" where the server refused to make one), and until when."""

    name: str = ""
    until: float = 0.0
    unpaid: Counts = field(default_factory=Counts)  # tokens it took to make, on no bill yet
    making: asyncio.Lock = field(default_factory=asyncio.Lock)


class Gemini:
    """See preread.providers.dialect.Dialect."""

    name = "gemini"

    def __init__(self, model: str, base: str = HOST, *, explicit: bool = False) -> None:
        """explicit: keep shared parts as cachedContents."""
        self.base = base
        self.model = model.removeprefix("models/")
        self.traits = Traits(1024, ttl_s=KEPT_S if explicit else 300.0)
        self._explicit = explicit
        self._kept: dict[str, _Kept] = {}

    def headers(self, key: str) -> dict[str, str]:
        return {"x-goog-api-key": key} if key else {}

    async def start(self, wire: Teller) -> Facts:
        if not self.model:
            raise ModelNotFound("Gemini has many models.", hint="Give --model.")
        status, said = await wire.tell("GET", self._path())
        if status in (400, 401, 403):
            raise ProviderError("The key is missing or wrong.", hint="Set GEMINI_API_KEY.")
        if status == 404:
            raise ModelNotFound(f"Gemini has no model {self.model!r}.", hint="Give --model.")
        return Facts(self.model, int(said.get("inputTokenLimit") or 0), counts=True)

    def refuses(self, batch: RequestBatch) -> str:
        if batch.raw:
            return "it takes conversations, no raw prompts"
        if not batch.reuse:
            return "it cannot be told to compute everything afresh"
        return beyond_first_tokens(batch.work)

    async def answer(self, ask: Ask, wire: Wire) -> Said:
        kept = await self._keep(ask, wire)
        limit = ask.work.max_tokens if isinstance(ask.work, Generate) else 1
        body = await wire.ask(self.call(ask, kept.name), ask, limit)
        said = self.read(ask, body)
        said.counts, kept.unpaid = said.counts.plus(kept.unpaid), Counts()
        return said

    def call(self, ask: Ask, kept: str = "") -> Call:
        """kept: name of the cachedContent that holds the shared part."""
        own = ask.messages[ask.shared :] if kept else ask.messages
        body = {**_contents(own), "generationConfig": self._how(ask)}
        if kept:
            body["cachedContent"] = kept
        return Call(f"{self._path()}:generateContent", body)

    def read(self, ask: Ask, body: dict[str, Any]) -> Said:
        """What a response says."""
        counts = self.counts(body)
        if not body.get("candidates"):
            why = (body.get("promptFeedback") or {}).get("blockReason") or "no candidates"
            return Said(error=f"The prompt was blocked: {why}.", counts=counts)
        one = body["candidates"][0]
        scores = one.get("logprobsResult") or {}
        if isinstance(ask.work, Choose):
            return self._chosen(ask.work.labels, scores, counts)
        finish = chat.FINISH.get(one.get("finishReason") or "")
        if finish is None:
            return Said(error=f"It ended by {one.get('finishReason')!r}.", counts=counts)
        parts = (one.get("content") or {}).get("parts") or ()
        said = Said("".join(p.get("text", "") for p in parts), finish, counts)
        if isinstance(ask.work, Generate) and ask.work.logprobs:
            chosen = scores.get("chosenCandidates")
            said.error = "" if chosen else "The server gave no log-probabilities."
            said.logprobs = [float(c["logProbability"]) for c in chosen or ()]
            said.ids = [int(c["tokenId"]) for c in chosen] if chosen else None
        return said

    def counts(self, body: dict[str, Any]) -> Counts:
        return usage.gemini(body.get("usageMetadata") or {})

    async def count(self, rows: Sequence[tuple[Message, ...]], wire: Teller) -> list[int] | None:
        slots = asyncio.Semaphore(COUNTING)

        async def one(row: tuple[Message, ...]) -> int:
            body = {"model": f"models/{self.model}", **_contents(row)}
            async with slots:
                whole = {"generateContentRequest": body}
                status, said = await wire.tell("POST", f"{self._path()}:countTokens", whole)
            return int(said["totalTokens"]) if status == 200 else -1

        counted = await asyncio.gather(*(one(row) for row in rows))
        return None if min(counted, default=0) < 0 else counted

    async def close(self, wire: Teller) -> None:
        """Delete what is paid for by the hour; one that cannot be does not keep the others. Raises
        ProviderError, after all were tried."""
        failure: ProviderError | None = None
        for kept in self._kept.values():
            if kept.name:
                try:
                    await wire.tell("DELETE", f"{self.base}/v1beta/{kept.name}")
                except ProviderError as exc:
                    failure = exc
        self._kept.clear()
        if failure:
            raise failure

    def _path(self) -> str:
        return f"{self.base}/v1beta/models/{self.model}"

    async def _keep(self, ask: Ask, wire: Wire) -> _Kept:
        """The shared part as a cachedContent, made or renewed when it is needed."""
        if not self._explicit or not ask.group:
            return _Kept()
        kept = self._kept.setdefault(ask.group, _Kept())
        async with kept.making:
            if time.monotonic() + EARLY_S < kept.until:
                return kept
            life = {"ttl": f"{KEPT_S}s"}
            if kept.name:
                status, said = await wire.tell("PATCH", f"{self.base}/v1beta/{kept.name}", life)
            else:
                shared = _contents(ask.messages[: ask.shared])
                body = {"model": f"models/{self.model}", **shared, **life}
                status, said = await wire.tell("POST", f"{self.base}/v1beta/cachedContents", body)
                tokens = int((said.get("usageMetadata") or {}).get("totalTokenCount") or 0)
                kept.unpaid = Counts(computed=tokens, written=tokens)
            # Refused (too short, or not with this model): implicit reuse is what remains.
            kept.name = str(said.get("name") or kept.name) if status == 200 else ""
            kept.until = time.monotonic() + KEPT_S
        return kept

    def _how(self, ask: Ask) -> dict[str, Any]:
        work = ask.work
        if isinstance(work, Choose):
            out: dict[str, Any] = {"maxOutputTokens": 1, "temperature": 0.0}
            out |= {"responseLogprobs": True, "logprobs": MOST_TOPS}
            if MAY_NOT_THINK.match(self.model):
                out["thinkingConfig"] = {"thinkingBudget": 0}
            return out
        assert isinstance(work, Generate)
        chosen = work.sampling
        given: dict[str, Any] = {
            "maxOutputTokens": work.max_tokens,
            "temperature": chosen.temperature,
            "topP": chosen.top_p if chosen.top_p != 1.0 else None,
            "topK": chosen.top_k or None,
            "seed": chosen.seed,
            "stopSequences": list(work.stop) or None,
            "responseMimeType": "application/json" if work.schema is not None else None,
            "responseJsonSchema": work.schema,
            "responseLogprobs": work.logprobs or None,
        }
        return {name: value for name, value in given.items() if value is not None}

    def _chosen(self, labels: tuple[str, ...], scores: dict[str, Any], counts: Counts) -> Said:
        first = (scores.get("topCandidates") or [{}])[0].get("candidates") or []
        if not first:
            return Said(error="The server gives no log-probabilities: it cannot choose.")
        found = by_first_token(labels, [(c["token"], float(c["logProbability"])) for c in first])
        if isinstance(found, str):
            return Said(error=found, counts=counts)
        return Said(label_logs=found, counts=counts)


def _contents(messages: Sequence[Message]) -> dict[str, Any]:
    """systemInstruction and contents; the assistant is called model."""
    system = [m for m in messages if m.role == "system"]
    turns = [
        {"role": "model" if m.role == "assistant" else "user", "parts": [{"text": m.content}]}
        for m in messages
        if m.role != "system"
    ]
    out: dict[str, Any] = {}
    if system:
        out["systemInstruction"] = {"parts": [{"text": system[0].content}]}
    return out | ({"contents": turns} if turns else {})
