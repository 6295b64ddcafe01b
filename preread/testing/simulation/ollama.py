"""The simulated provider in Ollama's dialect, also as it cuts what does not fit when it may."""

from __future__ import annotations

from typing import Any

from preread.testing.simulation.job import BadRequest, Job, Outcome
from preread.testing.simulation.openai import messages
from preread.testing.simulation.text import LIKELY, Wish, Words, tops

USUAL = 4096  # num_ctx where nobody says


class OllamaSpeaker:
    """One model."""

    pattern = "x-unused-{what}-{name}"
    stamps = False

    def __init__(self, words: Words, model: str, limit: int) -> None:
        self._words, self._model, self._limit = words, model, limit
        self.reloads = 0
        self._loaded = 0

    def job(self, body: dict[str, Any], now: float) -> Job:
        if body.get("model") != self._model:
            raise BadRequest(404, "not_found", f"model {body.get('model')!r} not found")
        options = body.get("options") or {}
        room = min(options.get("num_ctx", USUAL), self._limit)
        self.reloads += room != self._loaded  # another context is another runner
        self._loaded = room
        if "messages" in body:
            ids = self._words.layout(messages(body))
        else:
            ids = list(self._words.encode(body["prompt"]))
        if len(ids) > room:
            if body.get("truncate", True) is False:
                text = f"the prompt of {len(ids)} tokens exceeds the context length of {room}"
                raise BadRequest(400, "", text)
            ids = ids[-room:]  # without a word
        stop, schema = options.get("stop") or [], body.get("format")
        return Job(ids, Wish(options.get("num_predict", 128), stop, schema), extra=body)

    def learned(self, out: Outcome, now: float) -> None:
        """The prefix cache is shared by all dialects."""

    def reply(self, out: Outcome) -> dict[str, Any]:
        body = out.job.extra
        said: dict[str, Any] = {
            "model": self._model,
            "done": True,
            "done_reason": out.written.finish,
            "prompt_eval_count": out.prompt,
            "prompt_eval_cached_count": out.cached,
            "eval_count": out.output,
        }
        if "messages" in body:
            said["message"] = {"role": "assistant", "content": out.written.text}
        else:
            said["response"] = out.written.text
        if body.get("logprobs"):
            first = tops(self._words, out.answer, out.begun, body.get("top_logprobs") or 0)
            named = [{"token": token, "logprob": log} for token, log in first]
            said["logprobs"] = [
                {"token": p, "logprob": LIKELY, "top_logprobs": named if not i else []}
                for i, p in enumerate(out.written.pieces)
            ]
        return said

    @staticmethod
    def error(status: int, code: str, message: str) -> dict[str, Any]:
        return {"error": message}

    def amounts(self, job: Job, cached: int) -> dict[str, int]:
        return job.amounts()

    def unused(self, out: Outcome) -> dict[str, int]:
        return {"tokens": out.job.wish.max_tokens - out.output}

    def show(self) -> dict[str, Any]:
        """POST /api/show."""
        return {
            "model_info": {"general.architecture": "llama", "llama.context_length": self._limit},
            "parameters": "stop    <|eot|>",
            "details": {"family": "llama"},
        }
