"""API keys by organisation. They come from the environment or a file, never from a command line,
and are shown nowhere: not in a repr, a log line or an error."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from preread.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Organisation:
    """Keys that share one set of limits. name: "" where nobody said which organisation it is."""

    name: str
    keys: tuple[str, ...] = field(repr=False)


def find_keys(
    variables: tuple[str, ...], file: str = "", env: Mapping[str, str] | None = None
) -> list[Organisation]:
    """Of a provider whose keys are called so (`OPENAI_API_KEY` holds one, as it is;
    `OPENAI_API_KEYS` several, with commas between). In a list or a file an entry is `key` or
    `organisation:key`; keys without one are taken for one organisation, because that never exceeds
    a limit. A file has one entry a line. [] if there are none. Raises ConfigError."""
    env = os.environ if env is None else env
    entries: list[str] = []
    if file:
        entries = _lines(Path(file).expanduser())
    else:
        for name in variables:
            several, one = env.get(f"{name}S", ""), env.get(name, "")
            if entries := [e for e in re.split(r"[,\s]+", several) if e]:
                break
            if one.strip():
                return [Organisation("", (_sendable(one.strip(), name),))]
    found: dict[str, list[str]] = {}
    for entry in entries:
        name, colon, key = entry.strip().rpartition(":")
        known = found.setdefault(name if colon else "", [])
        if key and key not in known:
            known.append(_sendable(key.strip(), file or f"{variables[0]}S"))
    return [Organisation(name, tuple(keys)) for name, keys in found.items() if keys]


def _sendable(key: str, where: str) -> str:
    if key.isprintable() and " " not in key:
        return key
    raise ConfigError(f"{where}: a key with spaces or line ends in it.", hint="Copy it again.")


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        shared = path.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{path}: keys cannot be read ({type(exc).__name__}).", hint="Mend providers.keys_file."
        ) from None
    if shared and os.name == "posix":
        raise ConfigError(f"{path}: others can read these keys.", hint=f"chmod 600 {path}")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
