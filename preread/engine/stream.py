"""The bridge between one reader on an event loop and its jobs on the engine thread."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from preread.engine.engine import Engine
from preread.engine.layers import Layers, Tail
from preread.engine.reading import Reading
from preread.engine.thread import EngineThread
from preread.engine.trial import follows
from preread.tokens.batch import News
from preread.tokens.reply import Said
from preread.tokens.requests import Part

if TYPE_CHECKING:
    from collections.abc import MutableSequence

    from preread.types import Int64Array


class Stream:
    """Jobs of one request batch. `inbox`: (part, its news or why there will be none); part None:
    of rows that will have none, see Replies.take."""

    def __init__(self, thread: EngineThread) -> None:
        """On the reader's loop."""
        self.inbox: asyncio.Queue[tuple[Part | None, Said]] = asyncio.Queue()
        self.moved = asyncio.Event()  # set when rows have ended
        self._loop = asyncio.get_running_loop()
        self._thread = thread
        self._lock = threading.Lock()
        self._jobs: dict[int, tuple[int, Part]] = {}  # id of the part -> its job
        self._gone: list[int] = []  # rows of the batch that their reader has left
        self._kept: dict[int, list[Said]] = {}  # id of a part -> its news, not yet to be told
        self.withdrawn = False  # what does not run yet is not wanted any more
        self._closed = False

    def submit_resident(self, part: Part) -> Future[bool]:
        """Submit a part if it needs no prefix, or one that is in memory."""

        def work(engine: Engine) -> bool:
            ready = self.withdrawn or part.prefix is None or engine.resident(part.prefix)
            if ready:
                self.submit(engine, part)
            return ready

        return self._thread.send(work)

    def submit(self, engine: Engine, part: Part, computed: int | None = None) -> None:
        """On the engine thread. computed: the prefix was made ready for these rows, who pay for so
        many tokens of it."""
        batch = replace(part.batch, charge=computed or 0)
        with self._lock:
            if self._closed:
                return
            job = self._thread.listen(
                engine,
                batch,
                lambda news: self.tell(part, news),
                prepared=computed is not None,
            )
            self._jobs[id(part)] = job, part
            gone = np.flatnonzero(np.isin(part.rows, self._gone))
        self._end(engine, job, gone)

    def _end(self, engine: Engine, job: int, gone: Int64Array) -> None:
        """What was told of a job before it was known here."""
        if len(gone):
            engine.cancel(job, gone)
        if self.withdrawn:
            engine.withdraw(job)

    def tail(self, part: Part) -> Tail | None:
        """What of a part could be computed while its prefix comes; its news are kept until `let`.
        None: nothing."""
        if part.prefix is None or not follows(part.batch, len(part.prefix)):
            return None
        return Tail(len(part.batch.own.values), partial(self._run, part))

    def _run(self, part: Part, engine: Engine, reading: Reading, layers: Layers) -> bool:
        if self.withdrawn or (job := engine.stream(part.batch, reading, layers)) is None:
            return False
        with self._lock:
            if self._closed:  # it was computed for nobody
                engine.cancel(job)
                return False
            self._kept[id(part)] = []
            self._jobs[id(part)] = job, part
            self._thread.hear(job, lambda news: self.tell(part, news))
            gone = np.flatnonzero(np.isin(part.rows, self._gone))
        self._end(engine, job, gone)
        return True

    def let(self, part: Part) -> None:
        """Tell what was kept of a part, and from now on at once."""
        with self._lock:
            for news in self._kept.pop(id(part), ()):
                self._put(part, news)

    def tell(self, part: Part, news: News | Exception) -> None:
        """From any thread."""
        if isinstance(news, Exception):  # there is nothing to wait for
            self.let(part)
        with self._lock:
            if (kept := self._kept.get(id(part))) is not None:
                kept.append(news)
            else:
                self._put(part, news)

    def _put(self, part: Part, news: Said) -> None:
        if not self._closed:
            self._loop.call_soon_threadsafe(self.inbox.put_nowait, (part, news))

    def finish(self, part: Part, rows: MutableSequence[int]) -> None:
        """End rows that their reader considers ended (a stop string); empties `rows`."""
        for row in rows:
            self._finish(self._jobs[id(part)][0], int(np.searchsorted(part.rows, row)))
        rows.clear()

    def _finish(self, job: int, row: int) -> None:
        self._thread.send(lambda engine: engine.finish(job, row))

    def leave(self, row: int) -> None:
        """Cancel a row of the batch; from any thread."""
        with self._lock:
            self._gone.append(row)
            jobs = tuple(self._jobs.values())
        for job, part in jobs:
            if len(at := np.flatnonzero(part.rows == row)):
                self._cancel(job, at)

    def withdraw(self) -> None:
        """Cancel all rows of the batch that do not run yet; from any thread."""
        self.withdrawn = True
        with self._lock:
            jobs = [job for job, _ in self._jobs.values()]
        for job in jobs:
            self._withdraw(job)

    def _withdraw(self, job: int) -> None:
        self._thread.send(lambda engine: engine.withdraw(job))

    def _cancel(self, job: int, rows: Int64Array) -> None:
        self._thread.send(lambda engine: engine.cancel(job, rows))

    def close(self) -> None:
        """The reader has gone: cancel what still runs."""
        with self._lock:
            self._closed = True
        for job, _ in self._jobs.values():
            self._thread.forget(job)
