"""Things the tests of this folder share."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from preread.config import Config, ContextSection
from preread.contexts.build import BuildOutcome, BuildRequest, build_context
from preread.contexts.catalog.base import SourceRecord
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.contexts.opened import Opened
from preread.contexts.opening import OpenOptions, open_context
from preread.testing.backend import FakeBackend

NOW = 1_760_000_000.0


def source(path: str, text: str, line_map: tuple[int, ...] = ()) -> SourceRecord:
    return SourceRecord(path, f"/srv/{path}", sha256(text.encode()).hexdigest(), text, line_map)


def config(home: Path, **context: int) -> Config:
    return Config(home=home, context=ContextSection(**context))


def folder(place: Path, **files: str) -> Path:
    """A folder `docs` with files; `__` in a keyword is a dot."""
    docs = place / "docs"
    docs.mkdir(exist_ok=True)
    for name, text in files.items():
        (docs / name.replace("__", ".")).write_text(text)
    return docs


class Shop:
    """A folder, a home and a clock."""

    def __init__(self, place: Path) -> None:
        self.docs = folder(place, hours__md="opening time: 9", people__md="owner: Ann Lee")
        self.catalog = SqliteCatalog(place / "home" / "catalog.sqlite")
        self.config = config(place / "home")
        self.backend = FakeBackend()
        self.now = NOW
        self.built: list[BuildOutcome] = []

    async def build(self, *patterns: str, **request: Any) -> BuildOutcome:
        asked = BuildRequest("shop", patterns or (str(self.docs),), **request)
        return await build_context(
            self.backend, self.catalog, asked, self.config, now=lambda: self.now
        )

    async def open(self, target: str = "shop", **options: Any) -> Opened:
        asked = OpenOptions(now=lambda: self.now, on_build=self.built.append, **options)
        return await open_context(self.backend, self.catalog, target, self.config, asked)
