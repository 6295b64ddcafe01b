"""One context in one file (docs/format.md): a tar of what the catalog knows, its texts and chunks,
and a list of digests that ends it.

    preread.json           the record without its texts
    texts/<sha256>.txt     each text once, UTF-8
    chunks/<key>.kv        whole values as they lie in a tier, sealed ones still sealed
    SHA256SUMS             of all members before it, for `sha256sum -c`; a file without it is cut
"""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import replace
from hashlib import sha256
from typing import IO, Any

from pydantic import BaseModel, ConfigDict

from preread.contexts.catalog.base import ContextRecord
from preread.errors import SourceError

FORMAT = 1
MANIFEST, SUMS = "preread.json", "SHA256SUMS"
TEXT = re.compile(r"texts/([0-9a-f]{64})\.txt")
CHUNK = re.compile(r"chunks/([0-9a-f]{64})\.kv")
MOST_JSON = 1 << 28  # bytes of the record or of the sums


class Manifest(BaseModel):
    """preread.json. record: as contexts/catalog/codec.py packs it, texts as digests."""

    model_config = ConfigDict(strict=True)  # later minor releases may add keys

    format: int
    writer: str
    record: dict[str, Any]


def carried(record: ContextRecord) -> ContextRecord:
    """What of a record leaves the machine: neither paths of its files nor what became of it here.
    So the copy does not go stale by files that are not there; it expires as the original does."""
    sources = tuple(replace(source, origin="") for source in record.sources)
    return replace(record, sources=sources, patterns=(), invalidated="", epochs=0)


class Member:
    """Writes members and remembers their digests. The tar has neither times nor owners."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
        self._sums: list[str] = []

    def add(self, name: str, data: bytes | memoryview) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        self._sums.append(f"{sha256(data).hexdigest()}  {name}\n")

    def close(self) -> None:
        """Write the sums and the end of the tar."""
        self.add(SUMS, "".join(self._sums).encode())
        self._tar.close()


def damaged(path: object, why: str) -> SourceError:
    return SourceError(
        f"{path}: not a whole export of preread: {why}.", hint="Export it again: preread export"
    )
