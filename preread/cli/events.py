"""What goes on while a context is opened and used, as a stream of events: dicts with one key, of
this process or of the resident one alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from preread.cli.output import ReadingBar, note
from preread.errors import PrereadError

if TYPE_CHECKING:
    from preread.app import Context, Engine

Event = dict[str, Any]


class RemoteError(PrereadError):
    """An error of the resident process, with its own exit code."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error["message"]))
        self.exit_code = int(error["exit_code"])


def opened(engine: Engine, target: str, *, approximate: bool = False) -> Iterator[Event | Context]:
    """Events of opening a target (a name or absolute), then the context."""
    for news in engine.opening(target, approximate=approximate):
        if isinstance(news, str):
            yield {"note": news}
        elif isinstance(news, tuple):
            yield {"progress": list(news)}
        else:
            yield news


def heard(events: Iterable[Event], *, quiet: bool, what: str) -> Iterator[Event]:
    """Shows progress and notes on stderr, and passes on the other events; who has met the last one
    stops listening. quiet: no progress. Raises RemoteError, and PrereadError when the events end
    before: in the middle of `what`."""
    bar = ReadingBar(quiet=quiet)
    for event in events:
        if "progress" in event:
            bar.advance(*event["progress"])
            continue
        bar.close()
        if "error" in event:
            raise RemoteError(event["error"])
        if "note" in event:
            note(event["note"])
        else:
            yield event
    raise PrereadError(f"The resident process ended in the middle of {what}.", hint="Run it again.")
