"""JSON as its standard has it (RFC 8259). Python's reader also takes NaN, Infinity and numbers too
large for 64 bits, and would write them again as lines that no other reader takes. Of two fields of
one name it drops the first without a word."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, NoReturn


class NotFinite(ValueError):
    """A number that JSON has not: where it stands, and as it is written."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{text} is no finite number; JSON has none of them, write null")
        self.field = field


class Twice(ValueError):
    """A field that an object has twice."""

    def __init__(self, field: str) -> None:
        super().__init__("is there twice; which is meant?")
        self.field = field


class _Found(ValueError):
    """The number as it is written."""


def _refuse(text: str) -> NoReturn:
    raise _Found(text)


def _float(text: str) -> float:
    value = float(text)
    return value if isfinite(value) else _refuse(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise Twice(next(name for i, name in enumerate(names) if name in names[:i]))
    return made


_STRICT = json.JSONDecoder(parse_constant=_refuse, parse_float=_float, object_pairs_hook=_object)


def parse(text: str) -> Any:
    """The value of a text. Raises NotFinite, Twice, ValueError for what is no JSON,
    RecursionError."""
    try:
        return _STRICT.decode(text)
    except _Found as exc:
        raise NotFinite(not_finite(json.loads(text)), str(exc)) from None


def not_finite(value: Any) -> str:
    """Where the first number that JSON has not stands in a value: `a.b[2]`; "" if there is none
    within an object or a list."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        at, found = waiting.pop()
        if isinstance(found, float) and not isfinite(found):
            return at
        if isinstance(found, dict):
            inside = [(f"{at}.{key}" if at else str(key), part) for key, part in found.items()]
            waiting += reversed(inside)
        elif isinstance(found, list | tuple):
            waiting += reversed([(f"{at}[{i}]", part) for i, part in enumerate(found)])
    return ""
