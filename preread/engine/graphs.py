"""CUDA graphs of decoding steps: a step of some hundred kernels becomes one launch.

A graph is captured for a bucket of sizes when it is first needed: rows, items of shared keys, pages
of a row, and what it computes at its end. A smaller step is padded: rows that write nowhere, see
nothing and are looked at by nobody, items without keys. Everything a graph reads of a step lies
in one buffer, so a step is one copy and one launch.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from preread.engine.arena import Arena
from preread.engine.pages import Pages
from preread.engine.staging import needed
from preread.engine.tiled import Device, Lists, Writes, forward
from preread.kernels.lists import Parts, Tail
from preread.kernels.rows import RowStats, row_stats
from preread.models.interface import Decoder

if TYPE_CHECKING:
    from preread.types import Int32Array

log = logging.getLogger("preread.engine")
GRAPHS = 64  # kept at most: each holds some MiB of the driver's memory
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)


class Key(NamedTuple):
    """The sizes of a graph. stats: whether the LM head and the best tokens are part of it."""

    rows: int
    items: int
    width: int
    parts: int
    folded: int
    stats: bool


class Made(NamedTuple):
    """A captured graph, the buffer it reads and the tensors it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor
    hidden: torch.Tensor
    stats: RowStats | None


class NotCaptured(RuntimeError):
    """This decoder's steps cannot be made a graph."""


class DecodeGraphs:
    """Runs decoding steps of a decoder over an arena and pages."""

    def __init__(
        self, decoder: Decoder, arena: Arena, pages: Pages, last: torch.Tensor, *, head: bool = True
    ) -> None:
        """last: see `Sampler`; read by every graph. head: whether logits are computed here."""
        self._last, self._head = last, head
        self._decoder, self._arena, self._pages = decoder, arena, pages
        self._made: dict[Key, Made] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(decoder.device)  # type: ignore[no-untyped-call]
        self.usable = True

    def run(self, lists: Lists, *, stats: bool) -> tuple[torch.Tensor, RowStats | None]:
        """Hidden rows [B, E] of a step whose rows all decode and, if asked for, their statistics,
        which those of the padding follow. Good until the next run."""
        key = key_of(lists, stats=stats)
        full = padded(lists, key)
        if (made := self._made.get(key)) is None:
            if len(self._made) >= GRAPHS:
                torch.cuda.synchronize()  # it may be running
                del self._made[next(iter(self._made))]
            made = self._capture(full, key)
        else:
            del self._made[key]  # the last used is the last to be dropped
            Device.of(full, self._decoder.device, made.inputs)
            made.graph.replay()
        self._made[key] = made
        rows = len(lists.tokens)
        return made.hidden[:rows], made.stats

    def _capture(self, full: Lists, key: Key) -> Made:
        """Run once, which compiles what it needs, then capture. A decoder that cannot be captured
        makes graphs no longer `usable`; the error is raised, and the step is run again."""
        size = needed([array for group in full.groups for array in group])
        inputs = torch.empty(size, dtype=torch.int32, device=self._decoder.device)
        step = Device.of(full, self._decoder.device, inputs)._replace(most_parts=key.parts)
        self._forward(step, key)
        if not self._made:  # a pool whose graphs are all gone cannot be used again
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            hidden, stats = self._recorded(graph, step, key)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise NotCaptured from error  # this time; there may be room for it later
        except RuntimeError as error:
            self.usable = False
            log.warning("steps are not captured: %s", str(error).splitlines()[0])
            raise NotCaptured from error
        graph.replay()  # what was captured has not run
        return Made(graph, inputs, hidden, stats)

    def _recorded(
        self, graph: torch.cuda.CUDAGraph, step: Device, key: Key
    ) -> tuple[torch.Tensor, RowStats | None]:
        """The launches of a step, recorded instead of run. Unlike `torch.cuda.graph` it leaves the
        cached memory where it is, and the current stream current when recording fails."""
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            # Other threads may copy meanwhile: only this one's calls are looked at.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                made = self._forward(step, key)
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        here.wait_stream(self._stream)
        return made

    def _forward(self, step: Device, key: Key) -> tuple[torch.Tensor, RowStats | None]:
        hidden = forward(self._decoder, step, self._arena, self._pages, self._last)
        stats = key.stats and self._head
        return hidden, row_stats(self._decoder.logits(hidden)) if stats else None


def key_of(lists: Lists, *, stats: bool) -> Key:
    """The bucket of a step."""
    tail, parts = lists.tail, lists.parts
    assert tail is not None and parts is not None
    count = len(lists.tokens)
    rows = next((n for n in ROWS if n >= count), -(-count // 128) * 128)
    most = int(tail.counts.max(initial=0))
    items = _power(len(parts.items), 16) if most else 0
    return Key(rows, items, _power(tail.table.shape[1], 4), _power(most, 1), lists.rows, stats)


def padded(lists: Lists, key: Key) -> Lists:
    """The same step in its bucket's shapes."""
    tail, parts = lists.tail, lists.parts
    assert tail is not None and parts is not None
    count, more = len(lists.tokens), key.rows - len(lists.tokens)
    fresh = np.arange(count, key.rows, dtype=np.int32)
    table = np.zeros((key.rows, key.width), np.int32)
    table[:count, : tail.table.shape[1]] = tail.table
    items = np.zeros((key.items, 6), np.int32)
    items[: len(parts.items)] = parts.items
    rows, slots = lists.to_pages
    return lists._replace(
        tokens=_longer(lists.tokens, more),
        positions=_longer(lists.positions, more),
        to_pages=Writes(np.concatenate((rows, fresh)), _longer(slots, more, -1)),
        tail=Tail(
            np.concatenate((tail.rows, fresh)), _longer(tail.counts, more),
            _longer(tail.lengths, more), table,
        ),
        parts=Parts(items),
    )  # fmt: skip


def _longer(array: Int32Array, more: int, value: int = 0) -> Int32Array:
    return np.pad(array, (0, more), constant_values=value)


def _power(size: int, least: int) -> int:
    """The next power of two."""
    return max(least, 1 << (size - 1).bit_length()) if size else least
