"""What a use of a prefix saves, for each byte that a tier keeps of it: reuse x time saved / bytes.

A tier adds these up, each halved after a day (tiers/book.py), and what saves least for its bytes
goes first. The whole prefix was needed for the use, so what the use saved is spread over all of
its bytes alike; and each chunk gets a trifle more than the next, so that of chunks that were always
used together the last one goes first. As every use that reaches a chunk uses those before it, no
chunk is ever worth as much as one it could not be used without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from preread.store.rates import Pace, Prefill
from preread.store.tiers.base import ChunkKey

NEW = 4.0  # uses that a prefix counts for when it is written: what is kept is kept to be asked
LEAST = 1e-15  # seconds per byte, where loading saves nothing or nothing is known: a use is a use
STEP = 1e-6  # of it, by which a chunk is worth more than the next


def saved(end: int, nbytes: int, chunks: int, prefill: Prefill | None, pace: Pace | None) -> float:
    """Seconds per byte: computing tokens [0, end), less loading their nbytes in so many chunks. An
    unknown time is taken for none."""
    computing = prefill.seconds(0, end) if prefill else 0.0
    loading = pace.seconds(nbytes, chunks) if pace else 0.0
    return max((computing - loading) / nbytes, LEAST) if nbytes else LEAST


def use(
    chunks: Sequence[tuple[ChunkKey, int]], lacking: int, per_byte: float
) -> Mapping[ChunkKey, float]:
    """A use of a prefix, for Weighs.used. chunks: (key, bytes) from its beginning; lacking: bytes
    of those that are about to be written."""
    nbytes = sum(size for _, size in chunks)
    uses = 1.0 + (NEW - 1.0) * lacking / nbytes if nbytes else 1.0
    count = len(chunks)
    return {key: per_byte * uses * (1.0 + STEP * (count - n)) for n, (key, _) in enumerate(chunks)}
