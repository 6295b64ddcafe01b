"""The simulated provider in Gemini's dialect: implicit reuse, and contents kept by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from preread.testing.simulation.job import BadRequest, Job, Outcome
from preread.testing.simulation.text import LIKELY, Wish, Words, tops
from preread.types import Message

REASONS = {"stop": "STOP", "length": "MAX_TOKENS"}
KNOWN = frozenset(("contents", "systemInstruction", "generationConfig", "cachedContent"))


@dataclass(slots=True)
class _Content:
    """ids: without what starts the answer."""

    ids: list[int]
    until: float


class GeminiSpeaker:
    """contents: cachedContents that are alive, by name."""

    pattern = "x-unused-{what}-{name}"  # Google tells no limits
    stamps = False

    def __init__(self, words: Words, limit: int, least: int) -> None:
        self._words, self._limit, self._least = words, limit, least
        self.contents: dict[str, _Content] = {}
        self.made = 0

    def job(self, body: dict[str, Any], now: float) -> Job:
        if unknown := set(body) - KNOWN:
            raise BadRequest(400, "INVALID_ARGUMENT", f"Unknown name {sorted(unknown)[0]!r}.")
        how = body.get("generationConfig") or {}
        head: list[int] = []
        if name := body.get("cachedContent"):
            kept = self.contents.get(name)
            if kept is None or kept.until < now:
                text = "CachedContent not found (or permission denied)"
                raise BadRequest(403, "PERMISSION_DENIED", text)
            if "systemInstruction" in body:
                text = "CachedContent can not be used with system_instruction"
                raise BadRequest(400, "INVALID_ARGUMENT", text)
            head = kept.ids
        ids = head + self._words.layout(_messages(body))
        if len(ids) > self._limit:
            text = f"The input token count ({len(ids)}) exceeds the maximum, it is too long."
            raise BadRequest(400, "INVALID_ARGUMENT", text)
        wish = Wish(
            how.get("maxOutputTokens", 8192),
            how.get("stopSequences") or [],
            how.get("responseJsonSchema"),
        )
        return Job(ids, wish, cached=len(head) or -1, extra=how)

    def learned(self, out: Outcome, now: float) -> None:
        """The prefix cache is shared by all dialects."""

    def reply(self, out: Outcome) -> dict[str, Any]:
        how = out.job.extra
        one: dict[str, Any] = {
            "content": {"role": "model", "parts": [{"text": out.written.text}]},
            "finishReason": REASONS[out.written.finish],
        }
        if how.get("responseLogprobs"):
            first = tops(self._words, out.answer, out.begun, how.get("logprobs") or 0)
            named = [{"token": t, "tokenId": self._id(t), "logProbability": g} for t, g in first]
            chosen = [
                {"token": p, "tokenId": self._id(p), "logProbability": LIKELY}
                for p in out.written.pieces
            ]
            one["logprobsResult"] = {
                "topCandidates": [{"candidates": named}],
                "chosenCandidates": chosen,
            }
        usage = {
            "promptTokenCount": out.prompt,
            "candidatesTokenCount": out.output,
            "totalTokenCount": out.prompt + out.output,
        }
        if out.cached:
            usage["cachedContentTokenCount"] = out.cached
        return {"candidates": [one], "usageMetadata": usage}

    @staticmethod
    def error(status: int, code: str, message: str) -> dict[str, Any]:
        """Google says in the body how long to wait."""
        error: dict[str, Any] = {"code": status, "message": message, "status": code}
        if status == 429:
            kind = "type.googleapis.com/google.rpc.RetryInfo"
            error["details"] = [{"@type": kind, "retryDelay": "0.02s"}]
        return {"error": error}

    def amounts(self, job: Job, cached: int) -> dict[str, int]:
        return job.amounts()

    def unused(self, out: Outcome) -> dict[str, int]:
        less = out.job.wish.max_tokens - out.output
        return {"tokens": less, "output-tokens": less}

    def count(self, body: dict[str, Any]) -> dict[str, Any]:
        messages = _messages(body["generateContentRequest"])
        turn = messages[-1:] != [] and messages[-1].role == "user"
        return {"totalTokens": len(self._words.layout(messages, answer=turn))}

    def keep(self, body: dict[str, Any], now: float) -> dict[str, Any]:
        """POST /v1beta/cachedContents. Raises BadRequest for what is too short."""
        ids = self._words.layout(_messages(body), answer=False)
        if len(ids) < self._least:
            text = f"Cached content is too small. total_token_count={len(ids)}"
            raise BadRequest(400, "INVALID_ARGUMENT", text)
        self.made += 1
        name = f"cachedContents/sim-{self.made}"
        self.contents[name] = _Content(ids, now + _life(body))
        return {"name": name, "usageMetadata": {"totalTokenCount": len(ids)}}

    def renew(self, name: str, body: dict[str, Any], now: float) -> dict[str, Any]:
        """PATCH /v1beta/cachedContents/…"""
        if name not in self.contents:
            raise BadRequest(403, "PERMISSION_DENIED", "CachedContent not found")
        self.contents[name].until = now + _life(body)
        return {"name": name}

    def _id(self, piece: str) -> int:
        return self._words.encode(piece)[0]


def _life(body: dict[str, Any]) -> float:
    return float(str(body.get("ttl", "3600s")).removesuffix("s"))


def _messages(body: dict[str, Any]) -> list[Message]:
    system = body.get("systemInstruction")
    found = [Message("system", _text(system))] if system else []
    for turn in body.get("contents") or ():
        role = "assistant" if turn.get("role") == "model" else "user"
        found.append(Message(role, _text(turn)))  # type: ignore[arg-type]
    return found


def _text(content: dict[str, Any]) -> str:
    return "".join(part["text"] for part in content["parts"])
