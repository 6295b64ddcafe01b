"""Packing: from what the scheduler chose to the arrays of a step. No loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from preread.engine.branch import Branches, Span
from preread.engine.gathering import Gathers
from preread.engine.sequence import Sequences
from preread.engine.step import Chunk, Decode, Dense, Gather, History, Own, Score, Step
from preread.tokens.batch import Kind
from preread.tokens.labels import LabelTrie
from preread.tokens.ragged import ranges, spread

if TYPE_CHECKING:
    from preread.types import Int64Array

_Places = tuple["Int64Array", "Int64Array", "Int64Array"]  # ranks, starts and totals of the rows

MASK_CELLS = 1 << 24  # most cells of one mask of own attention


class Packer:
    """Packs what the scheduler chose. gathers: which stretches that single rows see are copied into
    one common call, instead of a call for each."""

    def __init__(
        self, seqs: Sequences, branches: Branches, *, page_tokens: int, gathers: Gathers
    ) -> None:
        self._seqs = seqs
        self._branches = branches
        self._page_tokens = page_tokens
        self._gathers = gathers
        none = (np.empty(0, np.int64),) * 3
        self._shared: tuple[_Places, Sequence[Span], list[Dense], Gather | None] = (
            none, (), [], None,
        )  # fmt: skip

    def pack(
        self,
        slots: Int64Array,
        counts: Int64Array,
        chunks: Sequence[Chunk],
        tries: Mapping[int, LabelTrie],
    ) -> Step:
        """slots: sequences that take part, counts: own new tokens of each (>= 1). tries: label
        tries by job number."""
        seqs = self._seqs
        ranks, spans = self._branches.layout(seqs.branch[slots])
        if ranks.any():
            turn = np.argsort(ranks, kind="stable")
            slots, counts, ranks = slots[turn], counts[turn], ranks[turn]
        extra = self._extra(slots, counts)
        head = sum(len(c.tokens) for c in chunks)
        totals = counts + extra
        starts = head + np.cumsum(totals) - totals
        step = self._rows(slots, counts, totals, starts, chunks)
        for job, trie in tries.items():
            self._add_trie(
                step, trie, np.flatnonzero((extra > 0) & (seqs.job[slots] == job)), starts
            )
        step.score = self._scores(slots, counts, starts, tries)
        self._attend_chunks(step)
        self._attend_shared(step, spans, ranks, starts, totals)
        self._attend_own(step, starts, totals, tries)
        return step

    def _extra(self, slots: Int64Array, counts: Int64Array) -> Int64Array:
        """Trie nodes that follow each sequence's own tokens in this step."""
        seqs = self._seqs
        ends = seqs.computed[slots] + counts == seqs.known[slots]
        return np.where(ends, seqs.extra[slots], 0)

    def _rows(
        self,
        slots: Int64Array,
        counts: Int64Array,
        totals: Int64Array,
        starts: Int64Array,
        chunks: Sequence[Chunk],
    ) -> Step:
        seqs = self._seqs
        head = sum(len(c.tokens) for c in chunks)
        rows = head + int(totals.sum())
        tokens, positions = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        chunk_rows, at = [], 0
        for chunk in chunks:
            n = len(chunk.tokens)
            tokens[at : at + n] = chunk.tokens
            positions[at : at + n] = np.arange(chunk.base, chunk.base + n)
            chunk_rows.append(at)
            at += n
        done = seqs.computed[slots]
        place = ranges(starts, counts)
        own = ranges(slots * seqs.tokens.shape[1] + done, counts)
        tokens[place] = seqs.tokens.reshape(-1)[own]
        positions[place] = ranges(seqs.base[slots] + done, counts)
        write_rows, write_slots = self._writes(slots, counts, starts)
        samples = (seqs.kind[slots] == Kind.GENERATE) & (done + counts == seqs.known[slots])
        return Step(
            tokens, positions, slots, counts, write_rows, write_slots,
            (starts + counts - 1)[samples], slots[samples], _no_score(),
            tuple(chunks), tuple(chunk_rows),
        )  # fmt: skip

    def _writes(
        self, slots: Int64Array, counts: Int64Array, starts: Int64Array
    ) -> tuple[Int64Array, Int64Array]:
        """(rows whose KV goes to pages, where it goes)"""
        seqs, kept = self._seqs, self._seqs.stores(slots, counts)
        slots, counts, starts = slots[kept], counts[kept], starts[kept]
        page, offset = np.divmod(ranges(seqs.computed[slots], counts), self._page_tokens)
        page += np.repeat(slots * seqs.table.shape[1], counts)
        pages = seqs.table.reshape(-1)[page].astype(np.int64)
        return ranges(starts, counts), pages * self._page_tokens + offset

    def _add_trie(self, step: Step, trie: LabelTrie, which: Int64Array, starts: Int64Array) -> None:
        seqs, slots = self._seqs, step.slots[which]
        place = (starts + step.counts)[which][:, None] + np.arange(len(trie.tokens))
        step.tokens[place] = trie.tokens
        step.positions[place] = (seqs.base + seqs.known)[slots][:, None] + trie.depth - 1

    def _scores(
        self,
        slots: Int64Array,
        counts: Int64Array,
        starts: Int64Array,
        tries: Mapping[int, LabelTrie],
    ) -> Score:
        seqs, parts = self._seqs, [_no_score()]
        if not tries and not (seqs.kind[slots] == Kind.LIKELIHOOD).any():
            return parts[0]
        ends = seqs.computed[slots] + counts == seqs.known[slots]
        for job, trie in tries.items():
            which = np.flatnonzero(ends & (seqs.job[slots] == job))
            last = (starts + counts - 1)[which]
            rows = last[:, None] + trie.edge_node
            edges, n = len(trie.edge_node), len(which)
            owners, at = np.repeat(slots[which], edges), np.tile(np.arange(edges), n)
            parts.append(Score(rows.ravel(), np.tile(trie.edge_token, n), owners, at))
        which = np.flatnonzero(seqs.kind[slots] == Kind.LIKELIHOOD)
        owner, column = spread(counts[which])
        slot = slots[which][owner]
        at = seqs.computed[slot] + column + 1 - seqs.prompt[slot]
        seen = at >= 0
        slot, at = slot[seen], at[seen]
        targets = seqs.tokens[slot, seqs.prompt[slot] + at].astype(np.int64)
        rows = (starts[which][owner] + column)[seen]
        parts.append(Score(rows, targets, slot, at))
        columns = [np.concatenate(c) for c in zip(*(_columns(p) for p in parts), strict=True)]
        return Score(*columns)

    def _attend_chunks(self, step: Step) -> None:
        for row, chunk in zip(step.chunk_rows, step.chunks, strict=True):
            n = len(chunk.tokens)
            rows = np.arange(row, row + n)[None]
            step.own.append(Own(rows, np.ones((1, n), bool), None))
            if chunk.path:
                step.dense.append(Dense(row, row + n, chunk.path))

    def _attend_shared(
        self,
        step: Step,
        spans: Sequence[Span],
        ranks: Int64Array,
        starts: Int64Array,
        totals: Int64Array,
    ) -> None:
        """One dense pass per shared stretch; of those that single rows see, some are gathered. Made
        once for steps in which the same rows stand at the same places."""
        last, now = self._shared[0], (ranks, starts, totals)
        same = spans is self._shared[1] and all(map(np.array_equal, last, now))
        if not same:
            self._shared = (now, spans, *self._share(spans, *now))
        _, _, dense, step.gather = self._shared
        step.dense += dense

    def _share(
        self, spans: Sequence[Span], ranks: Int64Array, starts: Int64Array, totals: Int64Array
    ) -> tuple[list[Dense], Gather | None]:
        dense: list[Dense] = []
        single: list[Dense] = []
        first = np.searchsorted(ranks, np.arange(int(ranks.max(initial=-1)) + 2))
        for span in spans:
            lo, hi = int(first[span.first]), int(first[span.last])
            rows = (int(starts[lo]), int(starts[hi - 1] + totals[hi - 1]))
            alone = rows[1] - rows[0] == hi - lo
            (single if alone else dense).append(Dense(*rows, span.runs))
        rows_of = np.array([part.last - part.first for part in single], np.int64)
        sizes = np.array([sum(n for _, n in part.runs) for part in single], np.int64)
        picked = self._gathers(rows_of, sizes)
        dense += [part for part, pick in zip(single, picked, strict=True) if not pick]
        if not picked.any():
            return dense, None
        return dense, gathered([single[i] for i in np.flatnonzero(picked).tolist()])

    def _attend_own(
        self, step: Step, starts: Int64Array, totals: Int64Array, tries: Mapping[int, LabelTrie]
    ) -> None:
        seqs, slots = self._seqs, step.slots
        past = seqs.computed[slots]
        decodes = (past > 0) & (totals == 1)
        for lo in buckets(totals, np.flatnonzero(~decodes), MASK_CELLS):
            step.own.append(self._own(step, lo, starts, totals, tries))
        for i in np.flatnonzero((past > 0) & ~decodes).tolist():
            last = int(starts[i] + totals[i])
            pages = seqs.pages_of(int(slots[i]))
            step.history.append(History(int(starts[i]), last, pages.copy(), int(past[i])))
        which = np.flatnonzero(decodes)
        if len(which):
            lengths = past[which] + 1
            width = int(-(-lengths.max() // self._page_tokens))
            table = seqs.table[slots[which], :width].astype(np.int64)
            unused = np.arange(width) >= seqs.held[slots[which]][:, None]
            table = np.where(unused, table[:, :1], table)  # its own page: finite
            step.decode = Decode(starts[which], table, lengths)

    def _own(
        self,
        step: Step,
        which: Int64Array,
        starts: Int64Array,
        totals: Int64Array,
        tries: Mapping[int, LabelTrie],
    ) -> Own:
        length = int(totals[which].max())
        column = np.arange(length)
        rows = starts[which][:, None] + np.minimum(column, totals[which][:, None] - 1)
        valid = column < totals[which][:, None]
        branched = np.flatnonzero(totals[which] > step.counts[which])
        if not len(branched):
            return Own(rows, valid, None)
        mask = np.broadcast_to(np.tri(length, dtype=bool), (len(which), length, length)).copy()
        for b in branched.tolist():
            tree = tries[int(self._seqs.job[step.slots[which[b]]])].mask
            lo, hi = int(step.counts[which[b]]), int(totals[which[b]])
            mask[b, lo:hi, lo:hi] = tree
        return Own(rows, valid, mask)


def _no_score() -> Score:
    return Score(*(np.empty(0, np.int64) for _ in range(4)))


def _columns(score: Score) -> tuple[Int64Array, ...]:
    return score.rows, score.targets, score.slots, score.at


def buckets(lengths: Int64Array, which: Int64Array, cells: int) -> list[Int64Array]:
    """Group stretches of similar length (at most a quarter of padding), and few enough that
    B * L * L stays within `cells`."""
    out = []
    order = which[np.argsort(-lengths[which], kind="stable")]
    while len(order):
        longest = int(lengths[order[0]])
        size = int(np.searchsorted(-lengths[order], -0.75 * longest, side="right"))
        size = max(1, min(size, cells // (longest * longest)))
        out.append(np.sort(order[:size]))
        order = order[size:]
    return out


def gathered(parts: Sequence[Dense]) -> Gather:
    """One batched pass for single rows with several stretches each."""
    runs = [(p.first, p.last - p.first, *run) for p in parts for run in p.runs]
    first, count, slot, size = np.array(runs, np.int64).T
    rows, run = ranges(first, count), np.repeat(np.arange(len(runs)), count)
    turn = np.argsort(rows, kind="stable")  # a row's stretches in the order of its path
    rows, run = rows[turn], run[turn]
    begins = np.flatnonzero(np.diff(rows, prepend=-1))
    lengths = np.add.reduceat(size[run], begins)
    table = np.repeat(slot[run[begins]][:, None], int(lengths.max()), axis=1)  # padding: its first
    table[np.arange(table.shape[1]) < lengths[:, None]] = ranges(slot[run], size[run])
    return Gather(rows[begins], table, lengths)
