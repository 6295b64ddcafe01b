"""A session: a history on top of a context. The history lives in the catalog, so that it outlives
the process; its KV is kept by the backend, so that the next turn computes only what is new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from preread.backend import Backend, Generate
from preread.contexts.ask import AskOptions, stream
from preread.contexts.catalog.base import Catalog
from preread.contexts.names import check_name
from preread.contexts.opened import Opened
from preread.errors import CatalogConflict, ContextTooLong, PrereadError, UnknownName, UsageError
from preread.types import Completion, Finish, Message, Prefix

Turn = tuple[str, str]  # (question, answer)


@dataclass(frozen=True, slots=True)
class Session:
    """One named conversation with a context. It exists from its first turn on."""

    backend: Backend
    catalog: Catalog
    context: Opened
    name: str

    def __post_init__(self) -> None:
        check_name(self.name, "session")
        if self.context.approximate:
            raise UsageError(
                "A session continues what was read: it needs the exact composition.",
                hint="Leave out --session, or --approximate.",
            )

    def turns(self) -> tuple[Turn, ...]:
        """(question, answer), oldest first."""
        return self.catalog.session(self.context.record.name, self.name)

    async def ask(
        self, question: str, work: Generate | None = None, options: AskOptions | None = None
    ) -> Completion:
        """Answer with the history in view and add the turn. Raises ContextTooLong when the history
        has outgrown the model. An answer is never lost: when the turn cannot be kept (another
        process answered in between, a home that cannot be written), its notes say so."""
        async with aclosing(self.stream(question, work, options)) as items:
            async for item in items:
                if isinstance(item, Completion):
                    return item
        raise AssertionError("a stream ends with its Completion")

    async def stream(
        self, question: str, work: Generate | None = None, options: AskOptions | None = None
    ) -> AsyncGenerator[str | Completion, None]:
        """Text as it is written, then the Completion. A failed or cancelled turn is not kept."""
        work = work or Generate()
        turns = await asyncio.to_thread(self.turns)
        history = messages(turns)
        await self._check_room(question, history, work, len(turns))
        options = replace(options or AskOptions(), history=history, keep=True)
        done: Completion | None = None
        items = stream(self.backend, self.context, question, work, options)
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Completion):
                    done = item
                else:
                    yield item
        assert done is not None, "a stream ends with its Completion"
        if done.finish_reason in (Finish.STOP, Finish.LENGTH):
            done = await self._kept(done, question, len(turns))
        yield done

    async def _kept(self, done: Completion, question: str, at: int) -> Completion:
        """Add the turn; the answer, with a note when that failed."""
        name, turn = self.context.record.name, (question, done.text)
        try:
            await asyncio.to_thread(self.catalog.append_turn, name, self.name, turn, at=at)
        except PrereadError as exc:
            note = f"this turn was not kept in session {self.name!r}: {exc}"
            return replace(done, notes=(*done.notes, note))
        return done

    def fork(self, name: str, *, keep: int | None = None) -> Session:
        """A new session that begins with this one's turns (keep: only the last so many). Forking
        again after an interruption continues. Raises CatalogConflict if `name` holds other turns,
        UnknownName if there is nothing to fork."""
        other = replace(self, name=name)
        turns = self.turns()
        if not turns:
            raise UnknownName(
                f"Session {self.name!r} of {self.context.record.name!r} has no turns.",
                hint=f"Ask in it first: --session {self.name}",
            )
        if keep is not None:
            turns = turns[len(turns) - min(max(keep, 0), len(turns)) :]
        there = other.turns()
        if there != turns[: len(there)]:
            raise CatalogConflict(
                f"Session {name!r} exists and holds another conversation.",
                hint="Fork to another name.",
            )
        for at in range(len(there), len(turns)):
            self.catalog.append_turn(self.context.record.name, name, turns[at], at=at)
        return other

    async def _check_room(
        self, question: str, history: tuple[Message, ...], work: Generate, turns: int
    ) -> None:
        if not history:
            return
        shards = self.context.record.shards
        largest = max(shards, key=lambda shard: shard.tokens)
        limit = self.backend.info.limit
        (tokens,) = await self.backend.count([Prefix(largest.system, history)], [question])
        if tokens + work.max_tokens > limit:
            keep = max(1, turns // 2)
            raise ContextTooLong(
                f"Session {self.name!r} has {turns} turns and no longer fits: {tokens:,} tokens "
                f"with this question + {work.max_tokens:,} for the answer > {limit:,}.",
                hint=f"Begin a new one (--session NAME), or fork this one with its last turns: "
                f"session.fork(NAME, keep={keep}); in `preread chat`: /fork NAME.",
            )


def messages(turns: tuple[Turn, ...]) -> tuple[Message, ...]:
    """Turns as the history of a prefix."""
    return tuple(
        message
        for question, answer in turns
        for message in (Message("user", question), Message("assistant", answer))
    )
