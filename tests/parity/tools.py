"""What the process tests and their scripts share."""

from __future__ import annotations

from preread.config import EngineSection
from preread.models.load import LoadedModel
from preread.store.keys import Geometry, fingerprint
from preread.store.store import Store
from preread.store.tiers.base import Room, Tier

CONFIG = EngineSection(
    prefix_memory_mb=8,
    suffix_memory_mb=2,
    extent_tokens=64,
    page_tokens=8,
    max_sequences=16,
    prefill_chunk=256,
)


def store_of(model: LoadedModel, *tiers: Tier, room: Room | None = None) -> Store:
    geometry = Geometry(
        model.config.layers, model.config.kv_heads, model.config.head_dim, model.dtype, 64, 40_000
    )
    return Store(tiers, geometry, fingerprint(model.fingerprint_parts), room=room)
