"""The plan of a context that may be too long for one prompt: which part of which document goes into
which shard. Never a silent cut: the shards hold every line exactly once, or there is an error.

Sizes are in tokens and come from `Backend.count`, one call per level of cutting and one to verify
the packed shards; what is packed by sums is only believed after it has been counted whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from preread.backend import Backend
from preread.config import ContextSection
from preread.contexts.catalog.base import ContextRecord, Part, SourceRecord
from preread.contexts.fit import Fit, capacity, needed
from preread.contexts.layout import Layout, file_line, lay_out, whole
from preread.contexts.sections import BOUNDS, cut, trim
from preread.errors import ContextTooLong, SourceError
from preread.types import Prefix

ROUNDS = 8


class Sized(NamedTuple):
    """A part and what it adds to a shard, in tokens: body always, header (with the gap before it)
    only where the part before it is not the same document."""

    part: Part
    body: int
    header: int

    @property
    def alone(self) -> int:
        return self.body + self.header


@dataclass(frozen=True, slots=True)
class Plan:
    """tokens[i]: of the prefix shards[i]."""

    fit: Fit
    shards: tuple[Layout, ...]
    tokens: tuple[int, ...]


async def plan_shards(
    backend: Backend,
    sources: Sequence[SourceRecord],
    instructions: str,
    config: ContextSection,
    previous: ContextRecord | None = None,
) -> Plan:
    """One shard if all documents fit the effective limit, else few and balanced ones. previous: an
    earlier version, whose untouched shards are kept if that costs at most one shard more.
    Raises SourceError for a sentence longer than a shard, ContextTooLong if nothing can fit."""
    planner = _Planner(backend, sources, instructions, capacity(backend.info, config))
    complete = lay_out(instructions, sources, whole(sources))
    total = (await planner.count([complete]))[0]
    shards, tokens = [complete], [total]
    if total > planner.limit:
        shards, tokens = await planner.split(_kept(previous, sources, instructions))
    info = backend.info
    fit = Fit(
        tokens=total,
        limit=info.limit,
        effective=min(info.effective_limit, info.limit),
        effective_known=info.effective_known,
        needed=needed(config),
        shards=len(shards),
        fullest=max(tokens),
    )
    return Plan(fit, tuple(shards), tuple(tokens))


@dataclass(frozen=True, slots=True)
class _Planner:
    backend: Backend
    sources: Sequence[SourceRecord]
    instructions: str
    limit: int

    async def count(self, layouts: Sequence[Layout]) -> list[int]:
        return await self.backend.count([Prefix(layout.text) for layout in layouts])

    async def split(self, kept: list[tuple[Part, ...]]) -> tuple[list[Layout], list[int]]:
        """Pack, count, and pack tighter where the sums were too hopeful (tokens may join or part
        where two texts meet)."""
        limit = self.limit
        for _ in range(ROUNDS):
            plans = await self._pack(kept, limit)
            layouts = [lay_out(self.instructions, self.sources, parts) for parts in plans]
            tokens = await self.count(layouts)
            excess = max(tokens) - self.limit
            if excess <= 0:
                return layouts, tokens
            limit -= excess
            if kept and max(tokens[: len(kept)]) > self.limit:
                kept = []
        raise ContextTooLong(
            f"No split into shards of {self.limit:,} tokens was found.",
            hint="Break long lines in the documents, or use a model that reads further.",
        )

    async def _pack(self, kept: list[tuple[Part, ...]], limit: int) -> list[tuple[Part, ...]]:
        base, *_ = await self.count([lay_out(self.instructions, self.sources, ())])
        room = limit - base
        if room <= 0:
            raise ContextTooLong(
                f"The instructions alone take {base:,} of {limit:,} tokens.",
                hint="Shorten them (--system).",
            )
        fresh = await self._runs_of(whole(self.sources), room)
        if not kept:
            return fresh
        rest = uncovered(self.sources, [part for parts in kept for part in parts])
        packed = await self._runs_of(rest, room)
        return kept + packed if len(kept) + len(packed) <= len(fresh) + 1 else fresh

    async def _runs_of(self, parts: Sequence[Part], room: int) -> list[tuple[Part, ...]]:
        runs = pack(await self._sized(parts, room), room)
        return [merged(run, self.sources) for run in runs]

    async def _sized(self, parts: Sequence[Part], room: int) -> list[Sized]:
        """Cut what is longer than `room`, level by level, and count: every piece with its header,
        as it stands in a shard."""
        sized = await self._count_parts(parts)
        for level in range(len(BOUNDS)):
            long = [item.part for item in sized if item.alone > room]
            if not long:
                return sized
            pieces = {part: self._cut(part, level) for part in long}
            counted = await self._count_parts([p for part in long for p in pieces[part]])
            by_part = {item.part: item for item in counted}
            sized = [
                new
                for item in sized
                for new in (
                    [by_part[p] for p in pieces[item.part]] if item.part in pieces else [item]
                )
            ]
        for item in sized:
            if item.alone > room:
                source = self.sources[item.part.source]
                raise SourceError(
                    f"{source.path}, line {file_line(source, item.part.start)}: one sentence of "
                    f"{item.body:,} tokens; a shard holds {room - item.header:,}.",
                    hint="Break the line up, or use a model that reads further.",
                )
        return sized

    def _cut(self, part: Part, level: int) -> list[Part]:
        text = self.sources[part.source].text
        return [Part(part.source, *span) for span in cut(text, (part.start, part.end), level)]

    async def _count_parts(self, parts: Sequence[Part]) -> list[Sized]:
        """Sizes in one call, told from the template's own tokens by a text of one token, "x"."""
        used = sorted({part.source for part in parts})
        headers = [f"[{self.sources[i].path}]\nx" for i in used]
        texts = [lay_out("", self.sources, (part,)).text for part in parts]
        asked = ["x", "x\nx", "x\n\nx", *headers, *texts]
        one, line, gap, *counts = await self.backend.count([Prefix(text) for text in asked])
        header = dict(zip(used, (n - one for n in counts), strict=False))
        return [
            Sized(
                part,
                body=n - one + 1 - header[part.source] + (line - one - 1),
                header=header[part.source] + (gap - one - 1),
            )
            for part, n in zip(parts, counts[len(used) :], strict=True)
        ]


