"""LocalBackend passes the suite of all backends, with and without a store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from preread.backend import Backend, Generate, RequestBatch
from preread.config import EngineSection
from preread.contexts.rows import collect
from preread.engine.local import LocalBackend
from preread.models.load import LoadedModel, load_model
from preread.store.keys import Geometry, fingerprint
from preread.store.store import Store
from preread.store.tiers.memory import MemoryTier
from preread.testing.conformance_backend import BOOK, QUESTIONS, BackendConformance
from preread.testing.models import write_tiny_model
from preread.types import Finish, Prefix

CONFIG = EngineSection(
    prefix_memory_mb=16, suffix_memory_mb=4, extent_tokens=64, max_sequences=16, prefill_chunk=256
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = write_tiny_model(tmp_path_factory.mktemp("local") / "tiny", "qwen3")
    return load_model(str(folder), dtype="float32", device="cpu")


def store_of(model: LoadedModel, *tiers) -> Store:
    geometry = Geometry(
        model.config.layers, model.config.kv_heads, model.config.head_dim, model.dtype, 64
    )
    return Store(tiers or [MemoryTier()], geometry, fingerprint(model.fingerprint_parts))


class TestConformance(BackendConformance):
    @pytest.fixture(autouse=True)
    def _model(self, model: LoadedModel) -> None:
        self.model = model

    async def open(self) -> Backend:
        return LocalBackend(self.model, None, CONFIG)


class TestConformanceWithAStore(TestConformance):
    async def open(self) -> Backend:
        return LocalBackend(self.model, store_of(self.model), CONFIG)
