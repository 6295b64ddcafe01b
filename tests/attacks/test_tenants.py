"""Two tenants on one tier: nothing of one is found, seen or felt by the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from obstore.store import MemoryStore as ObjectMemory

from preread.backend import RequestBatch
from preread.store.chunk import HEADER_BYTES
from preread.store.keys import tenant_digest
from preread.store.seal import Keyring
from preread.store.store import Store
from preread.store.tiers.base import OWNER, ChunkKey, Room, Tier, fresh
from preread.store.tiers.bucket import Bucket
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.store.tiers.object import ObjectTier
from preread.store.tiers.redis import open_redis
from preread.store.tiers.redis.asking import ask
from preread.store.tiers.redis.names import NOBODY, share_name
from preread.store.tiers.redis.tier import RedisTier
from preread.store.tiers.urls import parse_tiers
from preread.types import Prefix
from tests.attacks.tools import FINGERPRINT, GEOMETRY, Den, Truth
from tests.store.valkey import cluster, running

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


def store(tier: Tier, tenant: str, keyring: Keyring | None, shared: bool = False) -> Store:
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
            assert same <= {mine[:16], mine[16:32], bytes(16)}  # length, key id; zeros
        else:  # without a key the KV can be compared: docs/security.md says so
            assert mine[HEADER_BYTES:-16] == hers[HEADER_BYTES:-16]


def test_no_caller_names_a_tenant() -> None:
    """What a request is made of has no place for one."""
    for kind in (Prefix, RequestBatch):
        assert not [field.name for field in fields(kind) if "tenant" in field.name]


# --- a flood ---

BUDGET, SHARE = 32_000, 8_000  # bytes; the text's chunks are 7,564 together
KINDS = ("memory", "disk", "object", "redis", "redis list", "redis cluster", "redis kept to shares")
Open = Callable[[int], Tier]  # share -> the tier, as another process opens it


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """kind -> URL"""
    folder = tmp_path_factory.mktemp("servers")
    with contextlib.ExitStack() as stack:
        three = [stack.enter_context(running(folder / str(n))) for n in range(3)]
        members = stack.enter_context(cluster(folder / "cluster"))
        ports = ";".join(f"127.0.0.1:{server.port}" for server in three)
        yield {
            "redis": three[0].url,
            "redis list": f"redis://{ports}",
            "redis cluster": f"redis+cluster://127.0.0.1:{members[0].port}",
        }
        for server in (*three, *members):
            assert server.alive


@pytest.fixture(params=KINDS)
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, servers: dict[str, str]
) -> Iterator[Open]:
    kind, memory, bucket = request.param, dict[int, Tier](), Bucket(ObjectMemory(), "object")
    with contextlib.ExitStack() as stack:

        def open_one(share: int) -> Tier:
            if kind == "memory":
                return memory.setdefault(share, MemoryTier(budget=BUDGET, share=share))
            if kind == "disk":
                return DiskTier(tmp_path / "kv", budget=BUDGET, share=share, fsync=False)
            if kind == "object":
                return ObjectTier(bucket, budget=BUDGET, share=share)
            of_its_own = kind.startswith("redis kept")
            limit = "" if of_its_own else f"budget={BUDGET}&"
            (url,) = parse_tiers(
                f"{servers['redis' if of_its_own else kind]}?{limit}share={share}&deadline=10s"
            )
            return stack.enter_context(contextlib.closing(open_redis(url)))

        yield open_one
        if kind.startswith("redis"):
            tier = open_one(0)
            assert isinstance(tier, RedisTier)
            tier.remove([entry.key for entry in tier.scan()])
            said = [(b"UNLINK", share_name(share)) for share in (SHARE, SHARE // 4)]
            ask(tier._placement, [NOBODY], lambda _: [*said])


def texts(seed: int) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(0, 1000, (len(TOKENS),), generator=generator).tolist()


def found(tier: Tier, tenant: str, keyring: Keyring | None) -> int:
    """Tokens of the text, loaded and compared."""
    truth = Truth.of(GEOMETRY, len(TOKENS))
    report = store(tier, tenant, keyring).load(TOKENS, len(TOKENS), truth.sink)
    assert not report.faults
    return report.tokens


@pytest.mark.parametrize("keyring", [None, RING], ids=["plain", "sealed"])
def test_a_flood_of_one_leaves_the_others_their_share(
    opened: Open, keyring: Keyring | None
) -> None:
    """Each as a process of its own, and he uses what he writes again and again."""
    truth = Truth.of(GEOMETRY, len(TOKENS))
    assert store(opened(SHARE), "alice", keyring).save(TOKENS, 0, truth.source).stored
    written, hers = 0, opened(SHARE)
    for tokens, _ in zip(texts(1), range(12), strict=False):
        his = store(opened(SHARE), "mallory", keyring)
        for _ in range(3):
            written += his.save(tokens, 0, truth.source).chunks
        assert found(hers, "alice", keyring) == len(TOKENS)
    held = hers.usage()
    assert written > 12 and held.nbytes <= BUDGET * 17 / 16
    # And the other way: whoever has less than its share gets in, into the room of who has more.
    bob = store(opened(SHARE), "bob", keyring)
    assert bob.save(TOKENS, 0, truth.source).stored
    assert found(opened(SHARE), "bob", keyring) == found(hers, "alice", keyring) == len(TOKENS)


@pytest.mark.parametrize("his_share", [0, SHARE // 4])
def test_the_largest_share_that_anybody_says_is_kept(
    opened: Open, his_share: int, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that says less, or nothing, takes no room that another has promised."""
    if "memory" in request.node.name or "kept to shares" in request.node.name:
        pytest.skip("one process alone, or one budget for each owner")
    truth = Truth.of(GEOMETRY, len(TOKENS))
    assert store(opened(SHARE), "alice", None).save(TOKENS, 0, truth.source).stored
    for tokens, _ in zip(texts(1), range(12), strict=False):
        his = store(opened(his_share), "mallory", None)
        for _ in range(3):
            his.save(tokens, 0, truth.source)
    assert found(opened(SHARE), "alice", None) == len(TOKENS)
    said = [text for text in caplog.messages if "share" in text]
    assert said and f"share={his_share}" in said[0] and f"share={SHARE}" in said[0]