def pack(items: Sequence[Sized], room: int) -> list[list[Part]]:
    """Fewest runs of consecutive items of at most `room` tokens each, and among those the ones
    whose largest run is smallest (binary search over the size of a run)."""
    if not items:
        return []
    low, high = max(item.alone for item in items), room
    fewest = len(_runs(items, high))
    while low < high:
        middle = (low + high) // 2
        if len(_runs(items, middle)) == fewest:
            high = middle
        else:
            low = middle + 1
    return _runs(items, high)


def _runs(items: Sequence[Sized], room: int) -> list[list[Part]]:
    runs: list[list[Part]] = []
    free = -1
    for item in items:
        again = free >= 0 and runs[-1][-1].source == item.part.source
        tokens = item.body if again else item.alone
        if tokens > free:
            runs.append([])
            free, tokens = room, item.alone
        runs[-1].append(item.part)
        free -= tokens
    return runs


def merged(run: Sequence[Part], sources: Sequence[SourceRecord]) -> tuple[Part, ...]:
    """Parts that were cut from one source and meet again become one part."""
    parts = list(run[:1])
    for part in run[1:]:
        last = parts[-1]
        between = sources[part.source].text[last.end : part.start]
        if last.source == part.source and not between.strip():
            parts[-1] = Part(part.source, last.start, part.end)
        else:
            parts.append(part)
    return tuple(parts)


def _kept(
    previous: ContextRecord | None, sources: Sequence[SourceRecord], instructions: str
) -> list[tuple[Part, ...]]:
    """Shards of an earlier version that would be laid out the same from the new sources."""
    if previous is None or len(previous.shards) < 2:
        return []
    now = {(s.path, s.text): i for i, s in enumerate(sources)}
    kept = []
    for shard in previous.shards:
        old = [(previous.sources[p.source], p) for p in shard.parts]
        if old and all((s.path, s.text) in now for s, _ in old):
            parts = tuple(Part(now[s.path, s.text], p.start, p.end) for s, p in old)
            if lay_out(instructions, sources, parts).text == shard.system:
                kept.append(parts)
    return kept


def uncovered(sources: Sequence[SourceRecord], parts: Sequence[Part]) -> list[Part]:
    """The stretches of the sources that no part holds, in order; white space does not count."""
    rest = []
    for i, source in enumerate(sources):
        at = 0
        held = sorted((p.start, p.end) for p in parts if p.source == i)
        for start, end in [*held, (len(source.text), len(source.text))]:
            span = trim(source.text, (at, start))
            if span[0] < span[1]:
                rest.append(Part(i, *span))
            at = max(at, end)
    return rest
