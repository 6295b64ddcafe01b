"""The tables of a journal, and their rows.

requests: as read, by input index. twins: requests that are equal to an earlier one. line: the
others, in the order in which they run. results: by the input index of the one that ran. finished:
those indices as they ended, kept where the output is written in that order. lost: tokens of failed
results that were forgotten to run again, a row each time.
"""

from __future__ import annotations

from typing import NamedTuple

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE models (key BLOB PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE orders (key BLOB PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE prefixes (key BLOB PRIMARY KEY, size INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE requests (idx INTEGER PRIMARY KEY, id TEXT, file INTEGER, line INTEGER, digest BLOB,
  place BLOB, order_key BLOB, prefix_key BLOB, chars INTEGER, text TEXT, carry TEXT);
CREATE TABLE twins (idx INTEGER PRIMARY KEY, first INTEGER NOT NULL);
CREATE TABLE line (no INTEGER PRIMARY KEY, idx INTEGER NOT NULL, model BLOB NOT NULL);
CREATE TABLE results (idx INTEGER PRIMARY KEY, finish TEXT NOT NULL, text TEXT NOT NULL,
  context INTEGER, cached INTEGER, computed INTEGER, output INTEGER, written INTEGER,
  probs BLOB, mass REAL, error TEXT NOT NULL, response TEXT NOT NULL);
CREATE TABLE lost (model BLOB, cached INTEGER, computed INTEGER, output INTEGER, written INTEGER);
CREATE TABLE finished (seq INTEGER PRIMARY KEY AUTOINCREMENT, idx INTEGER NOT NULL);
"""
# The first of equal requests runs. A digest's rows are sought in the order of the input.
TWINS = """
INSERT INTO twins SELECT idx, first FROM
  (SELECT idx, min(idx) OVER (PARTITION BY digest) AS first FROM requests) WHERE idx != first
"""
LINE = """
INSERT INTO line (idx, model) SELECT idx, substr(place, 1, 8) FROM requests
  WHERE idx NOT IN (SELECT idx FROM twins) ORDER BY place, idx
"""
NEXT = """
SELECT line.no, requests.idx, order_key, prefix_key, chars, requests.text FROM line
  JOIN requests USING (idx) LEFT JOIN results USING (idx)
  WHERE line.no > ? AND line.model = ? AND results.idx IS NULL ORDER BY line.no LIMIT ?
"""
LOST = """
INSERT INTO lost SELECT line.model, sum(cached), sum(computed), sum(output), sum(written)
  FROM results JOIN line USING (idx) WHERE finish = 'error' GROUP BY line.model
"""
SPENT = """
SELECT coalesce(sum(computed), 0), coalesce(sum(cached), 0), coalesce(sum(output), 0),
  coalesce(sum(written), 0) FROM (
    SELECT model, cached, computed, output, written FROM results JOIN line USING (idx)
    UNION ALL SELECT model, cached, computed, output, written FROM lost)
  WHERE ?1 IS NULL OR model = ?1
"""
_COLUMNS = """
SELECT requests.idx, id, file, line, order_key, carry, finish, results.text, context, cached,
  computed, output, written, probs, mass, error, response
  FROM requests LEFT JOIN twins USING (idx)
  LEFT JOIN results ON results.idx = coalesce(twins.first, requests.idx)
"""
MERGED = _COLUMNS + "WHERE requests.idx >= ? AND requests.idx < ? ORDER BY requests.idx"
MERGED_OF = _COLUMNS + (
    "WHERE requests.idx = ? OR requests.idx IN (SELECT idx FROM twins WHERE first = ?) "
    "ORDER BY requests.idx"
)


class Waiting(NamedTuple):
    """A request that is to run."""

    no: int
    idx: int
    order: bytes
    prefix: bytes
    chars: int
    text: str


class Merged(NamedTuple):
    """A request and what came of it; finish None: nothing yet. Counts in tokens."""

    idx: int
    id: str
    file: int
    line: int
    order: bytes
    carry: str
    finish: str | None
    text: str
    context: int
    cached: int
    computed: int
    output: int
    written: int
    probs: bytes | None
    mass: float | None
    error: str
    response: str | None = None


class Result(NamedTuple):
    """A row of `results`. finish: stop, length or error; response: "" or, where it was served from
    the response cache, how, as JSON."""

    idx: int
    finish: str
    text: str
    context: int
    cached: int
    computed: int
    output: int
    written: int
    probs: bytes | None
    mass: float | None
    error: str
    response: str = ""
