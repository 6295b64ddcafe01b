"""Anthropic's dialect: the end of the shared part is marked, the row's own part never is, or every
row would pay for writing what nobody reads again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from preread.backend import Choose, Generate, LogLikelihood, RequestBatch
from preread.errors import ModelNotFound, ProviderError
from preread.providers import chat, usage
from preread.providers.dialect import Ask, Call, Facts, Said, Teller, Traits, Wire
from preread.providers.usage import Counts
from preread.types import GREEDY, Message

HOST = "https://api.anthropic.com"
VERSION = "2023-06-01"
LIVES = {"5m": 300.0, "1h": 3600.0}
COUNTING = 4  # calls at once
NO_SAMPLING = re.compile(r"^claude-(opus-4-[7-9]|(opus|sonnet|haiku)-[5-9])")
DOT = Message("user", ".")  # a conversation must end with a user's turn to be counted


class Anthropic:
    """See preread.providers.dialect.Dialect."""

    name = "anthropic"

    def __init__(self, model: str, base: str = HOST, *, ttl: str = "5m") -> None:
        """ttl: "5m" or "1h", how long what is marked lives after its last use."""
        self.base = base.removesuffix("/v1")
        self.model = model
        self._ttl = ttl
        # What is read from the cache is free of ITPM; 60 a minute may be enforced as 1 a second.
        self.traits = Traits(
            1024, ttl_s=LIVES[ttl], cached_limited=False, burst=1 / 12, refills=True
        )

    def headers(self, key: str) -> dict[str, str]:
        return {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})

    async def start(self, wire: Teller) -> Facts:
        if not self.model:
            raise ModelNotFound("Anthropic has many models.", hint="Give --model.")
        status, said = await wire.tell("GET", f"{self.base}/v1/models/{self.model}")
        if status in (401, 403):
            raise ProviderError("The key is missing or wrong.", hint="Set ANTHROPIC_API_KEY.")
        if status == 404:
            raise ModelNotFound(f"Anthropic has no model {self.model!r}.", hint="Give --model.")
        notes = (f"{self.model} takes no temperature: it samples as it likes.",)
        limit = int(said.get("max_input_tokens") or 0)
        return Facts(
            self.model, limit, counts=True, notes=notes if NO_SAMPLING.match(self.model) else ()
        )

    def refuses(self, batch: RequestBatch) -> str:
        work = batch.work
        if batch.raw:
            return "it takes conversations, no raw prompts"
        if isinstance(work, Choose | LogLikelihood):
            return "it gives no log-probabilities; ask for one of the labels with `generate`"
        if work.logprobs:
            return "it gives no log-probabilities"
        if work.ignore_eos:
            return "it cannot be told to go on after the end of the answer"
        return "it takes no seed" if work.sampling.seed is not None else ""

    async def answer(self, ask: Ask, wire: Wire) -> Said:
        assert not isinstance(ask.work, Choose | LogLikelihood)
        body = await wire.ask(self.call(ask), ask, ask.work.max_tokens)
        counts, finish = self.counts(body), chat.FINISH.get(body.get("stop_reason") or "")
        if finish is None:
            return Said(error=f"It ended by {body.get('stop_reason')!r}.", counts=counts)
        text = "".join(part.get("text", "") for part in body.get("content") or ())
        return Said(text, finish, counts)

    def call(self, ask: Ask) -> Call:
        """The request, with one breakpoint: at the end of the shared part."""
        work = ask.work
        assert not isinstance(work, Choose | LogLikelihood)
        body = {"model": self.model, "max_tokens": work.max_tokens, **self._prompt(ask)}
        if not NO_SAMPLING.match(self.model) or work.sampling != GREEDY:
            body["temperature"] = work.sampling.temperature
        if work.sampling.top_p != 1.0:
            body["top_p"] = work.sampling.top_p
        if work.sampling.top_k:
            body["top_k"] = work.sampling.top_k
        if work.stop:
            body["stop_sequences"] = list(work.stop)
        if work.schema is not None:
            shape = {"type": "json_schema", "schema": work.schema}
            body["output_config"] = {"format": shape}
        return Call(f"{self.base}/v1/messages", body)

    def counts(self, body: dict[str, Any]) -> Counts:
        return usage.anthropic(body.get("usage") or {})

    async def count(self, rows: Sequence[tuple[Message, ...]], wire: Teller) -> list[int] | None:
        """Free of charge, and limited apart from the model's own limits."""
        slots = asyncio.Semaphore(COUNTING)

        async def one(row: tuple[Message, ...]) -> int:
            body = {"model": self.model, **self._prompt(Ask(Generate(), row))}
            async with slots:
                path = f"{self.base}/v1/messages/count_tokens"
                status, said = await wire.tell("POST", path, body)
            return int(said["input_tokens"]) if status == 200 else -1

        open_ended = [row[-1:] != () and row[-1].role == "user" for row in rows]
        whole = [row if said else (*row, DOT) for row, said in zip(rows, open_ended, strict=True)]
        dot, *counted = await asyncio.gather(*(one(row) for row in [(DOT,), *whole]))
        if min(dot, *counted, 0) < 0:
            return None
        return [n if said else n - dot for n, said in zip(counted, open_ended, strict=True)]

    async def close(self, wire: Teller) -> None:
        """What is marked ends by itself."""

    def _prompt(self, ask: Ask) -> dict[str, Any]:
        """system and messages, the last shared block marked."""
        mark = {"cache_control": {"type": "ephemeral"}}
        if self._ttl != "5m":
            mark["cache_control"]["ttl"] = self._ttl
        shared = ask.shared if ask.reuse else 0
        messages = chat.marked(ask.messages, shared, mark)
        system = [m["content"] for m in messages if m["role"] == "system"]
        turns = [m for m in messages if m["role"] != "system"]
        return ({"system": system[0]} if system else {}) | {"messages": turns}
