"""A Backend that answers at once, a batch as columns: what is left of a run's time is the runner's
own. Answers are made from the texts alone, so a run that was killed and taken up again ends with
the same bytes as one that was not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from itertools import accumulate
from zlib import crc32

import numpy as np

from preread.backend import (
    BackendInfo,
    Choose,
    Progress,
    Ragged,
    RequestBatch,
    ResultBatch,
)
from preread.prices import Prices
from preread.testing.replies import check
from preread.types import Built, Finish, Prefix

CHARACTERS = 4  # of a token


class InstantBackend:
    """See preread.backend.Backend. Four characters are a token; a prefix counts as cached always.
    A text that holds "fail" fails. piece: rows told of at once; pause_s: between two pieces;
    remember: keep what was asked, in `texts`."""

    def __init__(
        self,
        *,
        limit: int = 4096,
        prices: Prices | None = None,
        min_prefix: int = 0,
        piece: int = 1 << 20,
        pause_s: float = 0.0,
        remember: bool = True,
    ) -> None:
        self.rows = 0  # answered so far
        self.texts: list[str] = []  # that were asked, in this order
        self._piece, self._pause_s, self._remember = piece, pause_s, remember
        self._info = BackendInfo(
            name="instant", model="instant", fingerprint="1a" * 32, limit=limit,
            effective_limit=limit, effective_known=True, kv_bytes_per_token=0, device="none",
            dtype="none", prices=prices, min_prefix=min_prefix,
        )  # fmt: skip

    @property
    def info(self) -> BackendInfo:
        return self._info

    async def count(self, prefixes: Sequence[Prefix], questions: Sequence[str] = ()) -> list[int]:
        asked = questions or [""] * len(prefixes)
        return [_tokens(p) + _length(q) for p, q in zip(prefixes, asked, strict=True)]

    async def build(
        self, prefix: Prefix, *, lease_s: float = 0.0, progress: Progress | None = None
    ) -> Built:
        n = _tokens(prefix)
        return Built(n, 0, 0, n, 0, 0.0, 0.0)

    async def forget(self, prefixes: Sequence[Prefix]) -> None:
        return

    async def close(self) -> None:
        return

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        prefix_of = check(batch)
        assert not isinstance(batch.prompts, Ragged)
        heads = [_tokens(prefix) for prefix in batch.prefixes] + [0]
        if self._remember:
            self.texts += batch.prompts
        for lo in range(0, len(batch), self._piece):
            await asyncio.sleep(self._pause_s)
            texts = list(batch.prompts[lo : lo + self._piece])
            context = np.array([heads[p] for p in prefix_of[lo : lo + len(texts)]], np.int32)
            yield _news(batch, lo, texts, context)
            self.rows += len(texts)


def _news(batch: RequestBatch, lo: int, texts: list[str], context: np.ndarray) -> ResultBatch:
    n, choosing = len(texts), isinstance(batch.work, Choose)
    failed = [i for i, text in enumerate(texts) if "fail" in text]
    sums = [crc32(text.encode()) for text in texts]
    answers = [""] * n if choosing else [f"answer {checksum:08x}" for checksum in sums]
    finish: list[Finish | None] = [Finish.STOP] * n
    for i in failed:
        answers[i], finish[i] = "", Finish.ERROR
    output = np.array([0 if choosing else 4] * n, np.int32)
    output[failed] = 0
    own = np.array([_length(text) for text in texts], np.int32)
    labels = len(batch.work.labels) if isinstance(batch.work, Choose) else 1
    probs = np.array(
        [[1 + (checksum >> label) % 97 for label in range(labels)] for checksum in sums],
        np.float32,
    ).reshape(n, labels)
    return ResultBatch(
        rows=np.arange(lo, lo + n, dtype=np.int32),
        texts=answers,
        tokens=Ragged(
            np.zeros(int(output.sum()), np.int32),
            np.array([0, *accumulate(output.tolist())], np.int64),
        ),
        finish=finish,
        usage=np.stack([context, context, own, output], 1).astype(np.int32),
        times=np.zeros((n, 3), np.float32),
        label_probs=probs / probs.sum(1, keepdims=True) if choosing else None,
        mass=np.full(n, 0.9, np.float32) if choosing else None,
        errors={lo + i: "the text asked for it" for i in failed},
    )


def _tokens(prefix: Prefix) -> int:
    texts = [prefix.system, *(turn.content for turn in prefix.history)]
    return sum(map(_length, texts))


def _length(text: str) -> int:
    return -(-len(text) // CHARACTERS)
