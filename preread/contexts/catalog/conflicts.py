"""What every catalog says to whoever comes second, or asks for what cannot be said."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from preread.errors import CatalogConflict, HomeError, UsageError


def published_first(name: str, newest: int, expected: int) -> CatalogConflict:
    return CatalogConflict(
        f"Context {name!r} is at version {newest}, not {expected}: another process published "
        "first.",
        hint="Run the build again.",
    )


def removed_meanwhile(context: str) -> CatalogConflict:
    return CatalogConflict(
        f"Context {context!r} was removed meanwhile; the turn is not kept.",
        hint=f"preread build {context} PATH…",
    )


def session_has_grown(context: str, session: str, turns: int, at: int) -> CatalogConflict:
    return CatalogConflict(
        f"Session {session!r} of {context!r} has {turns} turns, not {at}: another process "
        "answered in it.",
        hint="Ask again, or use a session of your own: --session NAME",
    )


def no_unicode(exc: UnicodeEncodeError) -> UsageError:
    return UsageError(
        f"{exc.object!r} is not valid Unicode (a lone surrogate).",
        hint="Type or decode it as UTF-8.",
    )


@contextmanager
def legible(place: str, mend: str) -> Iterator[None]:
    """What was written by nobody of ours, or is damaged, is a HomeError; text that cannot be
    written, a UsageError. mend: what to do about damage."""
    try:
        yield
    except UnicodeEncodeError as exc:
        raise no_unicode(exc) from exc
    except (zlib.error, KeyError, ValueError, TypeError, IndexError) as exc:
        raise HomeError(f"{place}: damaged ({exc!r}).", hint=mend) from exc
