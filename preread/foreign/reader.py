"""Reading, in pieces: what is known is not read again, and between two pieces others get their
turn."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from preread.foreign.cache import KV, fork
from preread.foreign.memory import Memory
from preread.foreign.net import Ability, Net

if TYPE_CHECKING:
    from preread.types import Int32Array

T = TypeVar("T")
# Work in steps, on the model's thread; yields whether it holds a cache between this and the next.
Steps = Generator[bool, None, T]


def _none() -> Int32Array:
    return np.empty(0, np.int32)


@dataclass(slots=True, eq=False)
class Run:
    """One sequence on its way. tokens: read so far; cache: has read them (None: nothing kept);
    whole: it will be taken and kept; reuse: memory may be asked for its beginning; reused: how
    many tokens memory had when it began; computed: passed through the model."""

    whole: bool = False
    reuse: bool = True
    tokens: Int32Array = field(default_factory=_none)
    cache: Any = None
    regime: int = 0
    reused: int = 0
    computed: int = 0


class Reader:
    """On the model's thread only. piece: most tokens of one pass."""

    def __init__(self, net: Net, memory: Memory, piece: int) -> None:
        self._net = net
        self._memory = memory
        self._piece = piece

    def read(self, run: Run, new: Int32Array, keep: int = 1) -> Steps[torch.Tensor]:
        """Read on. -> logits of the last `keep` (>= 1) of the new tokens, [keep, V]."""
        net, start = self._net, len(run.tokens)
        tokens = np.concatenate((run.tokens, new))
        if not self._goes_on(run, len(tokens)):
            start = self._begin(run, tokens[: len(tokens) - keep], len(tokens))
        logits = []
        while start < len(tokens):
            stop = self._stop(start, len(tokens), run.regime)
            wanted = max(0, min(stop - start, stop - len(tokens) + keep))
            said = net.forward(tokens[start:stop], run.cache, past=start, keep=max(1, wanted))
            logits += [said[len(said) - wanted :]] if wanted else []
            run.computed += stop - start
            run.tokens, start = tokens[:stop], stop
            if start < len(tokens):
                yield True
        return torch.cat(logits)

    def resume(self, run: Run, kv: KV, tokens: Int32Array, regime: int) -> None:
        """Begin after tokens whose KV is given."""
        run.cache = self._net.caches.restore(kv, whole=run.whole)
        run.tokens, run.regime, run.reused = tokens[: kv.tokens], regime, kv.tokens

    def branch(self, run: Run) -> Run:
        """The same text, to be continued otherwise."""
        if self._net.ability is Ability.KEEP:
            cache = fork(run.cache)
            return Run(reuse=run.reuse, tokens=run.tokens, cache=cache, regime=run.regime)
        return Run(reuse=run.reuse, tokens=run.tokens)

    def kept(self, run: Run, tokens: int | None = None) -> KV:
        """The KV of what a whole run has read, or of its first tokens."""
        count = len(run.tokens) if tokens is None else tokens
        return self._net.caches.take(run.cache, count)

    def _goes_on(self, run: Run, total: int) -> bool:
        """Whether the cache may be continued; if not, all is read again."""
        if run.cache is None or run.regime != self._net.regime(total):
            return False
        if self._net.ability is Ability.STEP:
            return total == len(run.tokens) + 1
        return self._net.ability is Ability.KEEP

    def _begin(self, run: Run, before: Int32Array, total: int) -> int:
        """Start over: a cache that holds as much of `before` as memory has. -> how much."""
        net, first = self._net, not len(run.tokens)
        regime = net.regime(total)
        run.tokens, run.regime = before[:0], regime
        if net.ability is not Ability.KEEP:
            run.cache = net.caches.own() if net.ability is Ability.STEP else None
            return 0
        kv = self._memory.longest(before, regime) if run.reuse else None
        if kv is None:
            run.cache = net.caches.fresh(whole=run.whole)
            return 0
        reused = run.reused
        self.resume(run, kv, before, regime)
        if not first:  # a text that outgrew its regime: its report stays what it was
            run.reused = reused
        return kv.tokens

    def _stop(self, start: int, end: int, regime: int) -> int:
        """Where a pass ends that begins at `start`."""
        if self._net.ability is not Ability.KEEP:
            return end
        return min(end, max(start + self._piece, self._net.reach(regime)))
