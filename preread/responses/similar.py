"""The semantic cache: an answer to a question that is like this one, by the cosine of embeddings.

It can be wrong, and no threshold makes it right: a question and its negation lie closer together
than many paraphrases (0.83 to 0.9997 over nine encoders, GPTCache#694; "enable 2FA" and "disable
2FA" 0.823, a paraphrase 0.673, semantic-router#2691). So it is off unless asked for, it serves no
scores, and every answer that comes from it shows the similarity and the question it was given to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from preread.backend import Generate, RequestBatch
from preread.errors import EngineError, RequestError
from preread.responses.book import Vector
from preread.types import CachedResponse

if TYPE_CHECKING:
    from preread.types import Float32Array

Embed = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]


class Similar:
    """Which kept question is like a new one, of those on the same prefix with the same options."""

    def __init__(
        self, embed: Embed, name: str, threshold: float,
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        """embed: texts to vectors of one length; name: of what makes them, other names are not
        compared; threshold: least cosine, (0, 1]. Raises RequestError."""
        if not 0 < threshold <= 1:
            raise RequestError(f"responses.threshold = {threshold}.", hint="Give (0, 1].")
        self._embed = embed
        self._name = name
        self._threshold = threshold
        self._close = close

    def check(self, batch: RequestBatch) -> None:
        """Raises RequestError for what must not be answered by likeness."""
        if not isinstance(batch.work, Generate):
            raise RequestError(
                "The semantic cache serves no scores: a question that is only alike has another "
                "probability.",
                hint="Turn it off for this: unset responses.embeddings.",
            )

    def scope(self, scope: bytes) -> bytes:
        """Of a request, less its question, and of what makes the vectors."""
        return blake2b(scope + self._name.encode(), digest_size=32).digest()

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        """A vector of length 1 for each. Raises EngineError."""
        made = np.array([list(row) for row in await self._embed(texts)], np.float32)
        if made.ndim != 2 or len(made) != len(texts) or not np.isfinite(made).all():
            raise EngineError(
                f"{self._name} made {made.shape} of {len(texts)} texts.",
                hint="An embedder gives one vector of numbers per text.",
            )
        norms = np.linalg.norm(made, axis=1, keepdims=True)
        unit = (made / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
        return [row.tobytes() for row in unit]

    def match(
        self, mine: Mapping[int, Vector], there: Sequence[Vector]
    ) -> dict[int, tuple[bytes, CachedResponse]]:
        """Of each row the most similar question, where it is similar enough: its key."""
        width = {len(vector.vector) for vector in mine.values()}
        there = [vector for vector in there if {len(vector.vector)} == width]
        if not mine or not there:
            return {}
        cosines = _matrix(list(mine.values())) @ _matrix(there).T
        found = {}
        for row, best, near in zip(mine, cosines.argmax(1).tolist(), cosines.max(1), strict=True):
            if near >= self._threshold:
                how = CachedResponse(min(round(float(near), 4), 1.0), there[best].question)
                found[row] = there[best].key, how
        return found

    async def close(self) -> None:
        if self._close is not None:
            await self._close()


def _matrix(vectors: Sequence[Vector]) -> Float32Array:
    data = b"".join(vector.vector for vector in vectors)
    return np.frombuffer(data, np.float32).reshape(len(vectors), -1)
