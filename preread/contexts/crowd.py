"""Requests that come one by one and run together: a Backend in front of another one.

Small batches that arrive at about the same time and ask for the same kind of work become one batch.
Each reader gets the news of its own rows as they come, and may leave alone. So a thousand tasks
that each await one answer cost little more than one batch of a thousand rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from preread.backend import (
    Backend,
    Leaving,
    LogLikelihood,
    Ragged,
    RequestBatch,
    ResultBatch,
)
from preread.errors import EngineError
from preread.front import Front
from preread.types import Prefix

MOST_ROWS = 64  # a larger batch is a crowd already
LONGEST_S = 0.005  # nobody waits longer for others to come


@dataclass(slots=True, eq=False)
class _Member:
    """A batch and where its news go. start: its first row in the common batch."""

    batch: RequestBatch
    inbox: asyncio.Queue[ResultBatch | Exception] = field(default_factory=asyncio.Queue)
    start: int = 0
    open: set[int] = field(default_factory=set)  # rows that have not ended


@dataclass(slots=True, eq=False)
class _Group:
    """Members that run as one batch. leaving: tells the backend of rows nobody waits for."""

    members: list[_Member]
    leaving: Leaving = field(default_factory=Leaving)
    task: asyncio.Task[None] | None = None

    def takes(self, batch: RequestBatch) -> bool:
        mine = self.members[0].batch
        return (
            (mine.raw, mine.stream, mine.reuse) == (batch.raw, batch.stream, batch.reuse)
            and isinstance(mine.prompts, Ragged) is isinstance(batch.prompts, Ragged)
            and mine.work == batch.work
        )


class Crowd(Front):
    """See preread.backend.Backend; all methods from one event loop."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._waiting: list[_Group] = []
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        alone = batch.keep or batch.leaving or isinstance(batch.work, LogLikelihood)
        if alone or not 0 < len(batch) <= MOST_ROWS:
            source = cast("AsyncGenerator[ResultBatch, None]", self._backend.submit(batch))
            async with aclosing(source):
                async for news in source:
                    yield news
            return
        group, member = self._join(batch)
        try:
            while member.open:
                said = await member.inbox.get()
                if isinstance(said, Exception):
                    raise said
                ended = zip(said.rows.tolist(), said.finish, strict=True)
                member.open -= {row for row, finish in ended if finish is not None}
                yield said
        finally:
            self._leave(group, member)

    def _join(self, batch: RequestBatch) -> tuple[_Group, _Member]:
        from preread.tokens.requests import check

        check(batch)  # what is malformed is refused alone
        member = _Member(batch, open=set(range(len(batch))))
        for group in self._waiting:
            if group.takes(batch):
                group.members.append(member)
                return group, member
        group = _Group([member])
        self._waiting.append(group)
        group.task = asyncio.create_task(self._run(group))
        self._running.add(group.task)
        group.task.add_done_callback(self._running.discard)
        return group, member

    def _leave(self, group: _Group, member: _Member) -> None:
        """Its reader has gone; what it still waits for may end."""
        for row in () if group in self._waiting else member.open:
            group.leaving.leave(member.start + row)
        group.members.remove(member)
        if not group.members and group.task is not None:
            group.task.cancel()
            if group in self._waiting:  # nobody joins what is about to end
                self._waiting.remove(group)

    async def _run(self, group: _Group) -> None:
        try:
            await self._settle(group)
            self._waiting.remove(group)
            members = tuple(group.members)
            await self._pass_on(group, members)
            lost: Exception = EngineError("The engine left this request open.", hint="Ask again.")
        except Exception as exc:
            lost = exc
        finally:
            if group in self._waiting:
                self._waiting.remove(group)
        for member in group.members:
            member.inbox.put_nowait(lost)

    async def _settle(self, group: _Group) -> None:
        """Wait while others keep coming; hardly at all for who seems to be alone."""
        loop = asyncio.get_running_loop()
        end, known = loop.time() + LONGEST_S, 0
        while len(group.members) > known and loop.time() < end:
            known = len(group.members)
            busy = known > 1 or len(self._running) > 1
            await asyncio.sleep(LONGEST_S / 10 if busy else 0)

    async def _pass_on(self, group: _Group, members: Sequence[_Member]) -> None:
        import numpy as np

        from preread.tokens.merged import only

        batch = _together(members, group.leaving)
        starts = np.array([member.start for member in members])
        source = cast("AsyncGenerator[ResultBatch, None]", self._backend.submit(batch))
        async with aclosing(source):
            async for news in source:
                owner = np.searchsorted(starts, news.rows, side="right") - 1
                for number in np.unique(owner).tolist():
                    mine = np.flatnonzero(owner == number)
                    rows = news.rows[mine] - starts[number]
                    members[number].inbox.put_nowait(only(news, mine, rows))


def _together(members: Sequence[_Member], leaving: Leaving) -> RequestBatch:
    """One batch of all members' rows, in order; notes where each begins."""
    import numpy as np

    from preread.tokens.ragged import joined
    from preread.tokens.requests import check

    prefixes: dict[Prefix, int] = {}
    places, start = [], 0
    for member in members:
        member.start, start = start, start + len(member.batch)
        of = [prefixes.setdefault(p, len(prefixes)) for p in member.batch.prefixes]
        places.append(np.array([*of, -1], np.int32)[check(member.batch)])
    batches = [member.batch for member in members]
    tokens = [b.prompts for b in batches if isinstance(b.prompts, Ragged)]
    texts = [text for b in batches if not isinstance(b.prompts, Ragged) for text in b.prompts]
    first = batches[0]
    return RequestBatch(
        work=first.work,
        prompts=joined(tokens) if tokens else texts,
        prefixes=tuple(prefixes),
        prefix_of=np.concatenate(places),
        raw=first.raw,
        reuse=first.reuse,
        stream=first.stream,
        leaving=leaving,
    )
