"""Builds a context again and again and is killed each time at another point. A script: torch is
imported once, children are forked while there is one thread.

`dying_builder.py MODEL ROOT POINTS`: counts the calls into the kernel and the engine steps of one
whole build; then, for POINTS random points, a child builds into ROOT/i and dies by SIGKILL there,
and another child asks over what is left. Prints one JSON object: truth, answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preread.backend import RequestBatch
from preread.contexts.rows import collect
from preread.engine.engine import Engine
from preread.engine.local import LocalBackend
from preread.models.load import LoadedModel, load_model
from preread.store.tiers.disk import DiskTier
from preread.testing.questions import BOOK, QUESTIONS, SHORT
from tests.parity.tools import CONFIG, store_of

CALLS = ("open", "write", "utime", "fsync", "replace", "mkdir", "close")


def watched(on_call: Callable[[], None]) -> None:
    """Call `on_call` before every call into the kernel and every engine step."""

    def wrap(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            on_call()
            return call(*args, **kwargs)

        setattr(owner, name, wrapper)

    for name in CALLS:
        wrap(os, name)
    wrap(Engine, "step")


def backend(model: LoadedModel, root: Path) -> LocalBackend:
    return LocalBackend(model, store_of(model, DiskTier(root)), CONFIG)


def build(model: LoadedModel, root: Path, fatal: int) -> int:
    """Calls counted; dies before call number `fatal`."""
    count = 0

    def on_call() -> None:
        nonlocal count
        count += 1
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    watched(on_call)
    asyncio.run(backend(model, root).build(BOOK))
    return count


def ask(model: LoadedModel, root: Path) -> list[list[int]]:
    rows = asyncio.run(collect(backend(model, root), RequestBatch(SHORT, list(QUESTIONS), (BOOK,))))
    return [row.tokens for row in rows]


def forked(work: Callable[[], Any]) -> tuple[int, Any]:
    """(wait status, result) of work in a child."""
    receive, send = os.pipe()
    write, close = os.write, os._exit
    if (child := os.fork()) == 0:
        os.close(receive)
        write(send, json.dumps(work()).encode())
        close(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    return os.waitpid(child, 0)[1], json.loads(text) if text else None


def main(folder: str, root: Path, points: int) -> None:
    model = load_model(folder, dtype="float32", device="cpu")
    _, calls = forked(lambda: build(model, root / "whole", 0))
    _, truth = forked(lambda: ask(model, root / "nothing"))
    draw, answers = random.Random(0), []
    for i in range(points):
        fatal, place = draw.randint(1, calls), root / str(i)
        died, _ = forked(lambda fatal=fatal, place=place: build(model, place, fatal))
        lived, answer = forked(lambda place=place: ask(model, place))
        answers.append({"died": died, "lived": lived, "answer": answer, "point": fatal})
    print(json.dumps({"truth": truth, "calls": calls, "answers": answers}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
