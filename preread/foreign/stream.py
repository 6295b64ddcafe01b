"""The bridge between one reader on an event loop and its orders on the model's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import MutableSequence

import numpy as np

from preread.foreign.rows import Order, Rows
from preread.foreign.worker import ModelThread
from preread.tokens.batch import News
from preread.tokens.requests import Part


class Stream:
    """Orders of one request batch. `inbox`: (part, its news or why there will be none)."""

    def __init__(self, thread: ModelThread, rows: Rows) -> None:
        """On the reader's loop."""
        self.inbox: asyncio.Queue[tuple[Part, News | Exception]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._thread = thread
        self._rows = rows
        self._orders: dict[int, Order] = {}  # by id of the part
        self._gone = threading.Event()

    def submit(self, part: Part, computed: int) -> None:
        """From any thread. computed: tokens of the prefix that its rows pay for."""
        order = Order(part.batch, lambda news: self.tell(part, news), self._gone, charge=computed)
        self._orders[id(part)] = order
        future = self._thread.run(self._rows.run(order), self._gone)
        future.add_done_callback(lambda done: self._lost(part, done.exception()))

    def tell(self, part: Part, news: News | Exception) -> None:
        """From any thread."""
        if self._gone.is_set():
            return
        try:
            self._loop.call_soon_threadsafe(self.inbox.put_nowait, (part, news))
        except RuntimeError:  # its loop is closed: nobody reads any more
            self._gone.set()

    def finish(self, part: Part, rows: MutableSequence[int]) -> None:
        """End rows that their reader considers ended (a stop string); empties `rows`."""
        for row in rows:
            self._orders[id(part)].ended.add(int(np.searchsorted(part.rows, row)))
        rows.clear()

    def close(self) -> None:
        """The reader has gone: what still runs is given up."""
        self._gone.set()

    def _lost(self, part: Part, exc: BaseException | None) -> None:
        if isinstance(exc, Exception):
            self.tell(part, exc)
