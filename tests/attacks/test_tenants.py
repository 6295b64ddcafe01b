"""Two tenants on one tier: nothing of one is found, seen or felt by the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import pytest
import torch

from preread.backend import RequestBatch
from preread.store.chunk import HEADER_BYTES
from preread.store.keys import tenant_digest
from preread.store.seal import Keyring
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Room, fresh
from preread.store.tiers.memory import MemoryTier
from preread.types import Prefix
from tests.attacks.tools import FINGERPRINT, GEOMETRY, Den, Truth

TOKENS = Den.tokens
RING = Keyring((bytes(range(32)),))


class Watched(MemoryTier):
    """Remembers what it was asked and what it said."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[object] = []

    def find(self, keys: Sequence[ChunkKey], *, touch: bool = False) -> list[bool]:
        found = super().find(keys, touch=touch)
        self.asked.append(("find", tuple(keys), touch, tuple(found)))
        return found

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh):  # type: ignore[no-untyped-def]
        self.asked.append(("read", tuple(keys)))
        return super().read(keys, room)


def store(tier: MemoryTier, tenant: str, keyring: Keyring | None, shared: bool = False) -> Store:
    return Store([tier], GEOMETRY, FINGERPRINT, tenant=tenant, keyring=keyring, shared=shared)


def felt(
    victim_was_here: bool, keyring: Keyring | None, shared: bool = False
) -> tuple[list[object], tuple[int, int]]:
    """All that happens between the second tenant and the tier, and what it found."""
    tier, truth = Watched(), Truth.of(GEOMETRY, len(TOKENS))
    if victim_was_here:
        store(tier, "library" if shared else "alice", keyring, shared).save(TOKENS, 0, truth.source)
    tier.asked.clear()
    mine = store(tier, "library" if shared else "mallory", keyring, shared)
    before = mine.match(TOKENS)
    loaded = mine.load(TOKENS, len(TOKENS), truth.sink).tokens
    mine.save(TOKENS, 0, truth.source)
    return tier.asked, (before, loaded)


@pytest.mark.parametrize("keyring", [None, RING], ids=["plain", "sealed"])
def test_whether_another_has_the_text_cannot_be_felt(keyring: Keyring | None) -> None:
    """Every call and every reply is the same: there is nothing that a clock could tell apart."""
    assert felt(True, keyring) == felt(False, keyring)
    with_her, without = felt(True, keyring, shared=True), felt(False, keyring, shared=True)
    assert with_her != without  # who shares can feel it: the measure is not blind
    assert with_her[1] == (len(TOKENS), len(TOKENS))


@pytest.mark.parametrize("keyring", [None, RING], ids=["plain", "sealed"])
def test_names_and_headers_have_nothing_in_common(keyring: Keyring | None) -> None:
    tier, truth = MemoryTier(), Truth.of(GEOMETRY, len(TOKENS))
    names = {}
    for tenant in ("alice", "mallory"):
        names[tenant] = store(tier, tenant, keyring).save(TOKENS, 0, truth.source).keys
    assert not set(names["alice"]) & set(names["mallory"])
    values = {
        tenant: [bytes(v) for v in tier.read([ChunkKey(bytes.fromhex(k)) for k in keys]) if v]  # type: ignore[arg-type]
        for tenant, keys in names.items()
    }
    for mine, hers in zip(values["mallory"], values["alice"], strict=True):
        for secret in (tenant_digest("alice"), b"alice"):
            assert secret not in mine
        same = {hers[i : i + 16] for i in range(0, len(hers), 16)} & {
            mine[i : i + 16] for i in range(0, len(mine), 16)
        }
        if keyring:  # the same text, and not one block of it looks the same
            assert same <= {mine[:16], mine[16:32], bytes(16)}  # length and key id; zeros
        else:  # without a key the KV can be compared: docs/security.md says so
            assert mine[HEADER_BYTES:-16] == hers[HEADER_BYTES:-16]


def test_no_caller_names_a_tenant() -> None:
    """What a request is made of has no place for one."""
    for kind in (Prefix, RequestBatch):
        assert not [field.name for field in fields(kind) if "tenant" in field.name]


def test_a_flood_of_one_leaves_the_others_values_right() -> None:
    """Within one budget the least recently used go, and what is left is whole and its owner's."""
    truth = Truth.of(GEOMETRY, len(TOKENS))
    tier = MemoryTier(budget=16 * 1024)
    alice = store(tier, "alice", RING)
    assert alice.save(TOKENS, 0, truth.source).stored
    generator = torch.Generator().manual_seed(1)
    for _ in range(30):
        tokens = torch.randint(0, 1000, (len(TOKENS),), generator=generator).tolist()
        store(tier, "mallory", RING).save(tokens, 0, truth.source)
        truth.boxes.clear()
        report = alice.load(TOKENS, len(TOKENS), truth.sink)
        assert not report.faults and report.tokens <= len(TOKENS)