def test_without_shares_the_flood_takes_all(opened: Open, request: pytest.FixtureRequest) -> None:
    """The measure above is not blind. Never a wrong read, all the same."""
    if "kept to shares" in request.node.name:
        pytest.skip("there the server evicts, if anybody does")
    truth = Truth.of(GEOMETRY, len(TOKENS))
    assert store(opened(0), "alice", RING).save(TOKENS, 0, truth.source).stored
    for tokens, _ in zip(texts(1), range(12), strict=False):
        for _ in range(3):
            store(opened(0), "mallory", RING).save(tokens, 0, truth.source)
    assert found(opened(0), "alice", RING) < len(TOKENS)


def test_whose_a_sealed_chunk_is_shows_no_name_and_no_digest() -> None:
    """A tier can tell whose chunks belong together, and nothing else."""
    values = {}
    for tenant in ("alice", "mallory"):
        tier, truth = MemoryTier(), Truth.of(GEOMETRY, len(TOKENS))
        store(tier, tenant, RING).save(TOKENS, 0, truth.source)
        values[tenant] = [bytes(v) for v in tier.read([e.key for e in tier.scan()]) if v]  # type: ignore[arg-type]
    owners = {tenant: {value[OWNER] for value in some} for tenant, some in values.items()}
    assert [len(some) for some in owners.values()] == [1, 1]
    assert owners["alice"] != owners["mallory"]
    digests = {tenant_digest(tenant)[:16] for tenant in owners}
    assert not digests & (owners["alice"] | owners["mallory"])
    other = MemoryTier()
    store(other, "alice", Keyring((bytes(range(1, 33)),))).save(TOKENS, 0, truth.source)
    (value, *_) = other.read([next(iter(other.scan())).key])
    assert isinstance(value, memoryview) and bytes(value[OWNER]) not in owners["alice"]
