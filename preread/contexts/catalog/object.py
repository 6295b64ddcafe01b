"""The catalog in an object store, by conditional puts: for machines that share only a bucket.

    PREFIX/catalog/names/NAME               what there is of a name: its kept versions, see Head
    PREFIX/catalog/records/NAME/<unique>    one version whole, texts included; never changed
    PREFIX/catalog/sessions/NAME/BORN/SESSION    its turns
    PREFIX/catalog/used/NAME                last use
    PREFIX/catalog/epochs/SCOPE             a number

A name is one small object, put only if nobody has put it since it was read; so every change of a
name is atomic, and nothing has to be listed to read one. Records are written before the name says
so, and removed after. Who dies in between leaves an object that nobody refers to.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar
from urllib.parse import quote, unquote
from uuid import uuid4

from preread.contexts.catalog.base import ContextRecord, ContextSummary, Hints, Standing
from preread.contexts.catalog.codec import (
    pack_whole,
    summary_of,
    unpack_whole,
)
from preread.contexts.catalog.conflicts import (
    legible,
    published_first,
    removed_meanwhile,
    session_has_grown,
)
from preread.contexts.catalog.head import Head, read_head, standing_of, write_head
from preread.contexts.catalog.hints import NoHints
from preread.errors import CatalogConflict, HomeError, TierError
from preread.store.tiers.ahead import ahead
from preread.store.tiers.bucket import Bucket, Changed

DEADLINE_S = 5.0
TRIES = 64  # of a change that others keep coming before
AT_ONCE = 16  # small requests in flight
TOUCH_S = 60.0  # last use is written at most this often
T = TypeVar("T")


class ObjectCatalog:
    """See catalog/base.py. Opening it asks nobody; every request keeps the bucket's deadline."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def get(self, name: str, version: int | None = None) -> ContextRecord | None:
        with self._border():
            missing = ""
            while True:
                head, _ = self._head(name)
                found = head.versions.get(version or head.newest)
                if found is None:
                    return None
                if (record := self._record(*found)) is not None:
                    return record
                if found[1] == missing:  # else it went after the head was read
                    raise KeyError(missing)
                missing = found[1]

    def put(self, record: ContextRecord, *, expected: int) -> None:
        if record.version != expected + 1:
            raise ValueError(f"version {record.version} does not follow {expected}")
        name = record.name
        path = f"records/{_quoted(name)}/{record.version:08d}-{uuid4().hex}"
        with self._border():
            self._check_newest(self._head(name)[0], name, expected)
            self._bucket.put(path, [pack_whole(record)])

            def publish(head: Head) -> tuple[Head | None, None]:
                if path in (one[1] for one in head.versions.values()):
                    return None, None  # it had been put, and others have changed the name since
                self._check_newest(head, name, expected)
                versions = head.versions | {record.version: (summary_of(record), path)}
                return Head(head.born or uuid4().hex, versions), None

            try:
                self._change(name, publish)
            except CatalogConflict:  # after any other error the name may say so all the same
                self._bucket.delete([path])
                raise

    def invalidate(self, name: str, reason: str) -> bool:
        def mark(head: Head) -> tuple[Head | None, bool]:
            if not head.newest:
                return None, False
            summary, path = head.versions[head.newest]
            marked = replace(summary, invalidated=reason or "no reason given")
            return replace(head, versions=head.versions | {head.newest: (marked, path)}), True

        with self._border():
            reason.encode()  # as JSON it would pass, and no terminal could show it
            return self._change(name, mark)

    def standing(self, held: Sequence[tuple[str, int]]) -> list[Standing]:
        with self._border():
            names = list(dict.fromkeys(name for name, _ in held))
            heads = dict(zip(names, ahead(lambda n: self._head(n)[0], names, AT_ONCE), strict=True))
            return [standing_of(heads[name], version) for name, version in held]

    def remove(self, name: str, *, below: int | None = None) -> int:
        def drop(head: Head) -> tuple[Head | None, tuple[Head, list[str]]]:
            kept = {v: one for v, one in head.versions.items() if below is not None and v >= below}
            gone = [path for v, (_, path) in head.versions.items() if v not in kept]
            left = replace(head, versions=kept) if kept else Head("")
            return (left if gone else None), (head, gone)

        with self._border():
            head, gone = self._change(name, drop)
            self._bucket.delete(gone)
            if head.newest and (below is None or below > head.newest):
                sessions = self._bucket.list(f"sessions/{_quoted(name)}/{head.born}")
                self._bucket.delete([f"used/{_quoted(name)}", *(s.path for s in sessions)])
            return len(gone)

    def summaries(self) -> list[ContextSummary]:
        with self._border():
            shown = []
            for name, head in self._heads():
                if head.newest:
                    summary, _ = head.versions[head.newest]
                    used = max(self._used(name), summary.created_at)
                    shown.append(replace(summary, last_used=used))
            return sorted(shown, key=lambda summary: summary.name)

    def touch(self, name: str, when: float) -> None:
        with self._border():
            if when > self._used(name) + TOUCH_S and self._head(name)[0].newest:
                self._bucket.put(f"used/{_quoted(name)}", [repr(when).encode()])

    def live_chunks(self, now: float = 0.0) -> frozenset[str]:
        with self._border():
            alive = [
                one
                for _, head in self._heads()
                for one in head.versions.values()
                if not one[0].invalidated and (one[0].expires_at is None or one[0].expires_at > now)
            ]
            records = ahead(lambda one: self._record(*one), alive, AT_ONCE)
            # A record that went meanwhile was of a version that is not kept.
            return frozenset(key for record in records if record for key in record.chunk_keys)

    def sessions(self, name: str) -> Sequence[str]:
        with self._border():
            head, _ = self._head(name)
            folder = f"sessions/{_quoted(name)}/{head.born}"
            listed = self._bucket.list(folder) if head.newest else ()
            return sorted(unquote(entry.path.rpartition("/")[2]) for entry in listed)

    def session(self, context: str, session: str) -> tuple[tuple[str, str], ...]:
        with self._border():
            head, _ = self._head(context)
            return tuple(self._turns(context, head, session)[0]) if head.newest else ()

    def append_turn(self, context: str, session: str, turn: tuple[str, str], *, at: int) -> None:
        with self._border():
            head, _ = self._head(context)
            if not head.newest:  # else a later context of that name would inherit it
                raise removed_meanwhile(context)
            turns, tag = self._turns(context, head, session)
            if len(turns) != at:
                raise session_has_grown(context, session, len(turns), at)
            body = {"writer": uuid4().hex, "turns": [*turns, turn]}
            path = _session(context, head, session)
            try:
                self._bucket.swap(path, json.dumps(body, ensure_ascii=False).encode(), tag)
            except Changed:
                raise session_has_grown(context, session, at + 1, at) from None

    def epochs(self, scopes: Sequence[str]) -> list[int]:
        with self._border():
            return list(ahead(lambda scope: self._epoch(scope)[0], scopes, AT_ONCE))

    def bump(self, scope: str) -> int:
        with self._border():
            for _ in range(TRIES):
                epoch, tag = self._epoch(scope)
                body = {"epoch": epoch + 1, "writer": uuid4().hex}
                with contextlib.suppress(Changed):
                    path = f"epochs/{_quoted(scope)}"
                    self._bucket.swap(path, json.dumps(body).encode(), tag)
                    return epoch + 1
            raise self._busy(scope)

    def listen(self) -> Hints:
        return NoHints()  # a bucket tells nobody anything

    # -- objects --

    def _head(self, name: str) -> tuple[Head, str | None]:
        """What there is of a name, and its tag; of one that there is not, an empty head."""
        found = self._bucket.get(f"names/{_quoted(name)}")
        return (read_head(bytes(found.data)), found.tag) if found else (Head(""), None)

    def _heads(self) -> Iterator[tuple[str, Head]]:
        """All names. A removed one stays as an empty head: what was once put conditionally must
        not be put as if it were new."""
        names = [unquote(entry.path.rpartition("/")[2]) for entry in self._bucket.list("names")]
        heads = ahead(lambda name: self._head(name)[0], names, AT_ONCE)
        return zip(names, heads, strict=True)

    def _change(self, name: str, how: Callable[[Head], tuple[Head | None, T]]) -> T:
        """Put what `how` makes of the head (None: leave it), again when others came before."""
        for _ in range(TRIES):
            head, tag = self._head(name)
            changed, result = how(head)
            if changed is None:
                return result
            with contextlib.suppress(Changed):
                self._bucket.swap(f"names/{_quoted(name)}", write_head(changed), tag)
                return result
        raise self._busy(name)

    def _record(self, summary: ContextSummary, path: str) -> ContextRecord | None:
        found = self._bucket.get(path)
        if found is None:
            return None
        return replace(unpack_whole(bytes(found.data)), invalidated=summary.invalidated)

    def _turns(
        self, context: str, head: Head, session: str
    ) -> tuple[list[tuple[str, str]], str | None]:
        found = self._bucket.get(_session(context, head, session))
        if found is None:
            return [], None
        turns = json.loads(bytes(found.data))["turns"]
        return [(question, answer) for question, answer in turns], found.tag

    def _used(self, name: str) -> float:
        found = self._bucket.get(f"used/{_quoted(name)}")
        return float(bytes(found.data)) if found else 0.0

    def _epoch(self, scope: str) -> tuple[int, str | None]:
        found = self._bucket.get(f"epochs/{_quoted(scope)}")
        return (int(json.loads(bytes(found.data))["epoch"]), found.tag) if found else (0, None)

    def _check_newest(self, head: Head, name: str, expected: int) -> None:
        if head.newest != expected:
            raise published_first(name, head.newest, expected)

    def _busy(self, name: str) -> HomeError:
        error = HomeError(
            f"Catalog {self._bucket.place}: {name!r} changed {TRIES} times in a row meanwhile.",
            hint="Ask again in a moment.",
        )
        error.retryable = True
        return error

    @contextmanager
    def _border(self) -> Iterator[None]:
        place = self._bucket.place
        try:
            with legible(place, f"Remove what is damaged below {place}/catalog and build again."):
                yield
        except TierError as exc:
            hint = "See docs/store.md, Catalogs; or leave store.catalog empty."
            if exc.hint and "computed again" not in exc.hint:
                hint = exc.hint
            error = HomeError(f"Catalog: {exc.message}", hint=hint)
            error.retryable = exc.retryable
            raise error from None


def _quoted(name: str) -> str:
    """A name as one part of a path. Raises UnicodeEncodeError."""
    return quote(name, safe="")


def _session(context: str, head: Head, session: str) -> str:
    return f"sessions/{_quoted(context)}/{head.born}/{_quoted(session)}"
