"""Shelves (see book.py): a folder, or a folder in an object store."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from preread.errors import TierError
from preread.store.tiers import files
from preread.store.tiers.ahead import ahead

if TYPE_CHECKING:
    from preread.store.tiers.bucket import Bucket

FOLDER = "book"
AT_ONCE = 16  # read together, from far away
_PAGE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class FolderShelf:
    """Readable by its owner alone. temp: where pages are made, swept by somebody else. Nothing here
    is worth an fsync."""

    root: Path
    temp: Path

    def names(self) -> list[str]:
        with self._border():
            pages = (e for e in files.listed(self.root) if _PAGE.fullmatch(e.name))
            return [page.name for page in pages if page.is_file(follow_symlinks=False)]

    def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
        pages = {}
        for name in names:
            with self._border(), contextlib.suppress(FileNotFoundError):
                pages[name] = (self.root / name).read_bytes()
        return pages

    def put(self, name: str, page: bytes) -> None:
        with self._border():
            files.make_folder(self.root, fsync=False)
            files.make_folder(self.temp, fsync=False)
            temp = self.temp / f"{name}.{uuid4().hex}"
            now = time.time()
            files.write_whole(temp, self.root / name, [memoryview(page)], mtime=now, fsync=False)

    def drop(self, names: Sequence[str]) -> None:
        with self._border():
            for name in names:
                files.unlink(str(self.root / name))

    @contextlib.contextmanager
    def _border(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise TierError(
                f"Cannot use {self.root}: {exc.strerror or exc}.",
                hint="Answers stay right; what goes first when room is short is known less well.",
            ) from exc


@dataclass(frozen=True, slots=True)
class BucketShelf:
    """A folder in an object store."""

    bucket: Bucket

    def names(self) -> list[str]:
        names = (entry.path.rpartition("/")[2] for entry in self.bucket.list(FOLDER))
        return [name for name in names if _PAGE.fullmatch(name)]

    def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
        found = ahead(self.bucket.get, [f"{FOLDER}/{name}" for name in names], AT_ONCE)
        pairs = zip(names, found, strict=True)
        return {name: bytes(one.data) for name, one in pairs if one}  # else it was just folded

    def put(self, name: str, page: bytes) -> None:
        self.bucket.put(f"{FOLDER}/{name}", [page])

    def drop(self, names: Sequence[str]) -> None:
        self.bucket.delete([f"{FOLDER}/{name}" for name in names])
