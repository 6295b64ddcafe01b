"""`preread chat`: a conversation with a context, kept as a session."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from preread.cli.asking import render, result_json
from preread.cli.events import Event
from preread.cli.output import note
from preread.errors import PrereadError

if TYPE_CHECKING:
    from preread.app import Session

HELP = "/fork NAME continue in a copy · /new NAME start over · /history · /quit"


def chat_command(name: str, *, session: str, model: str, max_tokens: int) -> None:
    from preread.app import open as open_engine
    from preread.cli.target import meant

    _, model, codec = meant(name, model)
    with open_engine(model, codec=codec) as engine:
        context = engine.open(name, on_note=note)
        current = context.session(session or f"chat-{time.strftime('%Y%m%d-%H%M%S')}")
        note(f"{context.name}, version {context.version}, session {current.name}. {HELP}")
        while (line := _read()) is not None:
            try:
                if line.startswith("/"):
                    command, _, rest = line.partition(" ")
                    if command in ("/quit", "/exit"):
                        return
                    if command == "/history":
                        for question, answer in current.turns:
                            print(f"> {question}\n{answer}")
                    elif command == "/fork" and rest.strip():
                        current = current.fork(rest.strip())
                    elif command == "/new" and rest.strip():
                        current = context.session(rest.strip())
                    else:
                        note(HELP)
                elif line:
                    asked = time.monotonic()
                    render(_events(current, line, max_tokens), json=False, began=asked)
            except PrereadError as exc:
                note(f"preread: {exc}")


def _read() -> str | None:
    """The next line; None at the end of input or at Ctrl-C."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _events(session: Session, question: str, max_tokens: int) -> Iterator[Event]:
    for item in session.stream(question, max_tokens=max_tokens):
        yield {"delta": item} if isinstance(item, str) else {"result": result_json(item)}
