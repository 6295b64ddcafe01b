"""A disk that hangs: nobody waits longer than a deadline, few threads hang with it, nothing is
written late, and it serves again as soon as it answers."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from preread.errors import TierError
from preread.store.store import Store
from preread.store.tiers import files
from preread.store.tiers.base import Tier, fresh, light
from preread.store.tiers.breaker import Breaker
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.guard import MOST, Guard
from preread.testing.conformance_tier import get, key, put
from tests.attacks.tools import FINGERPRINT, GEOMETRY, Den

DEADLINE_S = 0.1
SOON_S = 30.0  # what is waited for in vain lasts longer
TOKENS = Den.tokens


class Mount:
    """The file system, which hangs for who calls one of these while it is told to."""

    CALLS = ("access", "open", "preadv", "write", "replace", "rename", "unlink", "scandir", "utime")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = threading.Event()
        self.hangs: frozenset[str] = frozenset()
        self.asked = threading.Semaphore(0)  # how often it hung
        for name in self.CALLS:
            monkeypatch.setattr(files.os, name, self._slow(name, getattr(files.os, name)))

    def _slow(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def slow(*args: object, **options: object) -> object:
            if name in self.hangs and threading.current_thread().name.startswith("preread-"):
                self.asked.release()
                assert self.answers.wait(600)
            return call(*args, **options)

        return slow

    def hang(self, *names: str) -> None:
        self.answers.clear()
        self.hangs = frozenset(names or self.CALLS)

    def answer(self) -> None:
        self.hangs = frozenset()
        self.answers.set()


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mount]:
    mount = Mount(monkeypatch)
    yield mount
    mount.answer()


@pytest.fixture
def disk(tmp_path: Path, mount: Mount) -> DiskTier:
    disk = DiskTier(tmp_path / "kv", fsync=False, deadline_s=DEADLINE_S)
    for n in range(3):
        put(disk, n, b"value %d" % n)
    return disk


CALLS: dict[str, Callable[[Tier], object]] = {
    "find": lambda tier: tier.find([key(0)]),
    "touch": lambda tier: tier.find([key(0)], touch=True),
    "read": lambda tier: get(tier, 0),
    "write": lambda tier: put(tier, 9, b"x"),
    "remove": lambda tier: tier.remove([key(9)]),
    "set aside": lambda tier: tier.remove([key(9)], quarantine=True),
    "scan": lambda tier: list(tier.scan()),
    "usage": lambda tier: tier.usage(),
    "tidy": lambda tier: tier.tidy(0),  # type: ignore[attr-defined]
    "used": lambda tier: tier.used({key(0): 1.0}),  # type: ignore[attr-defined]
    "left": lambda tier: tier.left([key(9)], look=True),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("name", CALLS)
def test_no_call_waits_longer_than_its_deadline(disk: DiskTier, mount: Mount, name: str) -> None:
    mount.hang()
    began = time.monotonic()
    with pytest.raises(TierError, match=r"no answer within 0\.\d s"):
        CALLS[name](disk)
    assert time.monotonic() - began < SOON_S and disk.hanging == 1
    with pytest.raises(TierError, match="asked again in"):
        CALLS[name](disk)
    assert disk.hanging == 1, "nobody is sent after it"
    mount.answer()
    eventually(lambda: not disk.hanging and disk.find([key(0)]) == [True])


def test_a_folder_that_hangs_can_be_opened(tmp_path: Path, mount: Mount) -> None:
    mount.hang()
    disk = DiskTier(tmp_path / "kv", fsync=False, deadline_s=DEADLINE_S)
    with pytest.raises(TierError):
        disk.find([key(0)])
    mount.answer()
    eventually(lambda: disk.find([key(0)]) == [False])


def eventually(true: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON_S
    while time.monotonic() < until:
        try:
            if true():
                return
        except TierError:
            pass
        time.sleep(0.02)
    raise AssertionError("it never came to that")


def test_threads_that_hang_are_few(tmp_path: Path, mount: Mount) -> None:
    """However long it lasts, and however often it is asked: also where the breaker lets pass."""
    guard = Guard("here", 0.01, Breaker(cool_s=0.0, longest_s=0.0))
    go = threading.Event()
    before = threading.active_count()
    for _ in range(5 * MOST):
        with pytest.raises(TierError):
            guard.call("use", lambda _: go.wait(600))
    assert guard.hanging == MOST == threading.active_count() - before
    with pytest.raises(TierError, match=f"{MOST} calls hang in it"):
        guard.call("use", lambda _: None)
    with pytest.raises(TierError, match=f"{MOST} calls hang in it"):
        next(guard.stream("use", iter("abc"), light))
    go.set()
    eventually(lambda: not guard.hanging)
    assert guard.call("use", lambda _: 1) == 1
    assert list(guard.stream("use", iter("abc"), light)) == ["a", "b", "c"]


def test_reads_that_were_given_up_count_as_well(disk: DiskTier, mount: Mount) -> None:
    """Who gives a read up before its deadline leaves a thread behind."""
    mount.hang("preadv")
    for _ in range(4):
        reads = disk.read([key(0)])
        mount.asked.acquire()
        reads.close()  # type: ignore[attr-defined]
    time.sleep(2 * DEADLINE_S)
    assert disk.hanging == 4
    with pytest.raises(TierError, match="does not answer"):
        disk.find([key(0)])
    mount.answer()
    eventually(lambda: not disk.hanging and disk.find([key(0)]) == [True])


def test_what_is_not_written_in_time_never_shows(disk: DiskTier, mount: Mount) -> None:
    """By then the memory may hold something else."""
    value = bytearray(b"what was meant")
    mount.hang("write")
    with pytest.raises(TierError):
        disk.write(key(7), [value])
    value[:] = b"another's now!"
    mount.answer()
    eventually(lambda: not disk.hanging)
    assert disk.find([key(7)]) == [False]
    assert list((disk._folder._temp).iterdir()) == []
    assert put(disk, 7, b"again") and get(disk, 7) == b"again"


def test_a_value_that_comes_late_is_nobodys(disk: DiskTier, mount: Mount) -> None:
    given: list[memoryview] = []

    def room(nbytes: int) -> memoryview:
        given.append(fresh(nbytes))
        return given[-1]

    reads = disk.read([key(n) for n in range(3)], room)
    assert bytes(next(reads)) == b"value 0"  # type: ignore[arg-type]
    eventually(lambda: len(given) == 3)  # read ahead
    mount.hang("open")
    assert [bytes(v) for v in reads] == [b"value 1", b"value 2"]  # type: ignore[arg-type]
    late = disk.read([key(0), key(1)], room)
    with pytest.raises(TierError):
        next(late)
    mount.answer()
    eventually(lambda: not disk.hanging)
    assert list(late) == [], "it has ended"


def test_a_read_that_nobody_finishes_ends(disk: DiskTier) -> None:
    before = threading.active_count()
    reads = disk.read([key(0)] * 50)
    next(reads)
    del reads
    gc.collect()
    eventually(lambda: threading.active_count() <= before)


def test_slow_is_not_hanging(disk: DiskTier) -> None:
    """Who takes slowly is not taken for a medium that is slow, and each value has its time."""
    taken = []
    for value in disk.read([key(n % 3) for n in range(6)]):
        time.sleep(1.5 * DEADLINE_S)
        taken.append(bytes(value))  # type: ignore[arg-type]
    assert taken == [b"value %d" % (n % 3) for n in range(6)] and not disk.hanging


def test_a_store_goes_on_by_computing(tmp_path: Path, mount: Mount) -> None:
    den = Den(tmp_path / "kv")
    den.save()
    disk = DiskTier(tmp_path / "kv", fsync=False, deadline_s=DEADLINE_S)
    store = Store([disk], GEOMETRY, FINGERPRINT, metrics=den.metrics)
    whole = store.match(TOKENS)
    assert whole == len(TOKENS)
    for calls in (("preadv", "open"), ("access",), Mount.CALLS):
        mount.hang(*calls)
        began = time.monotonic()
        assert den.load(store).tokens == 0 and not store.save(TOKENS, 0, den.truth.source).stored
        assert time.monotonic() - began < SOON_S
        mount.answer()
        eventually(lambda: store.match(TOKENS) == whole and not disk.hanging)
        assert den.load(store).tokens == whole


def test_without_a_deadline_nothing_is_guarded(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, fsync=False, deadline_s=0)
    before = threading.active_count()
    assert put(disk, 1, b"x") and get(disk, 1) == b"x"
    reads = disk.read([key(1)] * 3)
    next(reads)
    assert threading.active_count() == before


def test_what_could_not_be_sent_does_not_count_as_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a container may have no more threads for a while."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    now = Guard("/somewhere", DEADLINE_S)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(MOST + 1):
            with pytest.raises(TierError, match="can't start new thread"):
                now.call("look into", lambda wanted: 1)
    assert now.call("look into", lambda wanted: 1) == 1
    time.sleep(2 * DEADLINE_S)
    assert not now.hanging
