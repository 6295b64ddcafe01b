"""Ollama's dialect. It reuses the longest common beginning of what a slot holds, so every request
repeats its messages in full; the `context` that /api/generate returns is a conversation and would
show one row to the next, and is never sent. Its default context is short and longer prompts were
cut without a word: the context's size is set by us, and cutting is forbidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preread.backend import Choose, Generate, RequestBatch
from preread.errors import ConfigError, ModelNotFound
from preread.providers import chat, usage
from preread.providers.dialect import Ask, Call, Facts, Said, Teller, Traits, Wire
from preread.providers.labels import beyond_first_tokens, by_first_token
from preread.providers.usage import Counts
from preread.types import Message

HOST = "http://localhost:11434"
KEEP_ALIVE_S = 1800
USUAL = 8192  # tokens of context where the model's file names none
MOST_TOPS = 20
SLIDING = ("gemma2", "gemma3")  # attend through a window: their prefixes are often read again


class Ollama:
    """See preread.providers.dialect.Dialect."""

    name = "ollama"

    def __init__(self, model: str, base: str = HOST, *, num_ctx: int = 0) -> None:
        """num_ctx: tokens of context, the same in every request (another would reload the model);
        0: as the model's file says."""
        self.base = base.removesuffix("/v1")
        self.model = model
        self.traits = Traits(1, ttl_s=float(KEEP_ALIVE_S))
        self._num_ctx = num_ctx

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}

    async def start(self, wire: Teller) -> Facts:
        _, listed = await wire.tell("GET", f"{self.base}/api/tags")
        names = [m["name"] for m in listed.get("models") or ()]
        if not self.model and len(names) == 1:
            self.model = names[0]
        status, shown = await wire.tell("POST", f"{self.base}/api/show", {"model": self.model})
        if not self.model or status != 200:
            raise ModelNotFound(
                f"Ollama has these models: {', '.join(names) or 'none'}.",
                hint=f"ollama pull {self.model}" if self.model else "Give --model.",
            )
        info = shown.get("model_info") or {}
        most = next((int(v) for k, v in info.items() if k.endswith(".context_length")), 0)
        if most and self._num_ctx > most:
            raise ConfigError(
                f"providers.num_ctx = {self._num_ctx:,}, and {self.model} was made for {most:,}.",
                hint=f"Set it to at most {most}.",
            )
        own = _parameter(str(shown.get("parameters") or ""), "num_ctx")
        self._num_ctx = self._num_ctx or own or min(most or USUAL, USUAL)
        notes = []
        if most > self._num_ctx:
            notes.append(
                f"{self.model} is run with a context of {self._num_ctx:,} tokens of its {most:,}; "
                "longer prompts are refused. Set providers.num_ctx for more."
            )
        if (shown.get("details") or {}).get("family") in SLIDING:
            notes.append(f"{self.model} attends through a window: reuse of prefixes may fail.")
        return Facts(self.model, self._num_ctx, server="ollama", notes=tuple(notes))

    def refuses(self, batch: RequestBatch) -> str:
        if not batch.reuse:
            return "it cannot be told to compute everything afresh"
        if batch.raw and not isinstance(batch.prompts, Sequence):
            return "it takes text, no token ids"
        return beyond_first_tokens(batch.work)

    async def answer(self, ask: Ask, wire: Wire) -> Said:
        limit = ask.work.max_tokens if isinstance(ask.work, Generate) else 1
        return self.read(ask, await wire.ask(self.call(ask), ask, limit))

    def call(self, ask: Ask) -> Call:
        """The request: all messages, the same options in every one, and nothing may be cut."""
        work = ask.work
        body: dict[str, Any] = {
            "model": self.model,
            "stream": False,
            "keep_alive": KEEP_ALIVE_S,
            "truncate": False,
            "shift": False,
        }
        options: dict[str, Any] = {"num_ctx": self._num_ctx, "num_predict": 1, "temperature": 0.0}
        if isinstance(work, Generate):
            options |= _options(work)
            if work.schema is not None:
                body["format"] = work.schema
            if work.logprobs:
                body["logprobs"] = True
        else:
            body |= {"logprobs": True, "top_logprobs": MOST_TOPS}
        body["options"] = options
        if ask.raw is not None:
            return Call(f"{self.base}/api/generate", body | {"prompt": ask.raw, "raw": True})
        return Call(f"{self.base}/api/chat", body | {"messages": chat.plain(ask.messages)})

    def read(self, ask: Ask, body: dict[str, Any]) -> Said:
        """What a reply says."""
        counts, logs = self.counts(body), body.get("logprobs")
        if counts.prompt >= self._num_ctx:
            return Said(
                error=f"The prompt fills the context of {self._num_ctx:,} tokens and may have been "
                "cut. Set providers.num_ctx.",
                counts=counts,
            )
        if isinstance(ask.work, Choose):
            return _chosen(ask.work.labels, logs, counts)
        finish = chat.FINISH.get(body.get("done_reason") or "stop")
        if finish is None:
            return Said(error=f"It ended by {body['done_reason']!r}.", counts=counts)
        text = (body.get("message") or {}).get("content", body.get("response") or "")
        said = Said(text, finish, counts)
        if isinstance(ask.work, Generate) and ask.work.logprobs:
            said.logprobs = [float(t["logprob"]) for t in logs or ()]
            said.error = "" if logs else "The server gave no log-probabilities."
        return said

    def counts(self, body: dict[str, Any]) -> Counts:
        return usage.ollama(body)

    async def count(self, rows: Sequence[tuple[Message, ...]], wire: Teller) -> list[int] | None:
        return None  # it does not tokenize

    async def close(self, wire: Teller) -> None:
        """The model leaves by itself when its keep_alive is over."""


def _options(work: Generate) -> dict[str, Any]:
    chosen = work.sampling
    out: dict[str, Any] = {"num_predict": work.max_tokens, "temperature": chosen.temperature}
    # All of them: the defaults, a penalty among them, are a model's or a taste, and none of ours.
    out |= {"top_p": chosen.top_p, "top_k": chosen.top_k, "min_p": 0.0, "repeat_penalty": 1.0}
    if chosen.seed is not None:
        out["seed"] = chosen.seed
    if work.stop:
        out["stop"] = list(work.stop)
    return out


def _chosen(labels: tuple[str, ...], logs: Any, counts: Counts) -> Said:
    if not logs:
        return Said(error="The server gives no log-probabilities: it cannot choose.")
    first = [(t["token"], float(t["logprob"])) for t in logs[0].get("top_logprobs") or ()]
    found = by_first_token(labels, first)
    if isinstance(found, str):
        return Said(error=found, counts=counts)
    return Said(label_logs=found, counts=counts)


def _parameter(text: str, name: str) -> int:
    """A number in a model file's parameters, 0 if it is not there."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return 0
