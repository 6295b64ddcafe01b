"""Documents in: files, folders, globs and standard input become SourceRecords, or one SourceError
that names file and line. Nothing is guessed and nothing is left out in silence.

Paths shown in citations are relative to the parent of the folder they came from
(`handbook/leave.md`), for `handbook`, `handbook/leave.md` and `'handbook/*.md'` alike; they follow
from the absolute patterns alone, so that a rebuild lays out the same message.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from preread.config import ContextSection
from preread.contexts.catalog.base import SourceRecord
from preread.contexts.readers import read_cues, read_html, read_subrip
from preread.errors import SourceError

SUFFIXES = (".txt", ".md", ".rst", ".html", ".vtt", ".srt", ".json", ".csv")
BACKUPS = ("~", ".swp", ".swo", ".bak", ".orig", ".tmp")
READERS = {".html": read_html, ".vtt": read_cues, ".srt": read_subrip}
UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
STDIN = "-"
SHOWN = 5
READINGS = 3  # of documents that change while they are read


@dataclass(frozen=True, slots=True)
class Sources:
    """What was read. patterns: as given, made absolute; notes: what was skipped, for people."""

    records: tuple[SourceRecord, ...]
    patterns: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    root: Path  # citations show the path relative to this


def read_sources(
    patterns: Sequence[str], limits: ContextSection, stdin: bytes | None = None
) -> Sources:
    """Read every PATH. Folders are walked recursively in sorted order; a file reached twice is read
    once. What changes meanwhile is read again; if it goes on changing, a note says so. stdin: the
    bytes that "-" stands for; None: the process's own. Raises SourceError naming file and line."""
    if not patterns or not all(patterns):  # "" would be the folder one happens to be in
        what = "An empty PATH was given." if patterns else "No documents were given."
        raise SourceError(what, hint="preread build NAME PATH…")
    given = tuple(absolute(p) for p in patterns)
    if STDIN in given and stdin is None:
        stdin = sys.stdin.buffer.read()
    for left in reversed(range(READINGS)):
        notes: list[str] = []
        files = _find(given, notes)
        before = [_stamp(file.path) for file in files]
        try:
            records = [_record("stdin", "", stdin or b"", limits)] if STDIN in given else []
            records += (
                _record(name, str(file.path), _read(file.path, limits), limits)
                for file, name in zip(files, _display_names(files), strict=True)
            )
        except SourceError:
            if left and [_stamp(file.path) for file in files] != before:
                continue
            raise
        changed = [f.path for f, was in zip(files, before, strict=True) if _stamp(f.path) != was]
        if not changed:
            break
    if changed:
        notes.append(f"changed while being read: {_names(changed, None)}")
    return Sources(tuple(records), given, tuple(notes))


def _find(given: Sequence[str], notes: list[str]) -> list[_Found]:
    found: dict[Path, _Found] = {}
    for file in (f for p in dict.fromkeys(given) if p != STDIN for f in _expand(p, notes)):
        found.setdefault(_resolved(file.path), file)
    return list(found.values())


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does; () once it has gone."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def absolute(pattern: str) -> str:
    """A PATH argument that means the same from everywhere."""
    return pattern if pattern == STDIN else os.path.abspath(os.path.expanduser(pattern))


def in_order_of(sources: Sources, previous: Sequence[SourceRecord]) -> Sources:
    """The same documents in the order of an earlier version, new ones after them, so that a rebuild
    recomputes from the first changed token only."""
    place = {source.path: i for i, source in enumerate(previous)}
    ordered = sorted(sources.records, key=lambda r: place.get(r.path, len(place)))
    return replace(sources, records=tuple(ordered))


