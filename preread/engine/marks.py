"""Names for KV that is not what its tokens say: approximate KV, in the tree beside exact one.

The tree finds KV by tokens alone. So the first token whose KV is approximate is replaced by a name,
a number that is no token: only who knows it finds what lies behind it, and what lies before it is
shared with everybody. Where the engine has to compute such a prefix, as any other that memory lost,
the name is read as the token it stands for.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from preread.engine.step import Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

Ids = TypeVar("Ids", np.int32, np.int64)
FIRST = -(1 << 30)  # name; the next ones lie below. Nobody writes such a number by mistake


class Marks:
    """Thread-safe. A name is never given to two identities, nor taken back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[bytes, int] = {}
        self._tokens: list[int] = []

    def name(self, identity: bytes, token: int) -> int:
        """The name of an identity, which says all that the KV depends on, and of the token that it
        stands for."""
        key = identity + token.to_bytes(4, "little")
        with self._lock:
            if key not in self._names:
                self._names[key] = FIRST - len(self._tokens)
                self._tokens.append(token)
            return self._names[key]

    def real(self, tokens: NDArray[Ids]) -> NDArray[Ids]:
        """The tokens themselves. A number that is no name stays as it is."""
        if not self._tokens or (tokens > FIRST).all():
            return tokens
        known = (tokens <= FIRST) & (tokens > FIRST - len(self._tokens))
        out = tokens.copy()
        out[known] = np.array(self._tokens, tokens.dtype)[FIRST - tokens[known]]
        return out

    def lift(self, step: Step) -> None:
        """What a step reads of prefixes is tokens. Its rows are left alone: what is negative there
        is promised."""
        if self._tokens and step.chunks:
            head = sum(len(chunk.tokens) for chunk in step.chunks)
            step.tokens[:head] = self.real(step.tokens[:head])
