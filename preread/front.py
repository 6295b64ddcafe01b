"""Backends that stand in front of another one: what they do not change they pass on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from preread.backend import Backend, BackendInfo, Progress, RequestBatch, ResultBatch
from preread.types import Built, Prefix


class Front:
    """See preread.backend.Backend: the one behind it, call by call."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def info(self) -> BackendInfo:
        return self._backend.info

    async def count(self, prefixes: Sequence[Prefix], questions: Sequence[str] = ()) -> list[int]:
        return await self._backend.count(prefixes, questions)

    async def build(
        self, prefix: Prefix, *, lease_s: float = 0.0, progress: Progress | None = None
    ) -> Built:
        return await self._backend.build(prefix, lease_s=lease_s, progress=progress)

    async def forget(self, prefixes: Sequence[Prefix]) -> None:
        await self._backend.forget(prefixes)

    def submit(self, batch: RequestBatch) -> AsyncIterator[ResultBatch]:
        return self._backend.submit(batch)

    async def close(self) -> None:
        await self._backend.close()


class Afresh(Front):
    """Computes every whole prompt: the slow twin."""

    def submit(self, batch: RequestBatch) -> AsyncIterator[ResultBatch]:
        return self._backend.submit(replace(batch, reuse=False))
