"""Vectors of texts from an OpenAI-compatible server: POST {base}/v1/embeddings
{"model", "input": […]} -> {"data": [{"index", "embedding"}]}, as OpenAI's API reference has it;
vLLM, llama-server and Ollama serve the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from preread.config import ProvidersSection
from preread.errors import ConfigError, ProviderError
from preread.providers.http import Broken, Http
from preread.providers.keys import find_keys

AT_ONCE = 256  # texts of a request
HINT = "Check responses.embeddings and the server."


class Embeddings:
    """Call it with texts. Use it in one event loop."""

    def __init__(
        self, base: str, model: str, config: ProvidersSection, env: Mapping[str, str] | None = None
    ) -> None:
        """base: without /v1. Raises ConfigError."""
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ConfigError(
                "responses.embeddings is no URL without a key in it.",
                hint="For example http://localhost:8000",
            )
        if not model:
            raise ConfigError("responses.embedding_model is missing.", hint="Name the model.")
        found = find_keys(("OPENAI_API_KEY",), config.keys_file, os.environ if env is None else env)
        key = found[0].keys[0] if found else ""
        self.name = f"{model} at {base.rstrip('/')}"
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = Http(base.removesuffix("/").removesuffix("/v1"), timeout_s=config.timeout_s)

    async def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """In the order of the texts. Raises ProviderError."""
        made: list[list[float]] = []
        for lo in range(0, len(texts), AT_ONCE):
            made += await self._some(list(texts[lo : lo + AT_ONCE]))
        return made

    async def close(self) -> None:
        await self._http.close()

    async def _some(self, texts: list[str]) -> list[list[float]]:
        body = {"model": self._model, "input": texts, "encoding_format": "float"}
        try:
            reply = await self._http.post("/v1/embeddings", self._headers, body)
        except Broken as exc:
            raise ProviderError(f"{self.name}: {exc}.", hint=HINT) from exc
        if reply.status != 200:
            raise ProviderError(f"{self.name}: status {reply.status}.", hint=HINT)
        try:
            rows = sorted((reply.json() or {})["data"], key=lambda row: int(row["index"]))
            made = [[float(x) for x in row["embedding"]] for row in rows]
            if [int(row["index"]) for row in rows] != list(range(len(texts))):
                raise ValueError("not one vector per text")
        except (KeyError, TypeError, ValueError) as exc:
            raise ProviderError(f"{self.name}: no embeddings: {exc}.", hint=HINT) from exc
        return made
