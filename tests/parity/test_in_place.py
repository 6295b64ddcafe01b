"""Law 2 where chunks are written to the arena before they are verified: what somebody may read
already is not written, and what was bad is computed over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from preread.engine.local import LocalBackend
from preread.models.load import LoadedModel, load_model
from preread.store.tiers.disk import DiskTier
from tests.attacks.tools import HEADER, chunk_files, flip
from tests.parity.tools import CONFIG, store_of

CUT = 64  # tokens of a chunk, see store_of
TOKENS = np.random.default_rng(3).integers(0, 250, 5 * CUT + 7).astype(np.int32)


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> LoadedModel:
    return load_model(str(folders["qwen3"]), dtype="float32", device="cpu")


def kept(backend: LocalBackend, tokens: int) -> torch.Tensor:
    """The KV in memory of so many leading tokens."""

    def read(engine):
        leaf, found = engine.tree.match(TOKENS[:tokens])
        assert found == tokens == engine.tree.ready(leaf, tokens)
        return engine.arena.read(engine.tree.runs(leaf, 0, tokens))

    return backend._thread.call(read)


@pytest.fixture
async def computed(model: LoadedModel, tmp_path: Path) -> torch.Tensor:
    """All of it, computed and saved."""
    backend = LocalBackend(model, store_of(model, DiskTier(tmp_path, fsync=False)), CONFIG)
    assert backend.prefill(TOKENS).stored
    kv = kept(backend, len(TOKENS))
    await backend.close()
    return kv


async def test_what_is_loaded_is_what_was_computed(model, tmp_path, computed):
    backend = LocalBackend(model, store_of(model, DiskTier(tmp_path, fsync=False)), CONFIG)
    assert backend.prefill(TOKENS).computed_tokens == 0
    assert torch.equal(kept(backend, len(TOKENS)), computed)
    await backend.close()


@pytest.mark.parametrize("ready", [1, CUT // 2, CUT - 1, CUT, CUT + 1, 3 * CUT + 5])
async def test_bad_chunks_leave_what_was_ready_alone(model, tmp_path, computed, ready):
    for path in chunk_files(tmp_path):
        flip(path, HEADER + 33, 255)
    backend = LocalBackend(model, store_of(model, DiskTier(tmp_path, fsync=False)), CONFIG)
    backend.prefill(TOKENS[:ready], store=False)
    before = kept(backend, ready)
    built = backend.prefill(TOKENS)
    assert built.brought.tokens == 0 and built.brought.miss == "corrupt"
    assert torch.equal(kept(backend, ready), before)
    assert torch.allclose(kept(backend, len(TOKENS)), computed, atol=1e-4)
    await backend.close()
