"""Files of a run: none is both read and written, none is written twice, and each can be written,
before anything is spent."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from preread.errors import RequestError

Key = tuple[int, int] | str


@dataclass(frozen=True, slots=True)
class Places:
    """read: all inputs, prompts and rubrics too; written: by the option that names each."""

    read: Iterable[str | Path]
    written: Mapping[str, Path]

    def check(self) -> None:
        """Raises RequestError naming the option."""
        read = {_key(path) for path in self.read}
        taken: dict[Key, str] = {}
        for option, path in self.written.items():
            if wrong := _wrong(path):
                raise RequestError(f"{path} cannot be written: {wrong}.", hint=_hint(option))
            key = _key(path)
            if key in read:
                raise RequestError(f"{path} is an input.", hint=_hint(option))
            if key in taken:
                raise RequestError(f"{path} is both {taken[key]} and {option}.", hint=_hint(option))
            taken[key] = option


def _wrong(path: Path) -> str:
    if path == Path("-"):
        return "standard output is for the bill"
    if path.exists() and not path.is_file():  # renaming a file over a device would replace it
        return "it is no file"
    if not path.parent.is_dir():
        return "there is no such folder"
    return "" if os.access(path.parent, os.W_OK | os.X_OK) else "its folder is read-only"


def _hint(option: str) -> str:
    return f"Give another {option}."


def _key(path: str | Path) -> Key:
    """The same for all names of one file."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino
