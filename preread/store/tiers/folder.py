"""Chunks in a folder, one file each, shared by any number of processes.

    ROOT/chunks/3/f/3f…<64 hex digits>.kv     two levels of sixteen folders
    ROOT/tmp/…                                values being written, locked by their writers
    ROOT/quarantine/…                         set aside for diagnosis, see quarantine.py
    ROOT/book/…                               what uses have saved and what was evicted, see book.py

The file system is the index: a look-up is one `access`, so what other processes write or remove is
seen at once and nothing can go stale. The only state is an estimate of the bytes held, see
eviction.Budget. Last use is the file's mtime.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from preread.errors import TierError
from preread.store.tiers import files
from preread.store.tiers.base import (
    MAX_VALUE_BYTES,
    OWNER,
    ChunkEntry,
    ChunkKey,
    ChunkUnreadable,
    Gone,
    Outcome,
    Room,
    TierUsage,
    fresh,
    owner_of,
    stated,
)
from preread.store.tiers.book import AHEAD_S, Book
from preread.store.tiers.crew import together
from preread.store.tiers.eviction import Budget, Held, Standing
from preread.store.tiers.landing import landing
from preread.store.tiers.quarantine import Quarantine
from preread.store.tiers.shelves import FolderShelf

WINDOW = 4  # files read at once, where there are as many cores
TOUCH_S = 60.0  # last use is written at most this often
_NAME = re.compile(r"[0-9a-f]{64}\.kv")
# What says that one entry is bad, not that the tier is.
_ENTRY_ERRNOS = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EIO}
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS}


class FolderTier:
    """One folder; every call takes as long as the file system does (disk.py waits less). budget:
    bytes of chunks and quarantine, 0 for none; several processes may pass it by a sixteenth each
    for a moment. share: bytes of one owner that others' writes leave alone. fsync: a value survives
    a power cut once `write` has returned; without it only the death of the process. window: files
    read at once, 0: as suits the cores. Files are readable by their owner alone."""

    def __init__(
        self,
        root: Path,
        *,
        budget: int = 0,
        share: int = 0,
        fsync: bool = True,
        name: str = "disk",
        window: int = 0,
        touch_s: float = TOUCH_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._root = root
        self._chunks = str(root / "chunks")
        self._temp = root / "tmp"
        self._quarantine = Quarantine(root / "quarantine", clock)
        self._book = Book(clock, FolderShelf(root / "book", root / "tmp"), touch_s)
        self._budget = Budget(budget, share, self, self._book, clock, place=str(root))
        self._fsync = fsync
        self._window = window or min(WINDOW, os.cpu_count() or 1)
        self._touch_s = touch_s
        self._clock = clock
        self._lock = threading.Lock()  # one writer per process
        self._serial = 0

    @property
    def budget(self) -> int:
        return self._budget.limit

    def find(self, keys: Sequence[ChunkKey], *, touch: bool = False) -> list[bool]:
        """Anything of a chunk's name counts: what is no chunk is found out, and dealt with, when it
        is read."""
        with self._border("look into"):
            paths = [self._path(key) for key in keys]
            found = files.held(paths)
        if touch:
            now = self._clock()
            for path in (path for path, held in zip(paths, found, strict=True) if held):
                with contextlib.suppress(OSError):  # gone, or read-only: the order of use is lost
                    os.utime(path, (now, now), follow_symlinks=False)
        return found

    def read(self, keys: Sequence[ChunkKey], room: Room = fresh) -> Iterator[Outcome]:
        with self._border("read"):
            yield from together(partial(self._read, room), keys, self._window)

    def write(
        self,
        key: ChunkKey,
        value: Sequence[bytes | memoryview],
        wanted: Callable[[], bool] = lambda: True,
    ) -> bool:
        """wanted: whether the value is still what it was. If not nothing changes: False."""
        parts = [memoryview(part).cast("B") for part in value]
        nbytes = sum(part.nbytes for part in parts)
        path = Path(self._path(key))
        with self._lock, self._border("write to"):
            if not self._budget.make_room(key, owner_of(parts), nbytes):
                return False
            files.make_folder(self._temp, fsync=self._fsync)
            files.make_folder(path.parent, fsync=self._fsync)
            self._serial += 1
            temp = self._temp / f"{os.getpid()}.{id(self):x}.{self._serial}"
            now, fsync = self._clock(), self._fsync
            return files.write_whole(temp, path, parts, mtime=now, fsync=fsync, wanted=wanted)

    def remove(self, keys: Sequence[ChunkKey], *, quarantine: bool = False) -> int:
        act = self._quarantine.take if quarantine else files.unlink
        with self._lock, self._border("remove from"):
            gone = [key for key in keys if act(self._path(key))]
        self._book.left(gone, Gone.SET_ASIDE if quarantine else Gone.REMOVED)
        self._budget.freed()
        self._fold()
        return len(gone)

    def scan(self) -> Iterator[ChunkEntry]:
        for first in "0123456789abcdef":
            for second in "0123456789abcdef":
                with self._border("scan"):
                    entries = list(self._scan_folder(first, second))
                yield from entries

    def usage(self) -> TierUsage:
        sizes = [entry.nbytes for entry in self.scan()]
        with self._border("scan"):
            return TierUsage(len(sizes), sum(sizes) + self.aside_bytes(), self.budget)

    def tidy(self, older_than_s: float) -> int:
        """See base.Tidy: temp files of dead writers, and quarantine older than this. A use in the
        future is set right, so that its chunk can become idle."""
        with self._lock, self._border("tidy"):
            list(self._set_right(self.scan()))
            return self.sweep_temp() + self._quarantine.drop(self._clock() - older_than_s)

    def used(self, saved: Mapping[ChunkKey, float]) -> None:
        """See base.Weighs. Known to other processes at once: what is written next would else be
        worth nothing to them."""
        self._book.used(saved)
        self._book.flush()
        self._fold()

    def left(
        self, keys: Sequence[ChunkKey], *, since: float = 0.0, look: bool = False
    ) -> dict[ChunkKey, Gone]:
        """See base.Recalls."""
        notes = self._book.look() if look or self._book.stale() else self._book.recall(keys)
        return {k: note.why for k in keys if (note := notes.get(k)) and note.why}

    # -- names and errors --

    def _path(self, key: ChunkKey) -> str:
        name = key.hex()
        return f"{self._chunks}/{name[0]}/{name[1]}/{name}.kv"

    @contextlib.contextmanager
    def _border(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise self._error(what, exc) from exc

    def _error(self, what: str, exc: OSError) -> TierError:
        hint = "Answers stay right; what is stored there is computed again."
        if exc.errno in _FULL_ERRNOS:
            hint = "Free some space, or lower store.disk_budget_mb and run `preread gc`."
        elif exc.errno in _DENIED_ERRNOS:
            hint = "Make it writable, or point PREREAD_HOME to a folder that is."
        return TierError(f"Cannot {what} {self._root}: {exc.strerror or exc}.", hint=hint)

    def _read(self, room: Room, key: ChunkKey) -> Outcome:
        path = self._path(key)
        try:
            return self._read_file(key, path, room)
        except FileNotFoundError:
            return None
        except OSError as exc:
            # One bad entry, if it can still be seen; else the tier itself is in trouble.
            with self._border("read"):
                if exc.errno in _ENTRY_ERRNOS and files.exists(path):
                    return ChunkUnreadable(f"{path}: {exc.strerror}.")
                raise

    def _read_file(self, key: ChunkKey, path: str, room: Room) -> Outcome:
        # O_NOFOLLOW, O_NONBLOCK: neither a link nor a FIFO in a chunk's place leads astray.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                return ChunkUnreadable(f"{path}: not a file.")
            if info.st_size > MAX_VALUE_BYTES:
                return ChunkUnreadable(f"{path}: {info.st_size} bytes are too many.")
            berth = landing(room, key, info.st_size)
            value: Outcome = berth.scatter(partial(files.read_at_once, fd))
            if value is None:
                value = berth.take(files.read_into(fd, berth.memory()))
            if abs((now := self._clock()) - info.st_mtime) > self._touch_s:
                with contextlib.suppress(OSError):  # read-only: the order of use is lost
                    os.utime(fd, (now, now))
        finally:
            os.close(fd)
        return value

    # -- what its budget asks; all but the scan under the lock --

    def look(self) -> Held:
        entries = list(self._set_right(self.scan()))
        return Held(entries, self.aside_bytes())

    def owners(self, keys: Sequence[ChunkKey]) -> Mapping[ChunkKey, bytes]:
        return {key: stated(files.part(self._path(key), OWNER)) for key in keys}

    def evict(self, chunks: Sequence[Standing]) -> None:
        for one in chunks:
            files.unlink(self._path(one.key))

    def drop_aside(self) -> None:
        self._quarantine.drop()

    # -- looking after the folder --

    def _fold(self) -> None:
        if self._book.long():
            self._book.fold({entry.key for entry in self.scan()})

    def _set_right(self, entries: Iterable[ChunkEntry]) -> Iterator[ChunkEntry]:
        """What was used by a clock that was ahead would be the last to go for as long: it was used
        now."""
        now = self._clock()
        for entry in entries:
            if entry.last_used > now + AHEAD_S:
                with contextlib.suppress(OSError):  # gone, or read-only: the order of use is lost
                    os.utime(self._path(entry.key), (now, now), follow_symlinks=False)
                entry = replace(entry, last_used=now)
            yield entry

    def _scan_folder(self, first: str, second: str) -> Iterator[ChunkEntry]:
        for entry in files.listed(Path(self._chunks, first, second)):
            if not (entry.name.startswith(first + second) and _NAME.fullmatch(entry.name)):
                continue  # not ours
            with contextlib.suppress(FileNotFoundError):  # somebody removed it just now
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(info.st_mode):
                    key = ChunkKey(bytes.fromhex(entry.name[:64]))
                    yield ChunkEntry(key, info.st_size, info.st_mtime)

    def aside_bytes(self) -> int:
        return self._quarantine.nbytes()

    def sweep_temp(self) -> int:
        """A living writer holds the lock of its temp file; the kernel frees a dead one's."""
        with self._border("tidy"):
            now, entries = self._clock(), files.listed(self._temp)
            return sum(files.abandoned(e.path, now) and files.unlink(e.path) for e in entries)
