"""Every tier through the one suite."""

from __future__ import annotations

from pathlib import Path

from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.testing.conformance_tier import Clock, TierConformance
from preread.testing.faulty import FaultyTier, at


class TestMemory(TierConformance):
    def open(self, place: Path, budget: int, clock: Clock) -> MemoryTier:
        return MemoryTier(budget=budget, clock=clock)


class TestDisk(TierConformance):
    durable = True

    def open(self, place: Path, budget: int, clock: Clock) -> DiskTier:
        return DiskTier(place / "kv", budget=budget, fsync=False, clock=clock)


class TestFaultyTierWithoutFaults(TierConformance):
    def open(self, place: Path, budget: int, clock: Clock) -> FaultyTier:
        return FaultyTier(MemoryTier(budget=budget, clock=clock), at({}))
