"""`preread warm`: a context in memory, or at least in the nearest tier, before anybody asks."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from preread.cli.events import Event, heard, opened
from preread.cli.output import emit, note

if TYPE_CHECKING:
    from preread.app import Context, Engine
    from preread.types import Built


@dataclass(frozen=True, slots=True)
class WarmRequest:
    """What `warm` was asked; target and cwd as in AskRequest. lease_s: 0: as configured."""

    target: str
    cwd: str
    model: str = ""
    lease_s: float = 0.0


def warm_command(target: str, *, model: str, lease_s: float, resident: bool, json: bool) -> None:
    """By the resident process when one runs with this model, else here, which fills near tiers."""
    from preread.cli.client import resident_events

    request = WarmRequest(target, os.getcwd(), model, lease_s)
    events = resident_events(asdict(request), op="warm") if resident else None
    with closing(_here(request) if events is None else events) as told:
        _render(told, json=json, stays=events is not None)


def warm_events(engine: Engine, request: WarmRequest) -> Iterator[Event]:
    """The events of one request on an open engine. The target is a name or absolute."""
    for news in opened(engine, request.target):
        yield from [news] if isinstance(news, dict) else _warmed(news, request.lease_s)


def _warmed(context: Context, lease_s: float) -> Iterator[Event]:
    """Progress while it is loaded, then the report."""
    for news in context.warming(lease_s):
        yield {"progress": list(news)} if isinstance(news, tuple) else _report(context, news)


def _report(context: Context, result: Built) -> Event:
    return {
        "warmed": {
            "name": context.name,
            "version": context.version,
            "tokens": result.tokens,
            "reused_tokens": result.reused_tokens,
            "loaded_tokens": result.loaded_tokens,
            "computed_tokens": result.computed_tokens,
            "seconds": round(result.seconds, 3),
            "brought": result.brought.to_json(),
        }
    }


def _here(request: WarmRequest) -> Generator[Event]:
    from preread.app import open as open_engine
    from preread.cli.target import meant

    target, model, codec = meant(request.target, request.model, request.cwd)
    with open_engine(model, codec=codec) as engine:
        yield from warm_events(engine, replace(request, target=target))


def _render(events: Iterator[Event], *, json: bool, stays: bool) -> None:
    for event in heard(events, quiet=json, what="it"):
        _finish({**event["warmed"], "stays": stays}, json=json)
        return


def _finish(warmed: dict[str, Any], *, json: bool) -> None:
    if json:
        emit(warmed)
        return
    there = warmed["reused_tokens"] - warmed["loaded_tokens"]
    print(
        f"{warmed['name']} v{warmed['version']}: {there:,} tokens were in memory, "
        f"{warmed['loaded_tokens']:,} loaded, {warmed['computed_tokens']:,} computed "
        f"({warmed['seconds']:.2f} s)"
    )
    if not warmed["stays"]:
        note("no resident process keeps it in memory: preread up")
