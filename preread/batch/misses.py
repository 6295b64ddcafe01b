"""Beginnings that are almost the same, and are read apart: what one might mend."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import NamedTuple

from preread.backend import Backend
from preread.batch.journal import Journal
from preread.batch.keys import alike, model_digest, prefix_of
from preread.types import Prefix

WHY = 3  # that are told
LOOKED_AT = 2048  # prefixes compared, those of most rows first
AROUND = 24  # characters shown on each side

# file and line are of the first request, as SQLite gives bare columns beside a min().
_PREFIXES = """
SELECT prefix_key, file, line, min(idx) FROM line JOIN requests USING (idx)
  WHERE line.model = ? GROUP BY prefix_key ORDER BY count(*) DESC, min(idx) LIMIT ?
"""


class Miss(NamedTuple):
    """Two beginnings that are alike up to a character, and then are read apart. at: that character
    of the one in row `line`; token: as the backend counts, the place of the first token that
    differs, give or take what its template adds; lost: characters behind it that are read again."""

    file: str
    line: int
    other_file: str
    other_line: int
    at: int
    token: int
    here: str
    there: str
    lost: int

    @property
    def size(self) -> int:
        """What mending it would save: what is alike, but no more than what follows."""
        return min(self.at, self.lost)


async def misses(journal: Journal, backend: Backend, model: str) -> list[Miss]:
    """The largest among the requests of a model, as they are planned."""
    rows = journal.read(_PREFIXES, model_digest(model), LOOKED_AT)
    names = json.loads(journal.get("files"))
    texts = sorted((_text(journal, key), names[file], line) for key, file, line, _ in rows)
    found: list[tuple[Miss, str]] = []
    for (one, file, line), (two, other_file, other_line) in pairwise(texts):
        at = alike(one, two)
        lost = len(two) - at
        if lost and at < len(one):  # else the one only goes on where the other ends
            here, there = _around(one, at), _around(two, at)
            miss = Miss(file, line, other_file, other_line, at, 0, here, there, lost)
            found.append((miss, one[:at]))
    found = sorted(found, key=lambda pair: -pair[0].size)[:WHY]
    counts = await backend.count([Prefix(common) for _, common in found])
    return [miss._replace(token=n) for (miss, _), n in zip(found, counts, strict=True)]


def _text(journal: Journal, key: bytes) -> str:
    prefix = prefix_of(journal.body("prefixes", key))
    return "\n".join([prefix.system, *(turn.content for turn in prefix.history)])


def _around(text: str, at: int) -> str:
    return text[max(at - AROUND, 0) : at + AROUND]
