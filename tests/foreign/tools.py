"""What the tests of the transformers backend and their scripts share."""

from __future__ import annotations

from preread.config import EngineSection
from preread.foreign.backend import ForeignBackend
from preread.foreign.load import ForeignModel
from preread.store.store import Store
from preread.store.tiers.base import Tier

CONFIG = EngineSection(prefill_chunk=256)
ROOM = 16 << 20  # bytes for prefixes


def stores_of(model: ForeignModel, *tiers: Tier) -> list[Store]:
    """Small chunks, several per span."""
    if model.net.layout is None:
        return []
    geometry = model.net.layout.geometry(64, 40_000)
    regimes = range(model.net.regimes)
    return [Store(tiers, geometry, model.fingerprint(regime)) for regime in regimes]


def backend_of(
    model: ForeignModel, *tiers: Tier, config: EngineSection = CONFIG, room: int = ROOM
) -> ForeignBackend:
    return ForeignBackend(model, stores_of(model, *tiers) if tiers else [], config, room)
