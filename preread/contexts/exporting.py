"""`preread export`: a context as one file that another machine can take in."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from preread.contexts.catalog.base import Catalog
from preread.contexts.catalog.codec import decompress, pack
from preread.contexts.exported import FORMAT, MANIFEST, Member, carried
from preread.contexts.manage import known
from preread.errors import SourceError, StateError, TierError
from preread.store.chunk import SEALED, ChunkFault, opening
from preread.store.seal import check
from preread.store.tiers import files
from preread.store.tiers.base import ChunkKey, Tier

PARTIAL = ".partial"  # how a file ends that is not whole yet


@dataclass(frozen=True, slots=True)
class Exported:
    """missing: chunks that no tier had whole, to be computed again where the file is taken in;
    sealed: of the chunks; errors: of tiers that could not be asked."""

    path: str
    version: int
    nbytes: int
    chunks: int
    missing: int
    sealed: int
    errors: tuple[str, ...]


def export_context(
    catalog: Catalog, tiers: Sequence[Tier], name: str, path: Path, *, writer: str
) -> Exported:
    """Write the newest version of a context to `path`, whole or not at all. Chunks are checked as
    they are read. Raises UnknownName, StateError for an invalidated one, SourceError when the file
    cannot be written."""
    record = known(catalog, name)
    if path.exists() and not (path.is_file() or path.is_dir()):  # it would be replaced by the file
        raise SourceError(f"{path}: cannot be written: no regular file.", hint="Name another FILE.")
    if record.invalidated:
        raise StateError(
            f"Context {name!r} was invalidated ({record.invalidated}): nobody should use it.",
            hint=f'Ask it, which builds it again: preread ask {name} "…"',
        )
    body, texts = pack(carried(record))
    manifest = {"format": FORMAT, "writer": writer, "record": json.loads(decompress(body))}
    keys = record.chunk_keys
    wanted = [ChunkKey(bytes.fromhex(key)) for key in dict.fromkeys(keys)]
    chunks = sealed = 0
    errors: list[str] = []
    try:
        _tidy(path)
        descriptor, temp = tempfile.mkstemp(PARTIAL, f".{path.name}.", path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                with contextlib.suppress(OSError):  # no locks on this file system: age decides
                    fcntl.flock(file, fcntl.LOCK_EX)  # its writer lives
                member = Member(file)
                member.add(MANIFEST, json.dumps(manifest).encode("utf-8", "surrogatepass"))
                for digest, text in sorted(texts.items()):
                    member.add(f"texts/{digest}.txt", text.encode("utf-8", "surrogatepass"))
                for key, value in _values(tiers, wanted, errors):
                    member.add(f"chunks/{key.hex()}.kv", value)
                    chunks += 1
                    sealed += opening(value)[0] == SEALED
                member.close()
                file.flush()
                os.fsync(file.fileno())
                nbytes = file.tell()
            os.replace(temp, path)
        except BaseException:
            os.unlink(temp)
            raise
    except OSError as exc:
        raise SourceError(
            f"{path}: cannot be written: {exc.strerror or exc}.", hint="Name another FILE."
        ) from exc
    return Exported(
        str(path), record.version, nbytes, chunks, len(wanted) - chunks, sealed, tuple(errors)
    )


def _tidy(path: Path) -> None:
    """Remove what exports to this file have left that were killed."""
    for temp in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):
        if temp.is_file() and files.abandoned(str(temp), time.time()):
            files.unlink(str(temp))


def _values(
    tiers: Sequence[Tier], wanted: list[ChunkKey], errors: list[str]
) -> Iterator[tuple[ChunkKey, memoryview]]:
    """Each wanted value once, from the nearest tier that has it whole; others are left out."""
    rest = dict.fromkeys(wanted)
    for tier in tiers:
        try:
            asked = list(rest)
            held = [k for k, has in zip(asked, tier.find(asked), strict=True) if has]
            for key, value in zip(held, tier.read(held), strict=True):
                if isinstance(value, memoryview) and _sound(value, key):
                    del rest[key]
                    yield key, value
        except TierError as exc:
            errors.append(str(exc))


def _sound(value: memoryview, key: ChunkKey) -> bool:
    """What is not is left to `preread verify` to set aside."""
    try:
        check(value, key)
    except ChunkFault:
        return False
    return True
