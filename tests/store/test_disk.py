"""What the disk tier promises beyond the conformance suite."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from preread.errors import TierError
from preread.store.tiers import files
from preread.store.tiers.base import fresh
from preread.store.tiers.disk import DiskTier
from preread.store.tiers.quarantine import QUARANTINE_FILES
from preread.testing.conformance_tier import Clock, get, key, put


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def path_of(root: Path, n: int) -> Path:
    name = key(n).hex()
    return root / "chunks" / name[0] / name[1] / f"{name}.kv"


def test_opening_and_looking_write_nothing(root: Path) -> None:
    tier = DiskTier(root)
    assert tier.find([key(1)]) == [False] and get(tier, 1) is None
    assert tier.usage().chunks == tier.tidy(0) == tier.remove([key(1)], quarantine=True) == 0
    assert not root.exists()


def test_a_chunk_is_one_file_under_its_name_for_its_owner_alone(root: Path) -> None:
    put(DiskTier(root), 1, b"abc")
    assert [p for p in root.rglob("*") if p.is_file()] == [path_of(root, 1)]
    assert path_of(root, 1).read_bytes() == b"abc"
    for path in [root, *root.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0


def test_fsync_comes_before_and_after_the_rename(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(fd: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        fsync(fd)

    def spy_replace(a: Path, b: Path) -> None:
        calls.append("rename")
        replace(a, b)

    monkeypatch.setattr(files.os, "fsync", spy_fsync)
    monkeypatch.setattr(files.os, "replace", spy_replace)
    tier = DiskTier(root)
    put(tier, 1, b"a")
    assert calls[-3:] == ["file", "rename", "folder"]
    assert set(calls[:-3]) == {"folder"}  # each new folder's name in its parent
    calls.clear()
    put(DiskTier(root, fsync=False), 1, b"a")
    assert calls == ["rename"]


def test_foreign_files_are_ignored_and_left_alone(root: Path) -> None:
    tier = DiskTier(root)
    put(tier, 1, b"a")
    folder, name = path_of(root, 1).parent, path_of(root, 1).name
    strangers = [
        folder / "README",
        folder / name.upper(),
        folder / f"{name}.bak",
        folder / ("0" * 64 + ".kv") if name[0] != "0" else folder / ("1" * 64 + ".kv"),
        root / "chunks" / name,
        root / "notes.txt",
    ]
    for stranger in strangers:
        stranger.write_bytes(b"x")
    (folder / (name[:2] + "0" * 62 + ".kv")).mkdir()
    assert [entry.key for entry in tier.scan()] == [key(1)]
    assert tier.usage().nbytes == 1
    tier.remove([entry.key for entry in tier.scan()])
    tier.tidy(0)
    assert all(stranger.exists() for stranger in strangers)


def test_last_use_is_written_but_not_at_every_read(root: Path) -> None:
    clock = Clock()
    tier = DiskTier(root, clock=clock)
    put(tier, 1, b"a")
    written = clock()
    for seconds, expected in ((59, written), (2, written + 61), (-5000, written - 4939)):
        clock.tick(seconds)
        get(tier, 1)
        assert abs(next(tier.scan()).last_used - expected) < 1e-3


def test_quarantine_is_bounded_and_within_the_budget(root: Path) -> None:
    clock = Clock()
    tier = DiskTier(root, budget=3200, fsync=False, clock=clock)
    for n in range(QUARANTINE_FILES + 4):
        clock.tick(1)
        put(tier, n, b"x" * 100)
        assert tier.remove([key(n)], quarantine=True) == 1
    held = sorted(p.name for p in (root / "quarantine").iterdir())
    assert len(held) == QUARANTINE_FILES and held[-1].endswith(f"{key(n).hex()}.kv")
    assert (tier.usage().chunks, tier.usage().nbytes) == (0, 1600)
    for n in range(20):
        clock.tick(1)
        put(tier, 100 + n, b"x" * 100)
    assert not list((root / "quarantine").iterdir())  # chunks matter more
    assert tier.usage().chunks == 20


def test_a_folder_set_aside_is_never_emptied(root: Path) -> None:
    tier = DiskTier(root)
    (path_of(root, 1) / "diary").mkdir(parents=True)
    with pytest.raises(TierError, match="not a file"):
        get(tier, 1)
    assert tier.remove([key(1)], quarantine=True) == 1
    assert put(tier, 1, b"a") and get(tier, 1) == b"a"
    tier.tidy(-1e6)
    assert [p.name for p in (root / "quarantine").glob("*/*")] == ["diary"]


def test_tidy_drops_old_quarantine(root: Path) -> None:
    clock = Clock()
    tier = DiskTier(root, clock=clock)
    for n in range(2):
        put(tier, n, b"x")
        tier.remove([key(n)], quarantine=True)
        clock.tick(100)
    assert tier.tidy(150) == 1
    assert [p.name[-67:-3] for p in (root / "quarantine").iterdir()] == [key(1).hex()]


def test_temp_files_of_the_dead_go_at_opening_those_of_the_living_stay(root: Path) -> None:
    put(DiskTier(root), 1, b"a")
    dead, young, living = (root / "tmp" / name for name in ("dead", "young", "living"))
    for path in (dead, young, living):
        path.write_bytes(b"half")
    for path in (dead, living):
        os.utime(path, (1e9, 1e9))
    with living.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        DiskTier(root)
        assert sorted(p.name for p in (root / "tmp").iterdir()) == ["living", "young"]
    DiskTier(root)
    assert [p.name for p in (root / "tmp").iterdir()] == ["young"]


def test_without_locks_age_decides(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    clock = Clock()
    assert put(DiskTier(root, clock=clock), 1, b"a")
    temp = root / "tmp" / "x"
    temp.write_bytes(b"half")
    os.utime(temp, (clock(), clock()))
    clock.tick(3000)
    assert DiskTier(root, clock=clock) and temp.exists()
    clock.tick(1000)
    assert DiskTier(root, clock=clock) and not temp.exists()


def test_a_failed_write_leaves_nothing_and_says_what_to_do(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = DiskTier(root)
    put(tier, 1, b"old")
    for number, word in (
        (errno.ENOSPC, "preread gc"),
        (errno.EROFS, "PREREAD_HOME"),
        (errno.EIO, "computed again"),
    ):

        def fail(fd: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", fail)
            with pytest.raises(TierError, match=word):
                put(tier, 1, b"new")
        assert get(tier, 1) == b"old" and not list((root / "tmp").iterdir())
    assert put(tier, 1, b"new") and get(tier, 1) == b"new"


def test_a_bad_sector_is_that_chunks_fault(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preread.store.tiers.base import ChunkUnreadable

    tier = DiskTier(root)
    put(tier, 1, b"a")

    def fail(fd: int, buffers: object, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.os, "preadv", fail)
    with pytest.raises(ChunkUnreadable, match="Input/output"):
        get(tier, 1)


def test_a_file_that_shrinks_while_read_gives_what_there_is(root: Path) -> None:
    put(DiskTier(root), 1, b"abcdef")
    fd = os.open(path_of(root, 1), os.O_RDONLY)
    try:
        assert files.read_into(fd, fresh(100)) == b"abcdef"
    finally:
        os.close(fd)


def test_two_processes_keep_one_budget(root: Path) -> None:
    """Each may pass it by a sixteenth, for a moment."""
    clock = Clock()
    pair = [DiskTier(root, budget=16_000, fsync=False, clock=clock) for _ in range(2)]
    for n in range(240):
        clock.tick(1)
        put(pair[n % 7 > 2], n, b"x" * 100)
        assert pair[0].usage().nbytes <= 16_000 * 18 / 16
    assert pair[0].usage().nbytes > 16_000 * 14 / 16


def test_a_clock_that_was_ahead_pins_nothing(root: Path) -> None:
    clock = Clock()
    tier = DiskTier(root, budget=1000, fsync=False, clock=clock)
    clock.tick(1e8)
    for n in range(10):
        put(tier, n, b"x" * 90)
    clock.tick(-1e8)
    for n in range(10, 20):
        clock.tick()
        put(tier, n, b"x" * 90)
    assert tier.find([key(n) for n in range(12, 20)]) == [True] * 8
    clock.tick(1e8)
    put(tier, 20, b"x")
    clock.tick(-1e8)
    tier.tidy(0)
    assert all(entry.last_used <= clock() for entry in tier.scan())


@pytest.mark.parametrize(
    ("cores", "asked", "window"), [(1, 0, 1), (2, 0, 2), (16, 0, 4), (2, 3, 3), (16, 1, 1)]
)
def test_how_many_files_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, asked: int, window: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert DiskTier(tmp_path, window=asked)._folder._window == window


def test_many_names_are_looked_up_like_one(tmp_path: Path) -> None:
    """Against the slow twin `exists`: files, links, folders, nothing, in folders that may not be
    there."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "file").touch()
    (tmp_path / "a" / "link").symlink_to("nowhere")
    (tmp_path / "b" / "folder").mkdir()
    names = ["a/file", "b/file", "c/file", "a/link", "b/link", "b/folder", "c/d/e", "a/x", "a/y"]
    paths = [str(tmp_path / name) for name in names]
    assert files.held(paths) == [files.exists(path) for path in paths]
    assert files.held(paths) == [True, False, False, True, False, True, False, False, False]
    assert files.held([]) == []


def test_what_cannot_be_looked_up_is_an_error_and_not_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(NotADirectoryError):
        files.held([str(tmp_path / "b" / "1"), str(tmp_path / "a" / "1")])
    monkeypatch.setattr(os, "access", lambda *args, **options: False)  # not to be searched

    def denied(path: str) -> None:
        raise PermissionError(13, "denied", path)

    monkeypatch.setattr(os, "lstat", denied)
    with pytest.raises(PermissionError):
        files.held([str(tmp_path / "b" / "1")])
    with pytest.raises(TierError):
        DiskTier(tmp_path).find([key(0)])
