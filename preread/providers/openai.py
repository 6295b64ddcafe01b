"""OpenAI's dialect, and what speaks it: api.openai.com, vLLM, SGLang, llama-server, our own server
and others.

All of them reuse identical leading tokens by themselves. What differs: vLLM counts and scores by
token id and forgets on demand (a salt), llama-server says what its slot held, OpenAI routes by
`prompt_cache_key` and from GPT-5.6 on charges for what it writes, so that the end of the shared
part is marked and nothing else is written.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from preread.backend import Choose, Generate, LogLikelihood, RequestBatch
from preread.errors import ModelNotFound, ProviderError
from preread.providers import chat, usage
from preread.providers.dialect import Ask, Call, Facts, Said, Teller, Traits, Wire
from preread.providers.labels import ambiguous
from preread.providers.scoring import Scoring
from preread.providers.usage import Counts
from preread.types import GREEDY, Message

HOST = "https://api.openai.com/v1"
COUNTING = 8  # calls at once to a server that counts
NO_TEMPERATURE = re.compile(r"^(o\d|gpt-5(?!-chat)|gpt-6)")
BREAKPOINTS = re.compile(r"^gpt-(5\.[6-9]|[6-9])")
TAKE_MORE = frozenset({"vllm", "sglang", "llama-server", "preread"})  # than OpenAI's fields
EXACT = frozenset({"vllm", "llama-server", "preread"})  # count to the token, compute afresh if told


class OpenAI:
    """See preread.providers.dialect.Dialect."""

    name = "openai"

    def __init__(self, model: str, base: str = HOST, *, traits: Traits | None = None) -> None:
        """model: "" for the only one that a server has."""
        parts = urlsplit(base)
        self.base = base.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self.root = self.base.removesuffix("/v1")
        self.model = model
        self.server = "openai" if parts.hostname == urlsplit(HOST).hostname else ""
        remote = Traits(min_prefix=1024, ttl_s=300.0)
        self.traits = traits or (remote if self.server == "openai" else Traits(min_prefix=16))
        self._scoring = Scoring(self)

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}

    async def start(self, wire: Teller) -> Facts:
        status, listed = await wire.tell("GET", f"{self.base}/models")
        if status in (401, 403):
            raise ProviderError(f"{self.base}: the key is missing or wrong.", hint=self._key_hint())
        models = {m.get("id"): m for m in listed.get("data") or () if isinstance(m, dict)}
        if any(model.get("owned_by") == "preread" for model in models.values()):
            self.server = "preread"
            self.traits = replace(self.traits, min_prefix=1)
        notes, slots = [], 0
        if self.model and models and self.model not in models:
            notes.append(f"{self.base} names no model {self.model!r}; it has {_named(models)}.")
        if not self.model:
            # A context of ours is a model by its name; the one that reads them is none of them.
            models = {id: m for id, m in models.items() if "context" not in m}
            if len(models) != 1:
                raise ModelNotFound(
                    f"{self.base} has these models: {_named(models)}.", hint="Give --model."
                )
            self.model = str(next(iter(models)))
        limit = int(models.get(self.model, {}).get("max_model_len") or 0)
        if not self.server:
            self.server, more, slots = await self._recognise(wire)
            limit = limit or more
        if self.server == "openai" and NO_TEMPERATURE.match(self.model):
            notes.append(f"{self.model} takes no temperature: it samples as it likes.")
        exact = self.server in EXACT
        return Facts(self.model, limit, exact, exact, self.server, slots, tuple(notes))

    def refuses(self, batch: RequestBatch) -> str:
        work = batch.work
        if not batch.reuse and self.server not in EXACT:
            return "it cannot be told to compute everything afresh"
        if isinstance(work, Generate):
            if work.ignore_eos and self.server not in TAKE_MORE:
                return "it cannot be told to go on after the end of the answer"
            if work.sampling.top_k and self.server not in TAKE_MORE:
                return "it takes no top_k"
        if self.server == "preread":
            return ""
        if isinstance(work, LogLikelihood) and not batch.raw and self.server != "vllm":
            return "it does not score given continuations of a conversation; use `choose`"
        if isinstance(work, LogLikelihood) and self.server == "llama-server":
            return "llama-server does not score given continuations; use `choose`"
        if isinstance(work, Choose) and self.server != "vllm" and (why := ambiguous(work.labels)):
            return why
        return ""

    async def answer(self, ask: Ask, wire: Wire) -> Said:
        if not isinstance(ask.work, Generate):
            return await self._scoring.answer(ask, wire)
        work = ask.work
        call = self.call(ask, self.options(work))
        return self.read(ask, await wire.ask(call, ask, work.max_tokens))

    def call(self, ask: Ask, options: dict[str, Any]) -> Call:
        """The request: the shared part first and byte for byte the same, then the row's own."""
        body: dict[str, Any] = {"model": self.model}
        if ask.raw is not None:
            body |= {"prompt": ask.raw, **options}
            return Call(f"{self.base}/completions", body | self._reuse(ask))
        messages = chat.plain(ask.messages)
        if self.server == "openai" and ask.group and BREAKPOINTS.match(self.model):
            messages = chat.marked(
                ask.messages, ask.shared, {"prompt_cache_breakpoint": {"mode": "explicit"}}
            )
            body["prompt_cache_options"] = {"mode": "explicit", "ttl": "30m"}
        body |= {"messages": messages, **options}
        return Call(f"{self.base}/chat/completions", body | self._reuse(ask))

    def options(self, work: Generate) -> dict[str, Any]:
        """How to write, in this server's names."""
        limit = "max_completion_tokens" if self.server == "openai" else "max_tokens"
        out: dict[str, Any] = {limit: work.max_tokens, **self.sampling(work)}
        if work.stop:
            out["stop"] = list(work.stop)
        if work.schema is not None:
            shape = {"name": "answer", "schema": work.schema, "strict": True}
            out["response_format"] = {"type": "json_schema", "json_schema": shape}
        if work.logprobs:
            out["logprobs"] = True
        if work.ignore_eos:
            out["ignore_eos"] = True
        if self.server in ("vllm", "preread"):
            out["return_token_ids"] = True
        return out

    def sampling(self, work: Generate) -> dict[str, Any]:
        """Temperature and the rest; models that take no temperature are not given one."""
        chosen = work.sampling
        if self.server == "openai" and NO_TEMPERATURE.match(self.model) and chosen == GREEDY:
            return {}
        out: dict[str, Any] = {"temperature": chosen.temperature}
        if chosen.top_p != 1.0 or self.server in TAKE_MORE:
            out["top_p"] = chosen.top_p
        if (
            self.server in TAKE_MORE
        ):  # their own defaults are a model's or a taste, and none of ours
            off = 0 if self.server in ("llama-server", "preread") else -1
            out |= {"top_k": chosen.top_k or off, "min_p": 0.0}
        if chosen.seed is not None:
            out["seed"] = chosen.seed
        return out

    def read(self, ask: Ask, body: dict[str, Any]) -> Said:
        """What a chat completion or a completion says."""
        choice = body["choices"][0]
        message = choice.get("message") or {}
        if refusal := message.get("refusal"):
            return Said(error=f"The model refused: {refusal}", counts=self.counts(body))
        text = chat.text(message.get("content")) if "message" in choice else choice.get("text")
        finish = chat.FINISH.get(choice.get("finish_reason") or "stop")
        if finish is None:
            return Said(error=f"It ended by {choice['finish_reason']!r}.", counts=self.counts(body))
        said = Said(text or "", finish, self.counts(body), choice.get("token_ids"))
        wants = isinstance(ask.work, Generate) and ask.work.logprobs
        if wants:
            said.logprobs = chat.logprobs(choice)
            said.ids = said.ids or chat.ids(choice)
            if said.logprobs is None:
                said.error = "The server gave no log-probabilities."
        return said

    def counts(self, body: dict[str, Any]) -> Counts:
        if self.server == "llama-server" and "timings" in body:
            return usage.llama_server(body["timings"])
        return usage.openai(body.get("usage") or {})

    async def count(self, rows: Sequence[tuple[Message, ...]], wire: Teller) -> list[int] | None:
        slots = asyncio.Semaphore(COUNTING)

        async def one(row: tuple[Message, ...]) -> int | None:
            if not row:
                return 0
            async with slots:
                ids = await self.tokens(row, wire)
            return None if ids is None else len(ids)

        counted = await asyncio.gather(*(one(row) for row in rows))
        known = [n for n in counted if n is not None]
        return known if len(known) == len(rows) else None

    async def tokens(self, messages: tuple[Message, ...], wire: Teller) -> list[int] | None:
        """A conversation as its server's template and tokenizer lay it out; None if it does not
        say. A last user turn includes what starts the answer."""
        turn = messages[-1].role == "user"
        said = {"messages": chat.plain(messages), "add_generation_prompt": turn}
        if self.server == "llama-server":
            status, laid = await wire.tell("POST", f"{self.root}/apply-template", said)
            return await self._tokenize(str(laid.get("prompt")), wire) if status == 200 else None
        status, body = await wire.tell(
            "POST", f"{self.root}/tokenize", {"model": self.model, **said}
        )
        return body.get("tokens") if status == 200 else None

    async def tokenize(self, text: str, wire: Teller) -> list[int] | None:
        """A piece of text alone, without special tokens."""
        if self.server == "llama-server":
            return await self._tokenize(text, wire)
        ask = {"model": self.model, "prompt": text, "add_special_tokens": False}
        status, body = await wire.tell("POST", f"{self.root}/tokenize", ask)
        return body.get("tokens") if status == 200 else None

    async def close(self, wire: Teller) -> None:
        """Nothing is kept there at our cost."""

    async def _tokenize(self, text: str, wire: Teller) -> list[int] | None:
        ask = {"content": text, "add_special": False, "parse_special": True}
        status, body = await wire.tell("POST", f"{self.root}/tokenize", ask)
        return body.get("tokens") if status == 200 else None

    async def _recognise(self, wire: Teller) -> tuple[str, int, int]:
        """Which server this is, and its limit and slots if it says them there."""
        paths = ("/version", "/props", "/get_model_info")
        version, props, info = await asyncio.gather(
            *(wire.tell("GET", self.root + path) for path in paths)
        )
        if props[0] == 200 and "default_generation_settings" in props[1]:
            limit = int(props[1]["default_generation_settings"].get("n_ctx") or 0)
            return "llama-server", limit, int(props[1].get("total_slots") or 0)
        if info[0] == 200 and "model_path" in info[1]:
            return "sglang", 0, 0
        if version[0] == 200 and "version" in version[1]:
            return "vllm", 0, 0
        return "", 0, 0

    def _reuse(self, ask: Ask) -> dict[str, Any]:
        """What makes the server reuse a beginning, or leave it alone."""
        if self.server == "llama-server":
            return {"cache_prompt": ask.reuse}
        if self.server == "preread":
            return {"cache_prompt": ask.reuse, "keep": ask.keep}
        if self.server == "openai" and ask.group:
            return {"prompt_cache_key": ask.group}
        return {} if ask.reuse else {"cache_salt": chat.salt()}

    def _key_hint(self) -> str:
        return (
            "Set OPENAI_API_KEY." if self.name == "openai" else f"Set {self.name.upper()}_API_KEY."
        )


def _named(models: Iterable[Any]) -> str:
    """Some of them."""
    return ", ".join(sorted(map(str, models))[:20]) or "none"
