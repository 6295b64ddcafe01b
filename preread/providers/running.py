"""One submitted batch on its way: groups are warmed, then everything goes out at once as far as the
gate and the limits allow; rows end in the order in which they are answered."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any

from preread.backend import RequestBatch, ResultBatch
from preread.errors import PrereadError
from preread.providers.dialect import Ask, Dialect, Flight, Said, Wire
from preread.providers.estimate import Estimate
from preread.providers.rows import Asks, Columns, Ended, check_said
from preread.providers.sender import Grounded, Refused
from preread.providers.usage import Counts
from preread.providers.warmth import Warmth
from preread.types import Finish

ROUGHLY = 0.6  # of a shortest length, where lengths are estimates
WORKERS = 1024  # requests of one batch that may wait at the gate


class Running:
    """The rows of one batch. `rows()` is read once; closing it cancels what still runs."""

    def __init__(
        self,
        batch: RequestBatch,
        asks: Asks,
        dialect: Dialect,
        wire: Wire,
        warmth: Warmth,
        estimate: Estimate,
        contexts: Sequence[int],
    ) -> None:
        """contexts: tokens of each prefix; those too short to be reused are not warmed."""
        self._batch, self._asks = batch, asks
        self._dialect, self._wire, self._warmth = dialect, wire, warmth
        self._estimate, self._contexts = estimate, contexts
        self._columns = Columns(batch)
        self._began = time.perf_counter()
        self._ended: asyncio.Queue[Ended] = asyncio.Queue()
        self._ready: asyncio.Queue[int] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._of_row: dict[int, asyncio.Task[Any]] = {}  # who answers it
        self._stopped = False
        self._flights: dict[int, Flight] = {}  # of rows that are being answered
        self._done = [False] * len(batch)

    async def rows(self) -> AsyncGenerator[ResultBatch, None]:
        """News until every row has ended."""
        missing = len(self._batch)
        try:
            self._start()
            while missing:
                ended = [await self._ended.get()]
                while not self._ended.empty():
                    ended.append(self._ended.get_nowait())
                missing -= len(ended)
                yield self._columns.of(ended)
        finally:
            self._stop()

    def cancel(self) -> None:
        """Rows that still run end CANCELLED."""
        for row in range(len(self._batch)):
            self._leave(row)
        self._stop()

    def _start(self) -> None:
        if self._batch.leaving is not None:
            loop = asyncio.get_running_loop()

            def tell(row: int) -> None:
                loop.call_soon_threadsafe(self._leave, row)

            def withdraw() -> None:
                loop.call_soon_threadsafe(self._withdraw)

            self._batch.leaving.listen(tell, withdraw)
        groups: dict[int, deque[int]] = defaultdict(deque)
        for row, which in enumerate(self._asks.prefix_of):
            if which >= 0 and self._warms(which):
                groups[which].append(row)
            else:
                self._ready.put_nowait(row)
        for which, rows in groups.items():
            self._spawn(self._group(self._asks.groups[which], rows))
        for _ in range(min(WORKERS, len(self._batch))):
            self._spawn(self._work())

    def _warms(self, which: int) -> bool:
        """Whether requests of a prefix can hit what the first of them wrote. Its length may be an
        estimate: one that is nearly long enough is given the chance."""
        if not self._batch.reuse or not self._asks.groups[which]:
            return False
        return self._contexts[which] >= max(1, self._dialect.traits.min_prefix * ROUGHLY)

    async def _group(self, group: str, rows: deque[int]) -> None:
        """The first row alone, or the first two; when they are answered, the rest."""
        while rows and not self._warmth.warm(group):
            async with self._warmth.turn(group) as done:
                if done is None:
                    break
                done(await self._alone(rows.popleft()))
        for row in rows:
            self._ready.put_nowait(row)

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while True:
            row = await self._ready.get()
            if not self._done[row]:
                self._of_row[row] = task
                try:
                    await self._answer(row)
                finally:
                    del self._of_row[row]

    async def _alone(self, row: int) -> bool:
        """Answer a row on which others wait: they go on when it leaves. True if it was answered."""
        if self._done[row]:
            return False
        task = self._of_row[row] = asyncio.ensure_future(self._answer(row))
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            del self._of_row[row]
        return not task.cancelled() and task.result()

    async def _answer(self, row: int) -> bool:
        """True if it was answered."""
        ask = self._asks.of(row)
        self._flights[row] = ask.flight
        try:
            said = check_said(await self._dialect.answer(ask, self._wire))
        except Grounded:
            self._end(row, Said(), Finish.CANCELLED)
            return False
        except (Refused, PrereadError) as exc:
            said = Said(error=str(exc))
        except Exception as exc:  # an answer of a form nobody foresaw is that row's own failure
            said = Said(error=f"The answer cannot be read ({type(exc).__name__}: {exc}).")
        finally:
            del self._flights[row]
        if said.counts.prompt:  # it was read, whatever came of it
            self._learn(ask, said.counts)
        self._end(row, said, Finish.ERROR if said.error else said.finish)
        return bool(said.counts.prompt)

    def _learn(self, ask: Ask, counts: Counts) -> None:
        if ask.group:
            self._warmth.used(ask.group)
        if ask.messages:
            self._estimate.learn(ask.messages, counts.prompt)

    def _end(self, row: int, said: Said, finish: Finish) -> None:
        if self._done[row]:
            return
        self._done[row] = True
        which = self._asks.prefix_of[row]
        context = self._contexts[which] if which >= 0 else 0
        context = min(context, said.counts.prompt) if not said.error else 0
        ms = (time.perf_counter() - self._began) * 1e3
        self._ended.put_nowait(Ended(row, said, finish, context, ms))

    def _leave(self, row: int) -> None:
        """Nobody waits for this row any more."""
        if not 0 <= row < len(self._batch) or self._done[row]:
            return
        self._end(row, Said(), Finish.CANCELLED)
        if (task := self._of_row.get(row)) is not None:
            task.cancel()
            if task in self._tasks and not self._stopped:
                self._spawn(self._work())  # in the place of one that would have gone on

    def _withdraw(self) -> None:
        """Nothing more is sent; what is under way is waited for."""
        for row in range(len(self._batch)):
            flight = self._flights.get(row)
            if flight is not None and flight.under_way:
                flight.grounded = True
            else:
                self._leave(row)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(task := asyncio.create_task(work))
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[Any]) -> None:
        """A worker that ended by an error of ours must not leave its readers waiting."""
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            for row in range(len(self._batch)):
                self._end(row, Said(error=f"{type(exc).__name__}: {exc}"), Finish.ERROR)

    def _stop(self) -> None:
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()
