"""What a backend cannot answer, found before anything is run: requests that it does not take, and
those that are longer than the model can read. A token is at least a byte, so only prompts that
might be too long by their bytes are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from preread.backend import Backend, RequestBatch
from preread.batch.journal import Journal
from preread.batch.keys import model_digest, prefix_of
from preread.batch.order import Order
from preread.batch.table import Faults
from preread.errors import RequestError

ROOM = 256  # tokens that a template may add
WIDEST = 4  # bytes of a character
AT_ONCE = 256
_PREFIXES = """
SELECT prefix_key, max(chars), size FROM requests JOIN prefixes ON prefixes.key = prefix_key
  WHERE substr(place, 1, 8) = ? GROUP BY prefix_key HAVING size + 4 * max(chars) > ?
"""
_ROWS = """
WITH suspects AS (SELECT value ->> 0 AS name, value ->> 1 AS room FROM json_each(?))
SELECT file, line, prefix_key, requests.text FROM requests
  JOIN suspects ON suspects.name = hex(prefix_key)
  JOIN orders ON orders.key = order_key
  WHERE substr(place, 1, 8) = ? AND 4 * chars > room AND NOT orders.body ->> '$.raw'
  ORDER BY idx
"""


_ORDERS = """
SELECT order_key, count(*), file, line, min(idx) FROM line JOIN requests USING (idx)
  WHERE line.model = ? GROUP BY order_key ORDER BY min(idx) LIMIT ?
"""
ORDERS = 256  # ways to ask that are tried; of a file with more, the rest fails row by row


async def check_asked(journal: Journal, backend: Backend, model: str) -> None:
    """Try a batch without a row of every way in which the rows are asked: it is refused as one with
    rows would be. Raises RequestError naming the first row of each, and what the backend has
    against it."""
    files, faults, hints = json.loads(journal.get("files")), Faults(), list[str]()
    for key, n, file, line, _ in journal.read(_ORDERS, model_digest(model), ORDERS):
        order = Order.from_json(journal.body("orders", key))
        try:
            async for _ in backend.submit(RequestBatch(order.work, [], raw=order.raw)):
                pass
        except RequestError as exc:
            more = f" ({n:,} rows ask for it)" if n > 1 else ""
            faults.add(files[file], line, "request", exc.message.rstrip(".") + more)
            hints.append(exc.hint)
    _refuse(faults, *hints[:1])


async def check_fit(journal: Journal, backend: Backend, model: str) -> None:
    """Raises RequestError naming file, line and tokens of the rows that do not fit. Where the
    backend cannot count exactly, or a prompt is raw, it is left to the backend, which fails the row
    alone."""
    info, faults = backend.info, Faults()
    if not info.exact_counts:
        return
    files, room = json.loads(journal.get("files")), info.limit - ROOM
    key = model_digest(model)
    for some in _chunks(journal.read(_PREFIXES, key, room)):
        heads = [prefix_of(journal.body("prefixes", name)) for name, _, _ in some]
        counts = await backend.count(heads)
        known = dict(zip((name for name, _, _ in some), heads, strict=True))
        left = {name: room - n for (name, _, _), n in zip(some, counts, strict=True)}
        suspects = json.dumps([[name.hex().upper(), n] for name, n in left.items()])
        rows = journal.read(_ROWS, suspects, key)
        for rest in _chunks([row for row in rows if len(row[3].encode()) > left[row[2]]]):
            texts = [text for *_, text in rest]
            lengths = await backend.count([known[name] for _, _, name, _ in rest], texts)
            for (file, line, _, _), tokens in zip(rest, lengths, strict=True):
                if tokens >= info.limit:
                    what = f"{tokens:,} tokens, {info.model} reads less than {info.limit:,}"
                    faults.add(files[file], line, "prompt", what)
    _refuse(faults, "Shorten or remove these rows.")


def _refuse(faults: Faults, hint: str = "") -> None:
    try:
        faults.check()
    except RequestError as exc:
        raise RequestError(exc.message, hint=hint) from None


def _chunks(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    yield from (rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE))
