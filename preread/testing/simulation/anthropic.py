"""The simulated provider in Anthropic's dialect: only what is marked is kept, and what is kept is
left out of `input_tokens`."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from preread.testing.simulation.job import BadRequest, Job, Outcome
from preread.testing.simulation.text import Wish, Words
from preread.types import Message

MOST_MARKS = 4
LIVES = {"5m": 300.0, "1h": 3600.0}
REASONS = {"stop": "end_turn", "length": "max_tokens"}
KNOWN = frozenset(
    "model max_tokens system messages temperature top_p top_k stop_sequences output_config".split()
)


class AnthropicSpeaker:
    """Remembers beginnings by their digest: until when, and renewed by every use."""

    pattern = "anthropic-ratelimit-{name}-{what}"
    stamps = True

    def __init__(self, words: Words, limit: int, least: int) -> None:
        self._words, self._limit, self._least = words, limit, least
        self._until: dict[bytes, float] = {}

    def job(self, body: dict[str, Any], now: float) -> Job:
        if unknown := set(body) - KNOWN:
            raise BadRequest(400, "invalid_request_error", f"{sorted(unknown)[0]}: not permitted")
        if not isinstance(body.get("max_tokens"), int):
            raise BadRequest(400, "invalid_request_error", "max_tokens: Field required")
        ids, marks = self._layout(body)
        if len(marks) > MOST_MARKS:
            text = f"A maximum of {MOST_MARKS} blocks with cache_control may be provided."
            raise BadRequest(400, "invalid_request_error", text)
        if len(ids) + body["max_tokens"] > self._limit:
            text = f"prompt is too long: {len(ids)} tokens > {self._limit} maximum"
            raise BadRequest(400, "invalid_request_error", text)
        shape = (body.get("output_config") or {}).get("format") or {}
        wish = Wish(body["max_tokens"], body.get("stop_sequences") or [], shape.get("schema"))
        kept = [(at, life) for at, life in marks if at >= self._least]
        known = [at for at, _ in kept if self._until.get(_digest(ids[:at]), 0.0) > now]
        job = Job(ids, wish, keeps=False, cached=max(known, default=0), extra={"marks": kept})
        job.written = max((at for at, _ in kept), default=job.cached) - job.cached
        return job

    def learned(self, out: Outcome, now: float) -> None:
        """An answer makes what is marked known, and used."""
        for at, life in out.job.extra["marks"]:
            self._until[_digest(out.job.ids[:at])] = now + life

    def reply(self, out: Outcome) -> dict[str, Any]:
        usage = {
            "input_tokens": out.prompt - out.cached - out.job.written,
            "cache_creation_input_tokens": out.job.written,
            "cache_read_input_tokens": out.cached,
            "output_tokens": out.output,
        }
        return {
            "id": "msg_sim",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": out.written.text}],
            "stop_reason": REASONS[out.written.finish],
            "usage": usage,
        }

    @staticmethod
    def error(status: int, code: str, message: str) -> dict[str, Any]:
        return {"type": "error", "error": {"type": code, "message": message}}

    def amounts(self, job: Job, cached: int) -> dict[str, int]:
        """What is read from the cache is free."""
        fresh, most = len(job.ids) - cached, job.wish.max_tokens
        return {"requests": 1, "input-tokens": fresh, "output-tokens": most, "tokens": fresh + most}

    def unused(self, out: Outcome) -> dict[str, int]:
        less = out.job.wish.max_tokens - out.output
        return {"output-tokens": less, "tokens": less}

    def count(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"input_tokens": len(self._layout(body)[0])}

    def _layout(self, body: dict[str, Any]) -> tuple[list[int], list[tuple[int, float]]]:
        """Tokens, and where the marks are: (tokens before it, seconds it lives)."""
        system = body.get("system")
        turns = [{"role": "system", "content": system}] if system else []
        turns += body["messages"]
        messages: list[Message] = []
        marks: list[tuple[int, float]] = []
        for turn in turns:
            blocks = turn["content"]
            blocks = [{"text": blocks}] if isinstance(blocks, str) else blocks
            messages.append(Message(turn["role"], "".join(block["text"] for block in blocks)))
            if control := blocks[-1].get("cache_control"):
                at = len(self._words.layout(messages, answer=False))
                marks.append((at, LIVES[control.get("ttl", "5m")]))
        return self._words.layout(messages), marks


def _digest(ids: list[int]) -> bytes:
    return blake2b(repr(ids).encode(), digest_size=16).digest()
