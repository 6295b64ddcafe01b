"""The simulated provider in OpenAI's dialect: chat completions, completions, and what vLLM and
llama-server add (token ids, scores of given ids, counting, a salt)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from preread.testing.simulation.job import BadRequest, Job, Outcome
from preread.testing.simulation.text import (
    LIKELY,
    Wish,
    Words,
    echo_log,
    next_log,
    tops,
)
from preread.types import Message

HEADERS = "x-ratelimit-{what}-{name}"
OWN = ("ignore_eos", "top_k", "cache_salt", "return_token_ids", "logprob_token_ids")
KNOWN = frozenset(
    "model messages prompt max_tokens max_completion_tokens temperature top_p seed stop logprobs "
    "response_format top_logprobs echo prompt_cache_key prompt_cache_options n stream".split()
)


SERVERS = ("openai", "vllm", "sglang", "llama-server", "deepseek", "")


class OpenAISpeaker:
    """server: one of SERVERS, "" for any other."""

    pattern = HEADERS
    stamps = False

    def __init__(self, words: Words, server: str, limit: int, tells: bool = True) -> None:
        """tells: what of a prompt was cached, where it was anything."""
        self._words, self._server, self._limit = words, server, limit
        self._tells = tells

    def job(self, body: dict[str, Any], now: float) -> Job:
        self._check(body)
        said: list[Message] = []
        if "messages" in body:
            ids = self._words.layout(said := messages(body))
        else:
            prompt = body["prompt"]
            ids = list(self._words.encode(prompt)) if isinstance(prompt, str) else list(prompt)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 16
        if len(ids) + (0 if body.get("echo") else limit) > self._limit:
            raise BadRequest(
                400,
                "context_length_exceeded",
                f"This model's maximum context length is {self._limit} tokens; the request has "
                f"{len(ids)} and asks for {limit}.",
            )
        shape = body.get("response_format") or {}
        stop = body.get("stop") or []
        wish = Wish(
            limit,
            [stop] if isinstance(stop, str) else stop,
            shape.get("json_schema", {}).get("schema"),
            bool(body.get("ignore_eos")),
        )
        job = Job(ids, wish, str(body.get("cache_salt", "")), extra=body, messages=said)
        job.reads = body.get("cache_prompt", True) and not body.get("echo")
        return job

    def learned(self, out: Outcome, now: float) -> None:
        """The prefix cache is shared by all dialects."""

    def reply(self, out: Outcome) -> dict[str, Any]:
        body = out.job.extra
        choice: dict[str, Any] = {"index": 0, "finish_reason": out.written.finish}
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": out.written.text}
            choice["logprobs"] = self._chat_logs(out) if body.get("logprobs") else None
        else:
            choice["text"] = out.written.text
            choice["logprobs"] = self._logs(out) if body.get("logprobs") is not None else None
        if body.get("return_token_ids"):
            choice["token_ids"] = [self._words.encode(p)[0] for p in out.written.pieces]
        usage: dict[str, Any] = {
            "prompt_tokens": out.prompt,
            "completion_tokens": out.output,
            "total_tokens": out.prompt + out.output,
            "prompt_tokens_details": {"cached_tokens": out.cached} if self._tells else None,
        }
        if self._server == "deepseek":
            usage["prompt_cache_hit_tokens"] = out.cached
            usage["prompt_cache_miss_tokens"] = out.prompt - out.cached
        said = {"id": "sim", "object": "chat.completion", "model": body.get("model")}
        if self._server == "llama-server":
            counts = {"cache_n": out.cached, "prompt_n": out.prompt - out.cached}
            said["timings"] = {**counts, "predicted_n": out.output}
        return {**said, "choices": [choice], "usage": usage}

    @staticmethod
    def error(status: int, code: str, message: str) -> dict[str, Any]:
        kind = "rate_limit_error" if status == 429 else "invalid_request_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def amounts(self, job: Job, cached: int) -> dict[str, int]:
        return job.amounts()

    def unused(self, out: Outcome) -> dict[str, int]:
        return {"tokens": out.job.wish.max_tokens - out.output}

    def count(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /tokenize, vLLM's or llama-server's."""
        if "messages" in body:
            answer = body.get("add_generation_prompt", True)
            ids = self._words.layout(messages(body), answer)
        else:
            ids = list(self._words.encode(body.get("prompt", body.get("content", ""))))
        return {"count": len(ids), "max_model_len": self._limit, "tokens": ids}

    def _check(self, body: dict[str, Any]) -> None:
        """OpenAI refuses what it does not know; the others take more."""
        unknown = set(body) - KNOWN
        if self._server == "openai" and unknown:
            name = sorted(unknown)[0]
            raise BadRequest(400, "unknown_parameter", f"Unknown parameter: '{name}'.")
        if not body.get("messages") and "prompt" not in body:
            raise BadRequest(400, "missing_required_parameter", "Missing parameter: 'messages'.")

    def _chat_logs(self, out: Outcome) -> dict[str, Any]:
        body, n = out.job.extra, out.job.extra.get("top_logprobs") or 0
        first = self._tops(out, n)
        content = []
        for i, piece in enumerate(out.written.pieces):
            named = [{"token": t, "logprob": log} for t, log in first] if i == 0 else []
            content.append({"token": piece, "logprob": LIKELY, "top_logprobs": named})
        if body.get("logprob_token_ids") and not content:  # the answer was over at once
            named = [{"token": t, "logprob": log} for t, log in first]
            content = [{"token": "", "logprob": LIKELY, "top_logprobs": named}]
        return {"content": content}

    def _logs(self, out: Outcome) -> dict[str, Any]:
        body, words = out.job.extra, self._words
        pieces, logs = list(out.written.pieces), [LIKELY] * out.output
        named: list[dict[str, float] | None] = [{p: LIKELY} for p in pieces]
        if named:
            named[0] = dict(self._tops(out, body["logprobs"]))
        elif body.get("logprob_token_ids"):
            pieces, logs, named = [""], [LIKELY], [dict(self._tops(out, 0))]
        if body.get("echo"):
            ids = out.job.ids
            read = [None, *(echo_log(a, b) for a, b in pairwise(ids))]
            pieces = [*map(words.piece, ids), *pieces]
            logs = [*read, *logs]  # type: ignore[list-item]  # the first token has none
            named = [None if x is None else {"?": x} for x in read] + named
        offsets = [0]
        for piece in pieces:
            offsets.append(offsets[-1] + len(piece))
        return {
            "tokens": pieces,
            "token_logprobs": logs,
            "top_logprobs": named,
            "text_offset": offsets[:-1],
        }

    def _tops(self, out: Outcome, n: int) -> list[tuple[str, float]]:
        asked = out.job.extra.get("logprob_token_ids")
        if asked and self._server == "vllm":
            named = out.job.extra.get("return_tokens_as_token_ids")
            return [
                (
                    f"token_id:{token}" if named else self._words.piece(token),
                    next_log(self._words, out.answer, out.begun, token),
                )
                for token in asked
            ]
        return tops(self._words, out.answer, out.begun, n)


def messages(body: dict[str, Any]) -> list[Message]:
    """Of a request; content as a string or as text parts."""
    found = []
    for message in body["messages"]:
        content = message["content"]
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        found.append(Message(message["role"], content))
    return found