def _expand(pattern: str, notes: list[str]) -> list[_Found]:
    path = Path(pattern)
    try:
        if path.is_dir():
            return _folder(path, notes)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    if os.path.lexists(path):
        _supported([path])
        return [_Found(path, path.parent.parent)]
    if not glob.has_magic(pattern):
        raise SourceError(f"{pattern}: no such file or folder.", hint="Check the path.")
    paths = [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
    files = [p for p in paths if not p.is_dir()]
    if not files:
        raise SourceError(
            f"{pattern}: no file matches.", hint="Quote the pattern; '**' crosses folders."
        )
    _supported(files)
    root = Path(*_fixed(path)).parent
    return [_Found(p, root) for p in files]


def _fixed(pattern: Path) -> list[str]:
    """The leading components of a glob that hold no wildcard."""
    fixed = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return fixed


def _folder(folder: Path, notes: list[str]) -> list[_Found]:
    skipped: list[Path] = []
    files = [p for p in _walk(folder, skipped, (_identity(folder),)) if not _skip(p, skipped)]
    if skipped:
        notes.append(f"skipped: {_names(skipped, folder)} (hidden, backup or link to itself)")
    if not files:
        raise SourceError(
            f"{folder}: no documents in this folder.", hint=f"Supported: {' '.join(SUFFIXES)}"
        )
    _supported(files, folder)
    return [_Found(p, folder.parent) for p in files]


def _walk(folder: Path, skipped: list[Path], above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Files below a folder, sorted. above: the folders on the way here, so that a link to one of
    them is seen as the loop it is."""
    try:
        for entry in sorted(folder.iterdir(), key=lambda p: p.name):
            if not entry.is_dir():
                yield entry
            elif entry.name.startswith(".") or (identity := _identity(entry)) in above:
                skipped.append(entry)
            else:
                yield from _walk(entry, skipped, (*above, identity))
    except OSError as exc:
        raise _unreadable(Path(exc.filename or folder), exc) from exc


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _skip(path: Path, skipped: list[Path]) -> bool:
    name = path.name
    skip = name.startswith(".") or name.endswith(BACKUPS) or (name[0] == name[-1] == "#")
    if skip:
        skipped.append(path)
    return skip


def _supported(files: Sequence[Path], folder: Path | None = None) -> None:
    wrong = [p for p in files if p.suffix.lower() not in SUFFIXES]
    if not wrong:
        return
    hint = f"Supported: {' '.join(SUFFIXES)}"
    if folder:
        kept = sorted({p.suffix.lower() for p in files} & set(SUFFIXES)) or [".md"]
        hint += ". Name what to read: " + " ".join(f"'{folder}/**/*{s}'" for s in kept)
    raise SourceError(f"Cannot read {_names(wrong, folder)}: not a supported format.", hint=hint)


def _names(paths: Sequence[Path], folder: Path | None) -> str:
    shown = [str(p.relative_to(folder) if folder else p) for p in paths[:SHOWN]]
    rest = len(paths) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _resolved(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as exc:  # RuntimeError: a link to itself, before Python 3.13
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: Exception) -> SourceError:
    reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else "symbolic link loop"
    return SourceError(f"{path}: cannot be read: {reason}.", hint="Mend or remove it.")


def _display_names(files: Sequence[_Found]) -> list[str]:
    """Unique and short: names that clash show more of their absolute path."""
    names = [f.path.relative_to(f.root).as_posix() for f in files]
    depth = 2
    while clashes := {name for name, times in Counter(names).items() if times > 1}:
        depth += 1
        names = [
            "/".join(f.path.parts[-depth:]).lstrip("/") if n in clashes else n
            for n, f in zip(names, files, strict=True)
        ]
    return names


def _read(path: Path, limits: ContextSection) -> bytes:
    try:
        if not path.is_file():
            raise SourceError(f"{path}: not a regular file.", hint="Pipe it: … | preread … -")
        size = path.stat().st_size
        if size > limits.max_file_mb << 20:
            raise _too_large(str(path), size, limits)
        return path.read_bytes()
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _too_large(name: str, size: int, limits: ContextSection) -> SourceError:
    return SourceError(
        f"{name}: {size / 2**20:.1f} MiB, more than context.max_file_mb = {limits.max_file_mb}.",
        hint="Split the file, or raise the limit in config.toml.",
    )


def _record(path: str, origin: str, data: bytes, limits: ContextSection) -> SourceRecord:
    name = origin or path
    if UNSPEAKABLE.search(path):
        raise SourceError(
            f"{path!a}: the name is not UTF-8 or holds a line break or control character; "
            "headers and citations could not show it.",
            hint="Rename the file.",
        )
    if len(data) > limits.max_file_mb << 20:
        raise _too_large(name, len(data), limits)
    text = decode(data, name)
    _check_lines(text, name, limits)
    reader = READERS.get(Path(origin).suffix.lower())
    line_map: tuple[int, ...] = ()
    if reader:
        lines = reader(text)
        text, line_map = "\n".join(line for line, _ in lines), tuple(at for _, at in lines)
    text = text.rstrip()
    line_map = line_map[: text.count("\n") + 1]
    if not text.strip():
        what = "no text in it" if data.strip() else "empty"
        raise SourceError(f"{name}: {what}.", hint="Remove it or leave it out.")
    return SourceRecord(path, origin, sha256(data).hexdigest(), text, line_map)


def decode(data: bytes, name: str) -> str:
    """UTF-8 to text with LF line ends; a byte-order mark is dropped. Raises SourceError naming
    line and byte."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        start = exc.start + (3 if data[:3] == b"\xef\xbb\xbf" else 0)
        raise SourceError(
            f"{name}, line {data.count(10, 0, start) + 1}: not UTF-8 (byte 0x{data[start]:02x} at "
            f"offset {start}).",
            hint=f"Convert it: iconv -f {'UTF-16' if utf16 else 'LATIN1'} -t UTF-8 IN > OUT",
        ) from exc
    if (nul := text.find("\0")) >= 0:
        line = text.count("\n", 0, nul) + 1
        raise SourceError(f"{name}, line {line}: a binary file (NUL).", hint="Leave it out.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _check_lines(text: str, name: str, limits: ContextSection) -> None:
    longest = limits.max_line_kb << 10
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > longest // 4 and len(line.encode()) > longest:
            raise SourceError(
                f"{name}, line {number}: {len(line.encode()) >> 10:,} KiB in one line, more than "
                f"context.max_line_kb = {limits.max_line_kb}.",
                hint="Break the line, or raise the limit in config.toml.",
            )
