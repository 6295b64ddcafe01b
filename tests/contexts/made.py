"""Things the tests of this folder share."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from preread.config import Config, ContextSection
from preread.contexts.catalog.base import SourceRecord

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
