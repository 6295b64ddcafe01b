"""Every kind of damage and fraud, counted, in every kind of tier, plain and sealed: what a tier
gives back wrong is a miss. `Truth.sink` compares every tensor that is delivered, so one wrong read
fails. The counts are printed when the file is done."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from preread.store.chunk import Fault
from preread.store.keys import Epochs, Geometry, fingerprint
from preread.store.seal import Keyring
from preread.store.store import Store
from preread.store.tiers.base import ChunkKey, Tier
from preread.store.tiers.bucket import Bucket
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.store.tiers.object import ObjectTier, open_object
from preread.store.tiers.redis import open_redis
from preread.store.tiers.urls import parse_tiers
from tests.attacks.tools import CHECKSUM, FINGERPRINT, GEOMETRY, HEADER, Den, Truth, draws
from tests.servers import s3_server
from tests.store.valkey import cluster, running

RING = Keyring((bytes(range(32)),))
OTHER_RING = Keyring((bytes(range(1, 33)),))
TOKENS = Den.tokens
CAUGHT_BY_CHECKSUM = range(240, 256)  # of a sealed header: see docs/format.md
CHANCES = 10_000
# Where the same code has been tried with all of them, one in so many: every step is a request.
ONE_IN = {"cluster": 8, "s3": 100}
KINDS = ("memory", "disk", "redis", "object", "cluster", "s3")


class Vault:
    """One store on one tier, whose values are known and can be replaced by others."""

    def __init__(self, tier: Tier, keyring: Keyring | None, kind: str = "memory") -> None:
        self.tier, self.keyring, self.kind = tier, keyring, kind
        self.one_in = ONE_IN.get(kind, 1)
        self.truth = Truth.of(GEOMETRY, len(TOKENS))
        self.store = self.open()
        report = self.store.save(TOKENS, 0, self.truth.source)
        assert report.stored
        self.keys = [ChunkKey(bytes.fromhex(key)) for key in report.keys]
        self.values = self.read(tier, self.keys)

    def open(self, tier: Tier | None = None, **other: Any) -> Store:
        given = {"keyring": self.keyring, **other}
        of = given.pop("fingerprint", FINGERPRINT)
        geometry = given.pop("geometry", GEOMETRY)
        return Store([tier or self.tier], geometry, of, **given)

    @staticmethod
    def read(tier: Tier, keys: list[ChunkKey]) -> list[bytes]:
        return [bytes(value) for value in tier.read(keys) if isinstance(value, memoryview)]

    def foreign(self, geometry: Geometry = GEOMETRY, **other: Any) -> list[bytes]:
        """The values of another store of other KV, for the same tokens."""
        elsewhere, truth = MemoryTier(), Truth.of(geometry, len(TOKENS), seed=9)
        report = self.open(elsewhere, geometry=geometry, **other).save(TOKENS, 0, truth.source)
        return self.read(elsewhere, [ChunkKey(bytes.fromhex(key)) for key in report.keys])

    def attack(self, values: Mapping[int, bytes]) -> Counter[str]:
        """Load with these values in place of ours; then all is put back. The reasons by which they
        were refused, "" for those that were served: rightly, or the sink would have raised."""
        for n, value in values.items():
            assert value != self.values[n] and self.tier.write(self.keys[n], [value])
        self.truth.boxes.clear()
        report = self.store.load(TOKENS, len(TOKENS), self.truth.sink)
        found = {self.keys.index(ChunkKey(bytes.fromhex(key))): why for why, key in report.faults}
        assert found.keys() <= values.keys()  # nothing of ours was refused
        assert report.tokens == min((n // 2 * 8 for n in found), default=len(TOKENS))
        for n, value in enumerate(self.values):
            if n in values:
                self.tier.write(self.keys[n], [value])
        return Counter(found.get(n, "") for n in values)


class Counts:
    """attack -> tier -> reason -> how often"""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Counter[str]] = {}

    def lines(self) -> Iterator[str]:
        for (attack, where), found in self.rows.items():
            reasons = ", ".join(f"{why or 'served right'} {n}" for why, n in found.most_common())
            yield f"{attack:28} {where:14} {found.total():6} tried, 0 wrong reads: {reasons}"


@pytest.fixture(scope="module")
def counts(request: pytest.FixtureRequest) -> Iterator[Counts]:
    counts = Counts()
    yield counts
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("", *counts.lines(), sep="\n")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Tier]]:
    """A tier of the kind; servers end with the file."""
    ends = contextlib.ExitStack()

    def open_one(kind: str) -> Tier:
        root: Path = tmp_path_factory.mktemp("kv")
        if kind == "memory":
            return MemoryTier()
        if kind == "disk":
            return DiskTier(root, fsync=False)
        if kind == "object":
            return ObjectTier(Bucket(MemoryStore(), "object"))
        if kind == "s3":
            endpoint = ends.enter_context(s3_server("bucket"))
            (url,) = parse_tiers(f"s3://id:secret@bucket/{root.name}?endpoint={endpoint}")
            return open_object(url)
        if kind == "cluster":
            servers = ends.enter_context(cluster(root / "cluster"))
            (url,) = parse_tiers(f"redis+cluster://127.0.0.1:{servers[0].port}?deadline=5s")
        else:
            server = ends.enter_context(running(root / "server"))
            (url,) = parse_tiers(f"{server.url}?deadline=5s")
        return ends.enter_context(contextlib.closing(open_redis(url)))

    with ends:
        yield open_one


@pytest.fixture(
    scope="module",
    params=[f"{kind}{how}" for kind in KINDS for how in ("", " sealed")],
)
def vault(request: pytest.FixtureRequest, opened: Callable[[str], Tier]) -> Vault:
    kind, _, sealed = request.param.partition(" ")
    vault = Vault(opened(kind), RING if sealed else None, kind)
    assert vault.attack({}) == {}
    return vault


def flipped(value: bytes, bit: int) -> bytes:
    data = bytearray(value)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


def noted(counts: Counts, vault: Vault, attack: str, found: Counter[str]) -> Counter[str]:
    where = vault.kind + (" sealed" if vault.keyring else "")
    counts.rows[attack, where] = found
    return found


def flips(vault: Vault, bits: Iterator[tuple[int, int]]) -> Counter[str]:
    """(chunk, bit), one bit of each of the chunks in every load; all but a sealed value's checksum
    must be refused."""
    found: Counter[str] = Counter()
    by_chunk: dict[int, list[int]] = {}
    for n, bit in bits:
        by_chunk.setdefault(n, []).append(bit)
    for group in itertools.zip_longest(*by_chunk.values()):
        chosen = {n: bit for n, bit in zip(by_chunk, group, strict=True) if bit is not None}
        seen = vault.attack({n: flipped(vault.values[n], bit) for n, bit in chosen.items()})
        idle = sum(bit // 8 in CAUGHT_BY_CHECKSUM for bit in chosen.values())
        assert seen[""] == (idle if vault.keyring else 0)
        found += seen
    return found


def test_every_bit_of_every_header_field(vault: Vault, counts: Counts) -> None:
    tried = range(0, 8 * HEADER, vault.one_in)
    found = flips(vault, ((n % 8, bit) for n, bit in enumerate(tried)))
    attack = "header, every bit" if vault.one_in == 1 else f"header, a bit of {vault.one_in}"
    assert noted(counts, vault, attack, found).total() == len(tried)


def test_random_bits(vault: Vault, counts: Counts) -> None:
    draw = draws("bits")
    chances = CHANCES // vault.one_in
    bits = ((k % 8, draw.randrange(8 * len(vault.values[k % 8]))) for k in range(chances))
    found = flips(vault, bits)
    assert noted(counts, vault, "random bits", found).total() == chances


def test_cut_short_extended_or_half_written(vault: Vault, counts: Counts) -> None:
    draw, found = draws("cuts"), Counter[str]()
    rounds = 200 // vault.one_in
    for _ in range(rounds):
        n = draw.randrange(8)
        value = vault.values[n]
        other = vault.values[n - 1]
        at = draw.randrange(len(value))
        found += vault.attack({n: value[:at]})
        found += vault.attack({n: value + draw.randbytes(1 + at)})
        if value[at:].strip(b"\0"):
            found += vault.attack({n: value[:at] + bytes(len(value) - at)})
        if (torn := (value[:at] + other[at:])[: len(value)].ljust(len(value), b"x")) != value:
            found += vault.attack({n: torn})
    harmless = found.pop("", 0)  # nothing but a sealed header's checksum was hit
    assert harmless <= (40 if vault.keyring else 0)
    assert noted(counts, vault, "cut, extended, half-written", found).total() > 3.5 * rounds


def test_swapped(vault: Vault, counts: Counts) -> None:
    found: Counter[str] = Counter()
    some = range(8 if vault.kind != "s3" else 4)
    for one, two in itertools.combinations(some, 2):
        found += vault.attack({one: vault.values[two], two: vault.values[one]})
    assert found[""] == 0
    pairs = len(some) * (len(some) - 1)
    assert noted(counts, vault, "swapped, same tenant", found).total() == pairs


def reasons(vault: Vault, plain: Fault, sealed: Fault) -> dict[str, int]:
    return {(sealed if vault.keyring else plain).value: 8}


@pytest.mark.parametrize("shared", [False, True])
def test_another_tenants(vault: Vault, counts: Counts, shared: bool) -> None:
    """Also with the same master key, and also one of a shared namespace of our name."""
    tenant = "default" if shared else "mallory"
    theirs = vault.foreign(tenant=tenant, shared=shared)
    found = vault.attack(dict(enumerate(theirs)))
    # Its sealed name stands in a sealed chunk, which is seen before the seal is tried.
    assert found == reasons(vault, Fault.OTHER_TENANT, Fault.OTHER_KEY)
    noted(counts, vault, "of a namespace" if shared else "swapped, other tenant", found)


@pytest.mark.parametrize("epochs", [Epochs(1, 0), Epochs(0, 1), Epochs(7, 7)])
def test_replay_of_an_old_epoch(vault: Vault, counts: Counts, epochs: Epochs) -> None:
    """After a bump nothing of before is found; put under the new names it is refused."""
    later = Vault(MemoryTier(), vault.keyring)
    later.store = later.open(epochs=lambda: epochs)
    assert later.store.match(TOKENS) == 0
    later.store.save(TOKENS, 0, later.truth.source)
    later.keys = [ChunkKey(bytes.fromhex(key)) for key in later.store.keys(TOKENS)]
    later.values = later.read(later.tier, later.keys)
    found = later.attack(dict(enumerate(vault.values)))
    assert found == reasons(vault, Fault.OTHER_CHAIN, Fault.OTHER_KEY)
    noted(counts, vault, f"old epoch, now {epochs.tenant}, {epochs.model}", found)


def test_foreign_weights(vault: Vault, counts: Counts) -> None:
    found = vault.attack(
        dict(enumerate(vault.foreign(fingerprint=fingerprint({"weights": "theirs"}))))
    )
    assert found == reasons(vault, Fault.FOREIGN_FINGERPRINT, Fault.OTHER_KEY)
    noted(counts, vault, "foreign weights", found)


def test_wrong_dtype(vault: Vault, counts: Counts) -> None:
    """Under the very same keys: half the bytes an element, twice the elements."""
    theirs = Geometry(3, 2, 8, "float16", 8, GEOMETRY.chunk_bytes)
    found = vault.attack(dict(enumerate(vault.foreign(geometry=theirs))))
    assert found == reasons(vault, Fault.OTHER_SHAPE, Fault.BROKEN_SEAL)
    noted(counts, vault, "wrong dtype and shape", found)


def test_plain_for_sealed_and_sealed_for_plain(vault: Vault, counts: Counts) -> None:
    theirs = vault.foreign(keyring=None if vault.keyring else RING)
    found = vault.attack(dict(enumerate(theirs)))
    assert found == reasons(vault, Fault.SEALED, Fault.PLAIN)
    noted(counts, vault, "plain for sealed, or back", found)
    other = vault.open(keyring=None if vault.keyring else RING)
    assert other.match(TOKENS) == 0  # under names of their own: clean misses
    assert other.load(TOKENS, len(TOKENS), vault.truth.sink).faults == ()


def test_sealed_with_another_master_key(counts: Counts) -> None:
    """Who lacks a key that others seal with: a miss; who uses quite another keyring: no name."""
    vault = Vault(MemoryTier(), RING)
    others = vault.foreign(keyring=Keyring((*OTHER_RING.keys, *RING.keys)))
    found = vault.attack(dict(enumerate(others)))
    assert found == {Fault.UNKNOWN_KEY.value: 8}
    noted(counts, vault, "key that we lack", found)
    assert vault.open(keyring=OTHER_RING).match(TOKENS) == 0


def test_forged_by_who_has_no_key(counts: Counts) -> None:
    """All that stands in clear is as it must be, the checksum too; the ciphertext is invented."""
    from preread.store.seal import _checksum, check

    vault, draw, found = Vault(MemoryTier(), RING), random.Random(3), Counter[str]()
    for n, value in enumerate(vault.values):
        body = draw.randbytes(len(value) - HEADER)
        forged = value[:240] + _checksum(value[:240], memoryview(body)) + body
        check(memoryview(bytearray(forged)), vault.keys[n])
        assert len(body) > CHECKSUM
        found += vault.attack({n: forged})
    assert found == {Fault.BROKEN_SEAL.value: 8}
    noted(counts, vault, "forged ciphertext", found)


def renamed(value: bytes, name: bytes) -> bytes:
    """A sealed value with another name in its header and the checksum made right again."""
    from preread.store.seal import _checksum

    clear = value[:64] + name + value[96:240]
    return clear + _checksum(clear, memoryview(value[HEADER:])) + value[HEADER:]


def test_exchanged_and_renamed(counts: Counts) -> None:
    """The name in the header fits; the seal knows better."""
    vault, found = Vault(MemoryTier(), RING), Counter[str]()
    for one, two in itertools.permutations(range(8), 2):
        found += vault.attack({one: renamed(vault.values[two], vault.keys[one])})
    for other in ({"tenant": "mallory"}, {"epochs": lambda: Epochs(3, 0)}, {"shared": True}):
        theirs = vault.foreign(**other)
        found += vault.attack({n: renamed(v, vault.keys[n]) for n, v in enumerate(theirs)})
    assert found.keys() <= {Fault.BROKEN_SEAL.value, Fault.WRONG_LENGTH.value}  # never served
    noted(counts, vault, "exchanged and renamed", found)
