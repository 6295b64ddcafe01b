"""Values straight to their places: equal to the copying way, and nothing is written late."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from preread.errors import TierError
from preread.store.arriving import Abandoned, Gate
from preread.store.chunk import (
    CHECKSUM_BYTES,
    HEADER_BYTES,
    ChunkFault,
    ChunkHeader,
    Fault,
    Parts,
    pack,
    unpack,
)
from preread.store.codec import Int8Codec
from preread.store.keys import Box, chunk_key
from preread.store.rates import Rates
from preread.store.reports import Miss
from preread.store.seal import Keyring
from preread.store.store import Store
from preread.store.tiers import files
from preread.store.tiers.base import ChunkKey, Outcome, Room, Tier, fresh
from preread.store.tiers.bucket import Bucket
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.landing import landing
from preread.store.tiers.memory import MemoryTier
from preread.store.tiers.object import ObjectTier
from tests.attacks.tools import FINGERPRINT, GEOMETRY, Den, Truth

TOKENS = Den.tokens
SEAL = Keyring.parse(sha256(b"a test").hexdigest(), "a test")
PAYLOAD = bytes(range(256)) * 3
BOX = Box(256, 300, 2, 4, 0, 2)
CHUNK = ChunkHeader(
    b"f" * 32, b"t" * 32, b"c" * 32, BOX, 64, 3, 1, len(PAYLOAD), chunk_key(b"c" * 32, BOX, "raw")
)


class Everywhere(Truth):
    """Has a place for every box."""

    def placed(self, box: Box) -> bool:
        return True


def everywhere() -> Truth:
    return Everywhere.of(GEOMETRY, len(TOKENS))


def opened(truth: Truth, *tiers: Tier, **options: object) -> Store:
    store = Store(tiers, truth.geometry, FINGERPRINT, **options)  # type: ignore[arg-type]
    assert store.save(TOKENS, 0, truth.source).stored
    return store


# --- a chunk in pieces is judged like a whole one ---


def judged(look: Callable[[], object]) -> Fault | None:
    try:
        look()
    except ChunkFault as exc:
        return exc.reason
    return None


@given(
    cuts=st.lists(st.integers(0, len(PAYLOAD)), max_size=12),
    flips=st.lists(st.tuples(st.integers(0, HEADER_BYTES + len(PAYLOAD) + 15), st.integers(0, 7))),
)
def test_pieces_are_judged_like_the_whole(cuts: list[int], flips: list[tuple[int, int]]) -> None:
    value = memoryview(bytearray(b"".join(pack(CHUNK, memoryview(PAYLOAD)))))
    for at, bit in flips:
        value[at] ^= 1 << bit
    payload = value[HEADER_BYTES:-CHECKSUM_BYTES]
    edges = [0, *sorted(cuts), len(PAYLOAD)]
    pieces = [payload[a:b] for a, b in pairwise(edges)]
    parts = Parts(CHUNK)
    parts.head[:], parts.tail[:] = value[:HEADER_BYTES], value[-CHECKSUM_BYTES:]
    parts.add([value[:HEADER_BYTES]], HEADER_BYTES)
    half = len(pieces) // 2
    for some in (pieces[:half], pieces[half:]):
        parts.add(some, sum(map(len, some)))
    whole = judged(lambda: unpack(value, CHUNK))
    assert judged(parts.judge) == whole
    assert (whole is None) == (bytes(value) == b"".join(pack(CHUNK, memoryview(PAYLOAD))))


# --- every tier, every way ---


def tiers_of(folder: Path) -> dict[str, Tier]:
    return {
        "ram": MemoryTier(),
        "disk": DiskTier(folder / "disk", fsync=False),
        "one": DiskTier(folder / "one", fsync=False, window=1),
        "object": ObjectTier(Bucket(MemoryStore(), "memory")),
    }


@pytest.mark.parametrize("kind", ["ram", "disk", "one", "object"])
@pytest.mark.parametrize("options", [{}, {"keyring": SEAL}], ids=["plain", "sealed"])
@pytest.mark.parametrize("cached", [True, False])
def test_what_is_placed_is_what_is_sunk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    options: dict[str, object],
    cached: bool,
) -> None:
    if not cached:  # nothing is in the page cache, or the file system cannot say
        monkeypatch.setattr(files, "_AT_ONCE", 0)
    truth = everywhere()
    store = opened(truth, tiers_of(tmp_path)[kind], **options)
    assert store.load(TOKENS, 29, truth.sink).tokens == 29 and len(truth.boxes) == 8
    sunk, truth.boxes = truth.boxes, []
    report = store.load(TOKENS, 29, truth.sink, place=truth.place)
    assert (report.tokens, report.end, report.faults) == (29, None, ())
    assert report.nbytes == truth.kv.nbytes
    if kind != "object":  # it makes no use of places
        assert truth.boxes == []
        assert torch.equal(truth.arena, truth.kv)
    else:
        assert truth.boxes == sunk


def test_what_is_in_memory_is_sunk_from_where_it_lies() -> None:
    """A device reads it there; a copy would cost as much as the way to the device."""
    made: list[np.ndarray[Any, Any]] = []

    def make(nbytes: int) -> memoryview:
        made.append(np.zeros(nbytes, np.uint8))
        return made[-1].data

    truth = everywhere()
    store = opened(truth, MemoryTier(make=make))
    lies = [(value.ctypes.data, value.ctypes.data + value.nbytes) for value in made]
    came: list[int] = []
    assert store.load(TOKENS, 29, lambda box, kv: came.append(kv.data_ptr())).tokens == 29
    assert len(came) == len(lies) == 8
    assert all(any(a <= at < b for a, b in lies) for at in came)


def test_a_lossy_chunk_is_sunk(tmp_path: Path) -> None:
    truth = everywhere()
    options: dict[str, object] = {"codec": Int8Codec()}
    store = opened(truth, DiskTier(tmp_path, fsync=False), **options)
    got: list[Box] = []
    report = store.load(TOKENS, 29, lambda box, kv: got.append(box), place=truth.place)
    assert report.tokens == 29 and len(got) == 8 and bool(truth.arena.isnan().all())


def test_a_file_that_is_half_in_the_page_cache_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = everywhere()
    store = opened(truth, DiskTier(tmp_path, fsync=False))
    preadv = os.preadv

    def half(fd: int, views: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        return preadv(fd, views[: len(views) // 2] if flags else views, offset)

    monkeypatch.setattr(os, "preadv", half)
    assert store.load(TOKENS, 29, truth.sink, place=truth.place).tokens == 29
    assert truth.boxes == [] and torch.equal(truth.arena, truth.kv)


def test_more_pieces_than_one_call_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_VIEWS", 3)
    truth = everywhere()
    store = opened(truth, DiskTier(tmp_path, fsync=False))
    assert store.load(TOKENS, 29, truth.sink, place=truth.place).tokens == 29
    assert torch.equal(truth.arena, truth.kv)


# --- nothing is written late ---


def test_a_gate_lets_nobody_in_once_it_is_shut() -> None:
    gate, inside, go = Gate(), threading.Event(), threading.Event()
    order: list[str] = []

    def work() -> None:
        with gate:
            inside.set()
            go.wait(60)
            order.append("written")

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(60)
    shutting = threading.Thread(target=lambda: (gate.shut(), order.append("shut")))
    shutting.start()
    time.sleep(0.05)  # it must not be shut now; that it is not, the order proves
    go.set()
    shutting.join(60)
    thread.join(60)
    assert order == ["written", "shut"]
    with pytest.raises(Abandoned), gate:
        order.append("late")
    gate.shut()
    assert order == ["written", "shut"]


class Late(MemoryTier):
    """Lands its value number `late` when it is told to, in a thread of its own, whatever becomes of
    the read; what is asked then fails, or waits for ever."""

    def __init__(self, late: int, *, fails: bool) -> None:
        super().__init__(name="late")
        self.late, self.fails = late, fails
        self.go, self.outcome = threading.Event(), ""
        self.thread: threading.Thread | None = None
        self.began = threading.Event()

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        for n, key in enumerate(keys):
            if n == self.late:
                (value,) = super().read([key])
                assert isinstance(value, memoryview)
                berth = landing(room, key, len(value))  # it has its place already
                self.thread = threading.Thread(target=self.land, args=(berth, value))
                self.thread.start()
                self.began.set()
                if self.fails:
                    raise TierError("gone", hint="Nothing to do.")
                threading.Event().wait(60)  # asked in a daemon thread
            yield from super().read([key], room)

    def land(self, berth: object, value: memoryview) -> None:
        self.go.wait(60)
        try:
            berth.take(value)  # type: ignore[attr-defined]
            self.outcome = "landed"
        except Abandoned:
            self.outcome = "abandoned"

    def finish(self) -> str:
        assert self.thread is not None
        self.go.set()
        self.thread.join(60)
        return self.outcome


def test_who_was_not_waited_for_writes_nothing() -> None:
    truth, tier, rates = everywhere(), Late(3, fails=False), Rates()
    store = opened(truth, tier, rates=rates)
    for end in (8, 16, 29):
        rates.computed(0, end, end * 0.2 / 29)
    found = store.find(TOKENS)
    choice = store.choose(found)
    report = store.load(TOKENS, 29, truth.sink, found=found, choice=choice, place=truth.place)
    assert report.tokens == 8 and report.end is not None and report.end.reason is Miss.TOO_SLOW
    computed = truth.arena.clone()  # from here on others use these places
    assert tier.finish() == "abandoned"
    assert torch.equal(truth.arena.view(torch.int32), computed.view(torch.int32))
    assert torch.equal(truth.arena[:, :, :, :8], truth.kv[:, :, :, :8])


def test_a_tier_that_failed_does_not_write_over_what_another_gave() -> None:
    truth, tier = everywhere(), Late(3, fails=True)
    far = MemoryTier(name="far")
    store = opened(truth, tier, far)
    report = store.load(TOKENS, 29, truth.sink, place=truth.place)
    assert report.tokens == 29 and [row.tier for row in report.served] == ["late", "far"]
    assert truth.boxes == [] and torch.equal(truth.arena, truth.kv)
    truth.arena.zero_()  # others use these places now
    assert tier.finish() == "abandoned" and not truth.arena.any()


def test_a_load_whose_sink_raises_leaves_no_writer() -> None:
    """The first box is sunk, the third has a place and is late."""
    truth, tier = Truth.of(GEOMETRY, len(TOKENS)), Late(2, fails=False)
    rates = Rates()
    for end in (8, 16, 29):
        rates.computed(0, end, 60.0 * end)
    store = opened(truth, tier, rates=rates)

    def broken(box: Box, kv: torch.Tensor) -> None:
        assert tier.began.wait(60)  # in the thread that reads ahead
        raise ZeroDivisionError

    found = store.find(TOKENS)
    with pytest.raises(ZeroDivisionError):
        store.load(TOKENS, 29, broken, found=found, choice=store.choose(found), place=truth.place)
    left = truth.arena.clone()
    assert tier.finish() == "abandoned"
    assert torch.equal(truth.arena.view(torch.int32), left.view(torch.int32))


@pytest.mark.parametrize("sealed", [False, True])
def test_what_is_copied_to_its_place_was_verified_before(sealed: bool) -> None:
    truth, tier = everywhere(), MemoryTier()
    store = opened(truth, tier, **({"keyring": SEAL} if sealed else {}))
    key = ChunkKey(bytes.fromhex(store.keys(TOKENS)[2]))
    (value,) = tier.read([key])
    assert isinstance(value, memoryview)
    value[HEADER_BYTES] ^= 1
    tier.write(key, [value])
    report = store.load(TOKENS, 29, truth.sink, place=truth.place)
    assert report.tokens == 8 and len(report.faults) == 1
    assert bool(truth.arena[:1, :, :, 8:16].isnan().all())
