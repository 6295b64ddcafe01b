"""Names of contexts and sessions, and lengths of time as people write them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from hashlib import sha256

from preread.errors import UnknownName, UsageError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
JOIN = "+"  # between the names of contexts that are asked as one; in no name of its own
LONGEST_TTL_S = 5200 * 604_800.0  # a century; dates must stay representable
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def check_name(name: str, what: str = "context") -> str:
    """The name itself. Raises UsageError with a name that would do."""
    if NAME.fullmatch(name):
        return name
    raise UsageError(
        f"{name!r} cannot name a {what}: use 1 to 64 letters (a-z), digits, '-', '_' and '.', "
        "beginning with a letter or digit.",
        hint=f"Try: {_slug(name)}",
    )


def joined_names(target: str) -> tuple[str, ...]:
    """The names in "handbook+prices"; none if it joins no names."""
    names = tuple(target.split(JOIN))
    return names if len(names) > 1 and all(NAME.fullmatch(name) for name in names) else ()


def derived_name(target: str) -> str:
    """The name of the context behind a bare PATH: readable, and its own for every place."""
    path = os.path.abspath(os.path.expanduser(target))
    return f"{_slug(os.path.basename(path))}-{sha256(os.fsencode(path)).hexdigest()[:16]}"


def stdin_name(data: bytes) -> str:
    """The name of the context behind "-": its content is all there is to name it by."""
    return f"stdin-{sha256(data).hexdigest()[:16]}"


def parse_ttl(text: str) -> float:
    """Seconds of "30s", "90m", "12h", "7d" or "2w", at most a century. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", text)
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= LONGEST_TTL_S:
        raise UsageError(
            f"{text!r} is not a length of time.",
            hint="Write 30s, 90m, 12h, 7d or 2w; at most 5200w.",
        )
    return seconds


def unknown_name(name: str, names: Sequence[str]) -> UnknownName:
    """The error for a name nobody gave, with the names that come close."""
    near = difflib.get_close_matches(name, names, n=3)
    close = f"; close: {', '.join(near)}" if near else ""
    return UnknownName(
        f"No context is named {name!r}{close}.",
        hint="See: preread list" if names else "Make one: preread build NAME PATH…",
    )


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text)[:47].strip("-._") or "context"
