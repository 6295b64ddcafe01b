"""`preread import`: take in what `preread export` wrote, verified to the last byte.

Chunks go to the tiers as they come, each checked against its own name, which harms nobody when the
rest proves damaged: nothing refers to them and `preread gc` removes them. The record is published
last, by compare-and-swap, when the whole file has been read and every digest was right.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter, ValidationError

from preread.config import StoreSection
from preread.contexts.catalog.base import Catalog, ContextRecord
from preread.contexts.catalog.codec import compress, unpack
from preread.contexts.exported import (
    CHUNK,
    FORMAT,
    MANIFEST,
    MOST_JSON,
    SUMS,
    TEXT,
    Manifest,
    carried,
    damaged,
)
from preread.contexts.names import check_name
from preread.contexts.state import epochs_of
from preread.errors import SourceError, TierError, UsageError
from preread.store.chunk import SEALED, ChunkFault, opening
from preread.store.keys import CODECS
from preread.store.seal import check
from preread.store.tiers.base import MAX_VALUE_BYTES, ChunkKey, Tier

MOST = 1 << 53  # tokens or bytes: no context has more, and no catalog could count them
_NOT_A_RECORD = (
    ValidationError, ValueError, TypeError, KeyError, AttributeError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Imported:
    """unchanged: the newest version said the same and was kept; chunks: written to at least one
    tier; sealed: of those in the file; missing: those that are to be computed; errors: of tiers."""

    record: ContextRecord
    unchanged: bool
    chunks: int
    sealed: int
    missing: int
    errors: tuple[str, ...]


def import_context(
    catalog: Catalog,
    tiers: Sequence[Tier],
    path: Path,
    *,
    name: str = "",
    force: bool = False,
    chunks: bool = True,
    kept: StoreSection | None = None,
) -> Imported:
    """name: another one than it had. force: publish over a context of that name that says
    something else. chunks: False takes the texts alone and has the KV computed here. kept: whose
    epochs count here. Raises SourceError when the file cannot be read, is damaged or of a newer
    format, UsageError when the name is taken, CatalogConflict when somebody else publishes it
    meanwhile."""
    reader = _Reader(path, tiers if chunks else ())
    try:
        with path.open("rb") as file:
            record = reader.read(file)
    except OSError as exc:
        raise SourceError(f"{path}: {exc.strerror or exc}.", hint="Name another FILE.") from exc
    name = name or record.name
    check_name(name)
    newest = catalog.get(name)
    expected = newest.version if newest else 0
    record = replace(record, name=name, version=expected + 1)
    unchanged = newest is not None and _same(newest, record)
    if newest and not unchanged and not force:
        raise UsageError(
            f"There is a context {name!r} already, and it says something else.",
            hint=f"preread import {path} --name OTHER; or --force, for version {expected + 1}.",
        )
    if not unchanged:
        epochs = epochs_of(catalog, kept, record.fingerprint) if kept else 0
        catalog.put(replace(record, epochs=epochs), expected=expected)
    keys = set(record.chunk_keys)
    return Imported(
        record=newest if newest and unchanged else record,
        unchanged=unchanged,
        chunks=len(reader.stored),
        sealed=reader.sealed,
        missing=len(keys - reader.stored),
        errors=tuple(reader.errors),
    )


def _same(newest: ContextRecord, record: ContextRecord) -> bool:
    """Valid, and equal but for what an export leaves behind."""
    own = {"name": record.name, "version": record.version}
    return not newest.invalidated and replace(carried(newest), **own) == record  # type: ignore[arg-type]


@dataclass(slots=True)
class _Reader:
    path: Path
    tiers: Sequence[Tier]
    stored: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    sealed: int = 0
    _sums: list[str] = field(default_factory=list)
    _texts: dict[str, str] = field(default_factory=dict)
    _manifest: Manifest | None = None
    _ended: bool = False
    _left: Sequence[Tier] = ()  # tiers that have not failed

    def __post_init__(self) -> None:
        self._left = self.tiers

    def read(self, file: IO[bytes]) -> ContextRecord:
        """All members in order. Raises SourceError."""
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    self._member(tar, info)
        except (tarfile.TarError, EOFError, UnicodeDecodeError) as exc:
            raise damaged(self.path, str(exc) or type(exc).__name__) from exc
        if self._manifest is None or not self._ended:
            raise damaged(self.path, f"it ends before {SUMS if self._manifest else MANIFEST}")
        return self._record(self._manifest)

    def _member(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        name = info.name
        limit = MAX_VALUE_BYTES if CHUNK.fullmatch(name) else MOST_JSON
        if not info.isreg() or info.size > limit or self._ended:
            raise damaged(self.path, f"{name!r} does not belong there")
        stream = tar.extractfile(info)
        data = stream.read() if stream else b""
        if len(data) != info.size:
            raise damaged(self.path, f"{name} is cut short")
        if name == SUMS:
            if data != "".join(self._sums).encode():
                raise damaged(self.path, "digests are not right")
            self._ended = True
            return
        self._sums.append(f"{sha256(data).hexdigest()}  {name}\n")
        if name == MANIFEST and self._manifest is None:
            self._manifest = self._checked(data)
        elif self._manifest and (text := TEXT.fullmatch(name)):
            if sha256(data).hexdigest() != text[1]:
                raise damaged(self.path, f"{name} is another text")
            self._texts[text[1]] = data.decode("utf-8", "surrogatepass")
        elif self._manifest and (chunk := CHUNK.fullmatch(name)):
            self._chunk(chunk[1], data)
        else:
            raise damaged(self.path, f"{name!r} does not belong there")

    def _checked(self, data: bytes) -> Manifest:
        try:
            manifest = Manifest.model_validate(json.loads(data.decode("utf-8", "surrogatepass")))
        except (ValidationError, ValueError, RecursionError) as exc:
            raise damaged(self.path, f"{MANIFEST} is not understood") from exc
        if manifest.format != FORMAT:
            raise SourceError(
                f"{self.path}: export format {manifest.format} by {manifest.writer}; this preread "
                f"reads format {FORMAT}.",
                hint="Import it with the preread that wrote it, or a newer one.",
            )
        return manifest

    def _chunk(self, key: str, data: bytes) -> None:
        """To every tier, or out: a chunk that is not what its name says is damage."""
        name, value = ChunkKey(bytes.fromhex(key)), memoryview(data)
        try:
            check(value, name)
        except ChunkFault as fault:
            raise damaged(self.path, f"chunk {key[:16]}…: {fault.reason.value}") from fault
        self.sealed += opening(value)[0] == SEALED
        for tier in self._left:
            try:
                if tier.write(name, [value]):
                    self.stored.add(key)
            except TierError as exc:  # it gets no more of this file: each try may cost a deadline
                self._left = [other for other in self._left if other is not tier]
                self.errors.append(str(exc))

    def _record(self, manifest: Manifest) -> ContextRecord:
        try:
            record = unpack(compress(json.dumps(manifest.record)), self._texts.__getitem__)
            record = TypeAdapter(ContextRecord).validate_python(asdict(record))
        except _NOT_A_RECORD as exc:
            raise damaged(self.path, "its record is not understood") from exc
        parts = [part for shard in record.shards for part in shard.parts]
        inside = all(
            0 <= p.source < len(record.sources)
            and 0 <= p.start <= p.end <= len(record.sources[p.source].text)
            for p in parts
        )
        inside &= all(0 <= i < len(record.sources) for s in record.shards for i in s.sources)
        counts = [n for shard in record.shards for n in (shard.tokens, shard.kv_bytes)]
        inside &= all(0 <= n <= MOST for n in counts) and record.codec in CODECS
        keys = record.chunk_keys
        if not inside or not all(CHUNK.fullmatch(f"chunks/{key}.kv") for key in keys):
            raise damaged(self.path, "its record contradicts itself")
        return carried(record)
