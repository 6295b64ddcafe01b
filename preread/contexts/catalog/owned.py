"""A catalog as one tenant sees it: names of its own, in a medium that it shares with others.

The default tenant's names stand as they are; anybody else's behind 16 hex digits of who it is and
an "@", which no name contains. What concerns everybody passes through: epochs, which name their
scope (but only the default tenant, who owns the home, raises those of others), and the chunks that
gc must leave, of whomever they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from preread.config import StoreSection
from preread.contexts.catalog.base import (
    Catalog,
    ContextRecord,
    ContextSummary,
    Hints,
    Standing,
)
from preread.contexts.catalog.conflicts import removed_meanwhile
from preread.contexts.catalog.scopes import model_owner
from preread.errors import CatalogConflict, HomeError, UsageError
from preread.store.keys import tenant_digest

MARK = "@"
DIGITS = 16


def owner_prefix(kept: StoreSection) -> str:
    """What the names of this configuration's tenant, or shared namespace, begin with."""
    if not kept.shared and kept.tenant == StoreSection().tenant:
        return ""
    owner = tenant_digest(kept.shared or kept.tenant, shared=bool(kept.shared))
    return owner.hex()[:DIGITS] + MARK


class OwnedCatalog:
    """See catalog/base.py. prefix: see owner_prefix. What was never named so is not there. scope:
    whose KV may be erased here; "" for anybody's."""

    def __init__(self, everybodys: Catalog, prefix: str, scope: str = "") -> None:
        self._all = everybodys
        self._prefix = prefix
        self._scope = scope

    def get(self, name: str, version: int | None = None) -> ContextRecord | None:
        with self._said(name):
            record = self._all.get(self._inner(name), version) if self._sayable(name) else None
        return None if record is None else replace(record, name=name)

    def put(self, record: ContextRecord, *, expected: int) -> None:
        if not self._sayable(record.name):
            raise UsageError(f"{record.name!r} cannot name a context.", hint=f"Without {MARK!r}.")
        with self._said(record.name):
            self._all.put(replace(record, name=self._inner(record.name)), expected=expected)

    def invalidate(self, name: str, reason: str) -> bool:
        with self._said(name):
            return self._sayable(name) and self._all.invalidate(self._inner(name), reason)

    def standing(self, held: Sequence[tuple[str, int]]) -> list[Standing]:
        """Versions that `get` gave."""
        return self._all.standing([(self._inner(name), version) for name, version in held])

    def remove(self, name: str, *, below: int | None = None) -> int:
        with self._said(name):
            return self._all.remove(self._inner(name), below=below) if self._sayable(name) else 0

    def summaries(self) -> list[ContextSummary]:
        skip = len(self._prefix)
        return [
            replace(summary, name=summary.name[skip:])
            for summary in self._all.summaries()
            if summary.name.startswith(self._prefix) and self._sayable(summary.name[skip:])
        ]

    def touch(self, name: str, when: float) -> None:
        if self._sayable(name):
            self._all.touch(self._inner(name), when)

    def live_chunks(self, now: float = 0.0) -> frozenset[str]:
        return self._all.live_chunks(now)

    def sessions(self, name: str) -> Sequence[str]:
        return self._all.sessions(self._inner(name)) if self._sayable(name) else ()

    def session(self, context: str, session: str) -> tuple[tuple[str, str], ...]:
        with self._said(context):
            known = self._sayable(context)
            return self._all.session(self._inner(context), session) if known else ()

    def append_turn(self, context: str, session: str, turn: tuple[str, str], *, at: int) -> None:
        if not self._sayable(context):
            raise removed_meanwhile(context)
        with self._said(context):
            self._all.append_turn(self._inner(context), session, turn, at=at)

    def epochs(self, scopes: Sequence[str]) -> list[int]:
        return self._all.epochs(scopes)

    def bump(self, scope: str) -> int:
        """Raises UsageError for a scope that is not its tenant's."""
        if self._scope and self._scope not in (scope, model_owner(scope)):
            raise UsageError(
                f"{scope} is not of {self._scope} alone.",
                hint="What every tenant keeps is erased by the owner of the home: without "
                "store.tenant and store.shared, `preread erase --model-of NAME --all-tenants`.",
            )
        return self._all.bump(scope)

    def listen(self) -> Hints:
        return self._all.listen()

    def _inner(self, name: str) -> str:
        return self._prefix + name

    def _sayable(self, name: str) -> bool:
        """Whether it is not, behind the default tenant's empty prefix, somebody else's."""
        return MARK not in name

    @contextmanager
    def _said(self, name: str) -> Iterator[None]:
        """Errors name what the caller named."""
        try:
            yield
        except (CatalogConflict, HomeError) as exc:
            inner = self._inner(name)
            message, hint = (text.replace(inner, name) for text in (exc.message, exc.hint))
            raise type(exc)(message, hint=hint) from exc
