"""What can be done around the files: other things in their place, permissions, no room, other
writers. Always a miss with its cause logged, never an exception, never wrong bytes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from preread.store.chunk import Fault
from preread.store.tiers import files
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.memory import MemoryTier
from preread.testing.faulty import FaultyTier, Trouble, at, often
from tests.attacks.tools import (
    GEOMETRY,
    HEADER,
    Den,
    Truth,
    flip,
)

# --- things in a chunk's place ---


def test_things_that_are_no_files(den: Den, log: list[logging.LogRecord]) -> None:
    path, other = den.file(2), den.file(3)

    def folder() -> None:
        (path / "inner").mkdir(parents=True)

    def loop() -> None:
        path.symlink_to(path)

    def link() -> None:  # also a link to a good chunk is none of ours
        path.symlink_to(other)

    def fifo() -> None:
        os.mkfifo(path)

    def sock() -> None:
        with socket.socket(socket.AF_UNIX) as s, contextlib.chdir(path.parent):
            s.bind(path.name)

    for make in (folder, loop, link, fifo, sock):
        path.unlink()
        make()
        den.survives([2], Fault.UNREADABLE, log)


def test_an_empty_file(den: Den, log: list[logging.LogRecord]) -> None:
    den.file(2).write_bytes(b"")
    den.survives([2], Fault.TRUNCATED, log)


def test_a_file_of_a_terabyte_is_not_read(den: Den, log: list[logging.LogRecord]) -> None:
    with den.file(2).open("r+b") as file:
        file.truncate(1 << 40)
    den.survives([2], Fault.UNREADABLE, log)


def test_a_link_in_place_of_the_fan_out_folder(den: Den, log: list[logging.LogRecord]) -> None:
    folder = den.file(2).parent.parent
    shutil.rmtree(folder)
    folder.symlink_to(folder)
    report = den.load()
    assert report.tokens <= 8 and log
    assert den.store.save(den.tokens, 0, den.truth.source).stored is False


@pytest.fixture
def nobodys(tmp_path: Path) -> Iterator[Path]:
    """A folder owned by a user who is not root (root may read everything)."""
    root = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(root, 65534, 65534)
        os.seteuid(65534)
    try:
        yield root
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        shutil.rmtree(root)


def test_an_unreadable_file(nobodys: Path, log: list[logging.LogRecord]) -> None:
    den = Den(nobodys / "kv")
    den.file(2).chmod(0)
    den.survives([2], Fault.UNREADABLE, log)


def test_a_read_only_folder(nobodys: Path, log: list[logging.LogRecord]) -> None:
    """Reads go on; a corrupt chunk that cannot be set aside is never served nor matched again, and
    is overwritten as soon as that is possible."""
    den = Den(nobodys / "kv")
    flip(den.file(2), HEADER, 1)
    folders = [p for p in den.root.rglob("*") if p.is_dir()] + [den.root]
    for folder in folders:
        folder.chmod(0o500)
    for _ in range(2):
        assert den.load().tokens == 8
        assert den.store.match(den.tokens) == 8
    assert sum(den.keys[2] in r.getMessage() for r in log) == 1
    assert den.store.save(den.tokens, 8, den.truth.source).stored is False
    assert any("writable" in r.getMessage() for r in log)
    for folder in folders:
        folder.chmod(0o700)
    den.save()
    assert den.load().tokens == den.store.match(den.tokens) == len(den.tokens)


def test_a_folder_nobody_may_enter(nobodys: Path, log: list[logging.LogRecord]) -> None:
    den = Den(nobodys / "kv")
    den.root.chmod(0)
    assert den.load().tokens == 0 and den.store.match(den.tokens) == 0
    assert den.store.save(den.tokens, 0, den.truth.source).stored is False
    assert den.store.verify().errors and den.store.sweep(frozenset(), 0).errors
    den.root.chmod(0o700)
    assert den.load().tokens == len(den.tokens)
    assert any("Permission denied" in r.getMessage() for r in log)


# --- no room ---


def test_a_quota_of_the_kernel(tmp_path: Path, log: list[logging.LogRecord]) -> None:
    den = Den(tmp_path / "kv")
    den.disk.remove([e.key for e in den.disk.scan()])
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # box 1 of each span is larger
    try:
        report = den.store.save(den.tokens, 0, den.truth.source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert report.stored is False and report.chunks == 1
    assert any("Free some space" in r.getMessage() for r in log)
    assert not list((den.root / "tmp").iterdir())
    assert den.load().tokens == 0 and den.load().faults == ()
    den.save()
    assert den.load().tokens == len(den.tokens)


@pytest.mark.parametrize("room", [0, 1, 255, 256, 700, 3000, 6000])
def test_the_disk_fills_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[logging.LogRecord], room: int
) -> None:
    """ENOSPC after `room` bytes, by way of short writes as a kernel does."""
    den = Den(tmp_path / "kv")
    den.disk.remove([e.key for e in den.disk.scan()])
    write, left = os.write, [room]

    def full(fd: int, data: memoryview) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n = write(fd, data[: min(left[0], 300)])
        left[0] -= n
        return n

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", full)
        report = den.store.save(den.tokens, 0, den.truth.source)
    assert report.stored is False
    assert any("No space left" in r.getMessage() for r in log)
    assert not list((den.root / "tmp").iterdir())
    assert den.load().faults == ()  # what is there is whole
    den.save()
    assert den.load().tokens == len(den.tokens)


def test_a_tier_that_says_full(den: Den, log: list[logging.LogRecord]) -> None:
    den.disk.remove([e.key for e in den.disk.scan()])
    store = den.open([FaultyTier(den.disk, at({("write", 3): Trouble.FULL}))])
    report = store.save(den.tokens, 0, den.truth.source)
    assert (report.stored, report.chunks, report.skipped) == (False, 3, 4)
    assert den.load().tokens == 8
    assert "no space left" in log[0].getMessage()


# --- at the same time ---


def test_writers_of_the_same_keys(den: Den) -> None:
    """Two savers and two loaders at once: every load is a right prefix or a miss, no fault."""
    stop = threading.Event()
    wrong: list[object] = []

    def save() -> None:
        tier = DiskTier(den.root, fsync=False)
        for _ in range(20):
            tier.remove([e.key for e in tier.scan()])
            den.open([tier]).save(den.tokens, 0, den.truth.source)

    def load() -> None:
        truth = Truth.of(GEOMETRY, len(den.tokens))
        store = den.open([DiskTier(den.root, fsync=False)])
        while not stop.is_set():
            try:
                wrong.extend(store.load(den.tokens, 29, truth.sink).faults)
            except BaseException as exc:
                wrong.append(exc)

    savers = [threading.Thread(target=save) for _ in range(2)]
    loaders = [threading.Thread(target=load) for _ in range(2)]
    for thread in savers + loaders:
        thread.start()
    for thread in savers:
        thread.join()
    stop.set()
    for thread in loaders:
        thread.join()
    assert not wrong
    den.save()
    assert den.load().tokens == len(den.tokens)


@pytest.mark.parametrize("seed", range(20))
def test_a_tier_that_does_everything_wrong(tmp_path: Path, seed: int) -> None:
    """A third of all calls go wrong, in every way, on a near and a far tier: whatever is served is
    right, and once the trouble is over everything can be stored and served again."""
    den = Den(tmp_path / "kv")
    inner = (MemoryTier(), den.disk)
    wild = [
        FaultyTier(tier, often(10 * seed + n, 0.33), sleep=lambda _: None)
        for n, tier in enumerate(inner)
    ]
    store = den.open(wild)
    for _ in range(10):
        store.save(den.tokens, min(store.match(den.tokens), 16), den.truth.source)
        den.load(store)
    assert len({trouble for tier in wild for _, _, trouble in tier.happened}) == len(Trouble)
    calm = den.open(inner)
    for _ in range(len(den.keys) + 1):
        calm.save(den.tokens, den.load(calm).tokens, den.truth.source)
    assert den.load(calm).tokens == len(den.tokens)
