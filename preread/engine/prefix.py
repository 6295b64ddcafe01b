"""The prefix tree: which token runs are resident, shared by whoever begins with them.

A node is a segment, a run of tokens as long as no two prompts differ inside it; matching compares
tokens exactly. A holder of a leaf holds the path to it. When a segment splits, the old object keeps
the end, so that what a holder sees does not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from preread.engine.arena import Arena, Run, clip, joined
from preread.engine.segment import Segment
from preread.metrics import Metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Int32Array


class PrefixTree:
    """All segments of one arena. `version` grows when a path changes (a split)."""

    def __init__(self, arena: Arena, metrics: Metrics) -> None:
        self.arena = arena
        self._metrics = metrics
        self.root = Segment(np.empty(0, np.int32), [], 0, None)
        self.segments: set[Segment] = set()
        self.version = 0
        self._unwanted: set[Segment] = set()  # dropped as soon as nobody holds them

    def match(self, tokens: Int32Array) -> tuple[Segment, int]:
        """The segment in which the longest known beginning of `tokens` ends, and its length."""
        return self.follow(self.root, 0, tokens)

    def follow(self, leaf: Segment, base: int, tokens: Int32Array) -> tuple[Segment, int]:
        """The same for tokens that go on where the first `base` of the path to `leaf` end."""
        node = next(iter(self.path(leaf, base)[-1:]), self.root)
        rest = node.tokens[base - node.start :]
        at = common(rest, tokens)
        if at < len(rest):
            return node, at
        while at < len(tokens) and (child := node.children.get(int(tokens[at]))):
            same = common(child.tokens, tokens[at:])
            node, at = child, at + same
            if same < len(child.tokens):
                break
        return node, at

    def goes_on(self, leaf: Segment, base: int, tokens: Int32Array) -> NDArray[np.bool_]:
        """Which of these rows [n, k] the tree may know further where the first `base` tokens of the
        path to `leaf` end: no other is known for k tokens."""
        node = next(iter(self.path(leaf, base)[-1:]), self.root)
        rest = node.tokens[base - node.start :][: tokens.shape[1]]
        if len(rest):
            same: NDArray[np.bool_] = (tokens[:, : len(rest)] == rest).all(1)
            return same
        if not node.children:
            return np.zeros(len(tokens), bool)
        return np.isin(tokens[:, 0], list(node.children))

    def resident(self, tokens: Int32Array) -> bool:
        """Whether the KV of all of `tokens` is there."""
        leaf, found = self.match(tokens)
        return found == len(tokens) == self.ready(leaf, found)

    def covers(self, tokens: Int32Array) -> bool:
        """Whether there is a place for all of `tokens`, read or not, so that none need be made."""
        return self.match(tokens)[1] == len(tokens)

    def fits_beside(
        self, tokens: Int32Array, held: Iterable[Segment], *, linked: bool = True
    ) -> bool:
        """Whether there would be memory for `tokens` if nothing but these segments, and what they
        continue, were held."""
        node, at = self.match(tokens) if linked else (self.root, 0)
        after = sum(clip(node.runs, 0, at - node.start)[-1]) if at else 0
        return self._spare([*held, node]) >= self.arena.need(len(tokens) - at, after)

    def insert(self, tokens: Int32Array, now: float, *, linked: bool = True) -> Segment | None:
        """The segment that covers the last of `tokens`, with memory for all of them; it may reach
        further. Splits and evicts where it must. None: not enough memory. linked=False: a segment
        of its own that nobody will find."""
        node, at = self.match(tokens) if linked else (self.root, 0)
        if at == len(tokens):
            return node
        if at < node.end:
            node = self._split(node, at - node.start)
        node.pins += 1  # room is made at others' cost
        after = sum(node.runs[-1]) if node.runs else 0
        runs = self._room(len(tokens) - at, after, now)
        node.pins -= 1
        if runs is None:
            fits = len(tokens) <= self.arena.capacity
            if node is self.root or not fits or any(s.pins for s in self.segments):
                return None
            # What it shares lies so that the rest does not fit: start anew, in whole extents.
            for segment in sorted(self.segments, key=lambda s: -s.start):
                self._evict(segment, now)
            return self.insert(tokens, now)
        leaf = Segment(tokens[at:].astype(np.int32), runs, at, node, used=now, linked=linked)
        self.segments.add(leaf)
        if linked:
            node.children[int(tokens[at])] = leaf
        return leaf

    def path(self, leaf: Segment, upto: int | None = None) -> list[Segment]:
        """Segments from the first to `leaf`; only those that begin before `upto`."""
        path = []
        node: Segment | None = leaf
        while node is not None and node is not self.root:
            if upto is None or node.start < upto:
                path.append(node)
            node = node.parent
        return path[::-1]

    def runs(self, leaf: Segment, lo: int, hi: int) -> list[Run]:
        """Where tokens [lo, hi) of the path to `leaf` lie."""
        parts = (clip(s.runs, lo - s.start, hi - s.start) for s in self.path(leaf, hi))
        return joined(run for part in parts for run in part)

    def tokens(self, leaf: Segment, upto: int) -> Int32Array:
        """The first `upto` tokens of the path to `leaf`."""
        parts = [self.root.tokens, *(s.tokens for s in self.path(leaf, upto))]
        return np.concatenate(parts)[:upto]

    def ready(self, leaf: Segment, upto: int) -> int:
        """How many of the first `upto` tokens of the path have KV, without a gap."""
        for segment in self.path(leaf, upto):
            if not segment.complete:
                return min(upto, segment.start + segment.ready)
        return upto

    def advance(self, leaf: Segment, upto: int) -> None:
        """The KV of the first `upto` tokens of the path is there."""
        for segment in self.path(leaf, upto):
            if not segment.complete:
                segment.ready = max(segment.ready, min(upto - segment.start, len(segment.tokens)))
                self._join(segment)

    def deliver(self, leaf: Segment, lo: int, hi: int) -> None:
        """The KV of tokens [lo, hi) of the path is there, perhaps behind a gap."""
        for segment in self.path(leaf, hi):
            if not segment.complete:
                segment.deliver(lo, hi)
                self._join(segment)

    def pin(self, leaf: Segment) -> None:
        leaf.pins += 1
        if self._unwanted:  # somebody wants it again
            self._unwanted.difference_update(self.path(leaf))

    def forget(self, tokens: Int32Array) -> None:
        """Drop what begins with `tokens`, and what of its path nobody else continues, leased or
        not: now, or when the last holder lets go."""
        leaf, found = self.match(tokens)
        if not found:
            return
        if found == len(tokens):
            self._unwanted.update(self._walk(leaf))
        if found in (len(tokens), leaf.end):  # else `leaf` ends in other tokens
            self._unwanted.update(self.path(leaf))
        self._drop_unwanted()

    def lease(self, leaf: Segment, upto: int, seconds: float) -> None:
        """From now on, keep the path at least so long after each use."""
        for segment in self.path(leaf, upto):
            segment.lease_s = max(segment.lease_s, seconds)

    def unpin(self, leaf: Segment, now: float) -> None:
        """Let go; the path counts as used now."""
        leaf.pins -= 1
        for segment in self.path(leaf):
            segment.used, segment.lease = now, max(segment.lease, now + segment.lease_s)
        if not leaf.linked and not leaf.pins:
            self._drop(leaf)
        self._drop_unwanted()

    def check(self) -> None:
        """Verify the tree and its arena. Raises AssertionError."""
        self.arena.check(s.runs for s in self.segments)
        seen = set(self._walk(self.root)) - {self.root}
        assert seen == {s for s in self.segments if s.linked}, "a segment is lost"
        assert self._unwanted <= self.segments, "a segment that is gone is to be dropped"
        for segment in self.segments:
            parent = segment.parent
            assert parent is not None and segment.start == parent.end, "a gap in a path"
            segment.check()
            assert not segment.ready or parent.complete, "KV behind a gap"
            reached = parent.complete and segment.stop == segment.start + segment.ready
            assert not segment.ahead or not reached, "no gap before what lies ahead"
            linked = parent.children.get(int(segment.tokens[0])) is segment
            assert linked == segment.linked, "a child under a foreign token"

    def _walk(self, node: Segment) -> Iterator[Segment]:
        """The node and everything below it."""
        todo = [node]
        while todo:
            todo.extend((node := todo.pop()).children.values())
            yield node

    def _join(self, segment: Segment) -> None:
        """See Segment.join, of a segment that has grown and of what continues it."""
        todo = [segment]
        while todo:
            segment = todo.pop()
            assert segment.parent is not None
            if segment.parent.complete:
                segment.join()
            if segment.complete:
                todo.extend(child for child in segment.children.values() if child.ahead)

    def _split(self, node: Segment, at: int) -> Segment:
        """Cut a segment after `at` tokens; returns the new upper part."""
        assert node.parent is not None
        head, tail = self.arena.cut(node.runs, at)
        upper = Segment(
            node.tokens[:at], head, node.start, node.parent, min(node.ready, at),
            {int(node.tokens[at]): node}, 0, node.lease, node.lease_s, node.used, node.loading,
            meeting=node.meeting,
        )  # fmt: skip
        for lo, hi in node.ahead:
            upper.deliver(lo, hi)
        node.parent.children[int(node.tokens[0])] = upper
        node.tokens, node.runs, node.start = node.tokens[at:], tail, node.start + at
        node.ready, node.parent = max(0, node.ready - at), upper
        node.ahead = [(max(lo, node.start), hi) for lo, hi in node.ahead if hi > node.start]
        self.segments.add(upper)
        if node in self._unwanted:
            self._unwanted.add(upper)
        self.version += 1
        return upper

    def _room(self, tokens: int, after: int, now: float) -> list[Run] | None:
        """Allocate, evicting what nobody holds: unleased before leased, oldest use first."""
        if (runs := self.arena.alloc(tokens, after)) is not None:
            return runs
        held = [s for s in self.segments if s.pins or s.loading]
        if self._spare(held) < self.arena.need(tokens, after):
            return None
        while (runs := self.arena.alloc(tokens, after)) is None:
            idle = [s for s in self.segments if not s.children and not s.pins and not s.loading]
            assert idle, "there is room, but nobody to make it"
            for segment in sorted(idle, key=lambda s: (s.lease > now, s.used)):
                self._evict(segment, now)
                if self.arena.free_tokens >= tokens:
                    break
        return runs

    def _spare(self, held: Iterable[Segment]) -> int:
        """Extents that are free once all but these segments and what they continue is gone."""
        stay = {segment for leaf in held for segment in self.path(leaf)}
        return self.arena.spare(segment.runs for segment in stay)

    def _evict(self, leaf: Segment, now: float) -> None:
        self._metrics.add("engine.evicted_tokens", len(leaf.tokens))
        self._metrics.add("engine.leases_broken", leaf.lease > now)
        self._drop(leaf)

    def _drop_unwanted(self) -> None:
        while idle := [s for s in self._unwanted if not (s.children or s.pins or s.loading)]:
            for segment in idle:
                self._metrics.add("engine.forgotten_tokens", len(segment.tokens))
                self._drop(segment)

    def _drop(self, leaf: Segment) -> None:
        assert leaf.parent is not None and not leaf.children and not leaf.pins
        if leaf.linked:
            del leaf.parent.children[int(leaf.tokens[0])]
        self.segments.remove(leaf)
        self._unwanted.discard(leaf)
        self.arena.free(leaf.runs)


def common(a: Int32Array, b: Int32Array) -> int:
    """Length of the common beginning of two token arrays."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def fork(a: Sequence[Segment], b: Sequence[Segment]) -> int:
    """Where two paths part, in tokens."""
    end = 0
    for one, other in zip(a, b, strict=False):
        if one is not other:
            break
        end = one.end
    return end
