"""File-system primitives of the disk tier: a whole file or none, and what is gone is no error."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path

TEMP_AGE_S = 60.0  # a younger temp file is never taken for a dead writer's
NO_LOCKS_AGE_S = 3600.0  # ditto on file systems without locks
_EFFECTIVE = os.access in os.supports_effective_ids  # as who we act, not who started us
_VIEWS = 1024  # IOV_MAX
_AT_ONCE = getattr(os, "RWF_NOWAIT", 0)  # Linux 4.14


def exists(path: str) -> bool:
    """Anything at all of that name, also a folder or a broken link."""
    return _access(path) or _seen(path)  # which takes twice as long, and says why not


def held(paths: Sequence[str]) -> list[bool]:
    """`exists` of each. Why some are not there is asked once for each folder: that it can be
    searched says it of all its names, else it is not there itself, or that is an error."""
    found = [_access(path) for path in paths]
    pairs = zip(paths, found, strict=True)
    absent = {path.rpartition("/")[0]: path for path, there in pairs if not there}
    for folder, path in absent.items():
        if not os.access(folder, os.X_OK, effective_ids=_EFFECTIVE):
            _seen(path)
    return found


def _seen(path: str) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _access(path: str) -> bool:
    return os.access(path, os.F_OK, effective_ids=_EFFECTIVE, follow_symlinks=False)


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds; nothing if it is not there."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def unlink(path: str) -> bool:
    """Remove a file; False if it was not there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def discard(path: str) -> bool:
    """Remove a file or an empty folder; a folder with something in it is somebody's: left alone."""
    with contextlib.suppress(OSError):
        os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
        return True
    return False


def make_folder(path: Path, *, fsync: bool) -> None:
    """`mkdir -p`, readable by the owner alone; with fsync the new names survive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent, fsync=fsync)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if fsync:
        fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_into(fd: int, buffer: memoryview) -> memoryview:
    """The file's start, as much as the buffer (flat bytes) holds or as there is: a view of it."""
    done = 0
    while done < len(buffer) and (n := os.preadv(fd, [buffer[done:]], done)):
        done += n
    return buffer[:done]


def part(path: str, where: slice) -> bytes:
    """Some bytes of a file; fewer where it is shorter, none where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.pread(fd, where.stop - where.start, where.start)
    except OSError:
        return b""
    finally:
        os.close(fd)


def read_at_once(fd: int, views: Sequence[memoryview], offset: int = 0) -> int:
    """What of the file is in the page cache from there on, into these views one after the other:
    how many bytes. Waits for no medium; 0 where the file system cannot say."""
    done = 0
    for at in range(0, len(views) if _AT_ONCE else 0, _VIEWS):
        some = views[at : at + _VIEWS]
        try:
            got = os.preadv(fd, some, offset + done, _AT_ONCE)
        except OSError:  # EAGAIN: nothing is there; EOPNOTSUPP; what else it is, a plain read says
            return done
        done += got
        if len(views) > _VIEWS and got < sum(map(len, some)):
            return done
    return done


def write_whole(
    temp: Path,
    path: Path,
    parts: Sequence[memoryview],
    *,
    mtime: float,
    fsync: bool,
    wanted: Callable[[], bool] = lambda: True,
) -> bool:
    """Write the parts (flat bytes) to `temp` and rename it to `path`: complete or not there, at any
    instant and, with fsync, after a power cut. The lock on `temp` says that its writer lives.
    wanted: asked when all is written and nothing shows; False: nothing ever does."""
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with contextlib.suppress(OSError):  # no locks on this file system: age decides
            fcntl.flock(fd, fcntl.LOCK_EX)
        for part in parts:
            while part.nbytes:
                part = part[os.write(fd, part) :]
        os.utime(fd, (mtime, mtime))
        if fsync:
            os.fsync(fd)
        if not wanted():
            unlink(str(temp))
            return False
        os.replace(temp, path)
    except BaseException:
        unlink(str(temp))
        raise
    finally:
        os.close(fd)
    if fsync:
        fsync_folder(path.parent)
    return True


def abandoned(path: str, now: float) -> bool:
    """A temp file whose writer is dead: old enough, and the kernel has freed its lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        age = now - os.fstat(fd).st_mtime
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return age > TEMP_AGE_S
    except BlockingIOError:
        return False
    except OSError:
        return age > NO_LOCKS_AGE_S
    finally:
        os.close(fd)
