"""The loop: take what waits, send it, keep what comes back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from itertools import takewhile
from typing import TypeVar

import numpy as np

from preread.backend import Backend, RequestBatch, ResultBatch
from preread.batch.block import Block, counted
from preread.batch.budget import Budget
from preread.batch.feed import Feed
from preread.batch.journal import Journal
from preread.batch.keys import model_digest, prefix_of
from preread.batch.ledger import Bills, Ledger
from preread.batch.order import Order
from preread.batch.pace import TASKS, Pace
from preread.batch.schema import Result, Waiting
from preread.batch.slate import Owed, Slate, path_of, settle
from preread.batch.streak import Streak
from preread.batch.tally import Tally
from preread.errors import RequestError, Resumable
from preread.types import Prefix

T = TypeVar("T")
KEPT = 256  # orders and prefixes remembered
LEFT_OPEN = "the backend left this request open"


def _bounded(kept: dict[bytes, T]) -> None:
    if len(kept) >= KEPT:
        kept.clear()


class Stop:
    """The wish that a run ends before its end: nothing more is sent, what runs is waited for. May
    be asked for from any thread and from a signal handler."""

    def __init__(self) -> None:
        self.reason = ""

    def ask(self, reason: str) -> None:
        self.reason = self.reason or reason


class Runner:
    """Runs all requests of one model that have no result yet, on one backend. `run` is called
    once; the journal is used from a thread of its own meanwhile, and from nowhere else."""

    def __init__(
        self,
        journal: Journal,
        backend: Backend,
        model: str,
        tally: Tally,
        stop: Stop,
        tell: Callable[[Tally], None] | None = None,
        budget: Budget | None = None,
    ) -> None:
        """model: as the orders name it. tell: hears at every commit how far it is."""
        self._journal = journal
        self._backend = backend
        self._model = model_digest(model)
        self._tally = tally
        self._stop = stop
        self._tell = tell
        self._pace = Pace()
        self._streak = Streak()
        self._budget = budget or Budget()
        self._feed = Feed(journal, self._model, self._do)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent: set[Block] = set()
        self._flying = 0
        self._ended: list[Result] = []
        self._failure: Exception | None = None
        self._orders: dict[bytes, Order] = {}
        self._prefixes: dict[bytes, Prefix] = {}
        self._heads: dict[bytes, int] = {}  # tokens of prefixes, where there is a budget
        self._aside = ThreadPoolExecutor(1, "preread-journal")
        self._ledger: Ledger  # from `run` on
        self._over = threading.Event()

    async def run(self) -> None:
        """Raises Resumable when the disk is full, and what the backend raises; results that came
        before are kept, as they are when this is cancelled."""
        slate = await self._do(Slate.open, self._journal, self._model)
        self._ledger = Ledger(self._budget, self._tally, slate, self._used_up, self._unwritten)
        keeper = asyncio.create_task(self._keep_time())
        try:
            while (block := await self._next()) is not None:
                self._send(block)
                await self._room()
            await self._drain()
        finally:
            keeper.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(keeper, *self._tasks, return_exceptions=True)
            await asyncio.shield(self._finish(slate))
        if self._failure is not None:
            raise self._failure

    async def _next(self) -> Block | None:
        """What is sent next; None at the end, and when it must not be."""
        while not (self._stop.reason or self._failure):
            rows = await self._feed.peek(self._pace.rows)
            if not rows:
                return None
            block = Block(rows, Bills(self._ledger))
            if self._budget.limited:
                await self._admit(block)
            if block.rows:
                self._feed.take(len(block.rows))
                return block
            if not self._tasks:
                self._used_up()
            await self._one()
        return None

    async def _admit(self, block: Block) -> None:
        """Cut a block down to rows on one prefix for which there is money, and reserve that."""
        first = block.rows[0].prefix
        rows = list(takewhile(lambda row: row.prefix == first, block.rows))
        if first not in self._heads:
            _bounded(self._heads)
            (self._heads[first],) = await self._backend.count([await self._prefix(first)])
        order = await self._order(rows[0].order)
        n, block.reserved = self._budget.admit(rows, order, self._heads[first], self._tally)
        block.rows = rows[:n]

    def _send(self, block: Block) -> None:
        block.open = dict.fromkeys(range(len(block.rows)), "")
        task = asyncio.create_task(self._run(block))
        self._tasks.add(task)
        self._sent.add(block)
        self._flying += len(block.rows)
        task.add_done_callback(self._tasks.discard)

    async def _room(self) -> None:
        """Wait while enough is in flight."""
        while self._tasks and (self._flying >= self._pace.ahead or len(self._tasks) >= TASKS):
            await self._one()

    async def _one(self) -> None:
        """Until one of the blocks in flight has come back."""
        if self._tasks:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _drain(self) -> None:
        while self._tasks and not isinstance(self._failure, Resumable):
            await asyncio.wait(self._tasks, timeout=self._journal.commit_s)

    async def _run(self, block: Block) -> None:
        """One batch. What fails as a whole because it is malformed is the failure of its rows;
        anything else ends the run."""
        try:
            batch = replace(
                await self._batch(block.rows), leaving=block.leaving, spending=block.bills
            )
            async with aclosing(self._backend.submit(batch)) as stream:  # type: ignore[type-var]
                async for news in stream:
                    self._take(block, news)
            self._fail(block, LEFT_OPEN)
            self._pace.ended(len(block.rows), time.monotonic() - block.began)
        except RequestError as exc:
            self._fail(block, str(exc))
        except Exception as exc:
            self._failure = self._failure or exc
        finally:
            block.bills.close()
            self._sent.discard(block)
            self._flying -= len(block.rows)
            self._budget.release(block.reserved)

    async def _batch(self, rows: list[Waiting]) -> RequestBatch:
        order = await self._order(rows[0].order)
        texts = [row.text for row in rows]
        if order.raw:
            return RequestBatch(order.work, texts, raw=True, stream=False)
        keys = {row.prefix: 0 for row in rows}
        found = [(key, await self._prefix(key)) for key in keys]
        full = [(key, prefix) for key, prefix in found if prefix != Prefix("")]
        number = {key: i for i, (key, _) in enumerate(full)}
        which = np.array([number.get(row.prefix, -1) for row in rows], np.int32)
        prefixes = tuple(prefix for _, prefix in full)
        return RequestBatch(order.work, texts, prefixes, which, stream=False)

    async def _order(self, key: bytes) -> Order:
        if key not in self._orders:
            _bounded(self._orders)
            self._orders[key] = Order.from_json(await self._do(self._journal.body, "orders", key))
        return self._orders[key]

    async def _prefix(self, key: bytes) -> Prefix:
        if key not in self._prefixes:
            _bounded(self._prefixes)
            self._prefixes[key] = prefix_of(await self._do(self._journal.body, "prefixes", key))
        return self._prefixes[key]

    def _take(self, block: Block, news: ResultBatch) -> None:
        ended = list(block.take(news))
        self._keep_these([result for _, result in ended if result is not None])
        for row, result in ended:
            block.bills.settle(row, counted(result))
            if self._budget.limited and result is not None and not result.error:
                self._budget.saw(block.rows[row].prefix, result.computed)

    def _fail(self, block: Block, why: str) -> None:
        """What has not ended yet."""
        self._keep_these(block.left(why))

    def _keep_these(self, ended: list[Result]) -> None:
        self._ended += ended
        self._tally.add(ended)
        if why := self._streak.saw(ended):
            self._stop.ask(why)

    async def _keep_time(self) -> None:
        """Keep and tell, again and again; at the end nothing begins that waits at the backend."""
        while True:
            await asyncio.sleep(self._journal.commit_s)
            if self._stop.reason or self._failure:
                for block in self._sent:
                    block.leaving.withdraw()
            try:
                await self._keep()
            except Exception as exc:  # the disk is full: nothing more is sent
                self._failure = self._failure or exc
                return
            if self._tell:
                self._tell(self._tally)

    async def _keep(self) -> None:
        ended, self._ended = self._ended, []
        await self._do(self._store, ended, self._ledger.owed())

    def _store(self, ended: list[Result], owed: Owed | None) -> None:
        """In the journal's thread. What was in doubt or owed ends with the results it was for."""
        with self._journal.together():
            if ended:
                self._journal.record(ended)
            if owed is not None:
                settle(self._journal, self._model, owed)
        self._journal.tick()

    async def _finish(self, slate: Slate) -> None:
        """The last results, kept; an older failure counts."""
        try:
            await self._keep()
            await self._do(self._journal.commit)
            await self._do(slate.close, self._journal)
        except Exception as exc:
            self._failure = self._failure or exc
        self._aside.shutdown(wait=False)
        if self._tell:
            self._tell(self._tally)
        self._over.set()

    def wait(self, seconds: float) -> bool:
        """For another thread that has cancelled `run` and is about to read the journal: whether it
        has let go of it by then."""
        return self._over.wait(seconds)

    def _used_up(self) -> None:
        self._stop.ask("the budget is used up; give a larger one")

    def _unwritten(self, exc: Exception) -> None:
        """Nothing is sent of which the next session would not know."""
        self._failure = self._failure or Resumable(
            f"{path_of(self._journal)}: {exc}. What was committed is kept.",
            hint="Free some space, then the same command with --resume.",
        )

    async def _do(self, work: Callable[..., T], *values: object) -> T:
        """In the journal's thread. Who is cancelled meanwhile leaves it to its end: results on
        their way into the journal are nowhere else any more."""
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._aside, work, *values))
