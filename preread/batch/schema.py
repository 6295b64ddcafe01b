"""The tables of a journal, and their rows.

requests: as read, by input index. twins: requests that are equal to an earlier one. line: the
others, in the order in which they run. results: by the input index of the one that ran. finished:
those indices as they ended, kept where the output is written in that order. lost: tokens of failed
results that were forgotten to run again, a row each time.
"""

from __future__ import annotations

from typing import NamedTuple

from preread.batch.keys import BEGINNING

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
# Beginnings that several texts have, and the first of those: as far as a place without its last
# `cut` bytes tells.
CUTS = (BEGINNING - 4, BEGINNING - 8)
BEGINS = """
CREATE TEMP TABLE begins (cut INTEGER, key BLOB, first INTEGER, PRIMARY KEY (cut, key))
  WITHOUT ROWID
"""
BEGIN_ALIKE = """
INSERT INTO begins SELECT {0}, substr(place, 1, length(place) - {0}) AS key, min(idx) FROM requests
  WHERE idx NOT IN (SELECT idx FROM twins) AND substr(place, -{0} - 4, 4) != zeroblob(4)
  GROUP BY key HAVING count(*) > 1
"""
# Texts that begin alike stand where the first of them does: in the order of checksums, a file of
# millions would be read and written all over, a page of the journal for every row.
LINE = f"""
INSERT INTO line (idx, model) SELECT idx, substr(place, 1, 8) FROM requests
  LEFT JOIN begins one
    ON one.cut = {CUTS[0]} AND one.key = substr(place, 1, length(place) - {CUTS[0]})
  LEFT JOIN begins two
    ON two.cut = {CUTS[1]} AND two.key = substr(place, 1, length(place) - {CUTS[1]})
  WHERE idx NOT IN (SELECT idx FROM twins)
  ORDER BY substr(place, 1, length(place) - {BEGINNING}), coalesce(one.first, idx),
    coalesce(two.first, iif(substr(place, -{CUTS[1]} - 4, 4) = zeroblob(4), one.first, idx), idx),
    place, idx
"""
# Twins and the order in which the others run.
IN_ORDER = (
    TWINS, BEGINS, *map(BEGIN_ALIKE.format, CUTS), LINE, "DROP TABLE begins",
    "CREATE INDEX IF NOT EXISTS twin_of ON twins (first)",
)  # fmt: skip
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
