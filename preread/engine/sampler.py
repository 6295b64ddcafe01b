"""From hidden rows to tokens and log-probabilities. The LM head runs on needed rows only, in
blocks, so that the logits of a long continuation never lie in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from preread.engine.sequence import Sequences
from preread.engine.staging import arriving, staged
from preread.engine.step import Score, Step
from preread.kernels.rows import RowStats, row_stats
from preread.kernels.sample import draw, uniform
from preread.models.interface import Decoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Float32Array, Int32Array, Int64Array

Probe = Callable[["Int64Array", torch.Tensor], None]  # (slots [R], logits [R, V])
LOGITS = {"cpu": 1 << 26, "cuda": 1 << 28}  # most logits held at once
SORTED = 8  # times the memory of a logit that drawing takes


class Outcome(NamedTuple):
    """tokens, logprobs, broken: [samples] (broken: logits that are not finite, the token means
    nothing); scores, agree: [scores], log-probability of each target and whether it was the
    arg-max."""

    tokens: Int32Array
    logprobs: Float32Array
    broken: NDArray[np.bool_]
    scores: Float32Array
    agree: NDArray[np.bool_]


class Sampler:
    """Reads the sampling columns of the sequences and changes nothing. probe: sees the logits of
    every row that is about to get a token (for parity checks)."""

    def __init__(self, decoder: Decoder, seqs: Sequences) -> None:
        self._decoder = decoder
        self._seqs = seqs
        self._rows = max(1, LOGITS[decoder.device.type] // decoder.vocab_size)
        self.probe: Probe | None = None
        # The tokens that the last step chose; see Sequences.promise.
        self.last = torch.zeros(len(seqs), dtype=torch.int32, device=decoder.device)

    def waits(self, step: Step) -> bool:
        """Whether the host must see this step's tokens before the next step can be made."""
        seqs = self._seqs
        bound = seqs.matchers and any(slot in seqs.matchers for slot in step.sample_slots.tolist())
        return bool(bound) or self.probe is not None

    def plain(self, step: Step) -> bool:
        """Whether every row of a step wants its best token and nothing else is to be known."""
        seqs, slots = self._seqs, step.sample_slots
        asked = seqs.temperature[slots].any() or seqs.logprobs[slots].any()
        return not (asked or self.waits(step))

    def outcome(self, step: Step, hidden: torch.Tensor, stats: RowStats | None = None) -> Flight:
        """hidden [T, E] of the step's rows. stats: of every row, of a step that is `plain`. Does
        not wait for the device."""
        if stats is None:
            sampled = self._sample(step, hidden)
        else:
            rows = self._index(step.sample_rows)
            best, top = stats.best[rows], stats.top[rows]
            sampled = _packed(best, torch.zeros_like(top), top)
        self.last[: sampled.shape[1]] = sampled[0]
        return Flight(sampled, *self._score(step.score, hidden))

    def _sample(self, step: Step, hidden: torch.Tensor) -> torch.Tensor:
        packed = [self.last.new_empty((3, 0))]
        drawn = bool(self._seqs.temperature[step.sample_slots].any())
        asked = bool(self._seqs.logprobs[step.sample_slots].any())
        block = max(1, self._rows // SORTED) if drawn else self._rows
        for lo in range(0, len(step.sample_rows), block):
            slots = step.sample_slots[lo : lo + block]
            rows = self._index(step.sample_rows[lo : lo + block])
            logits = self._decoder.logits(hidden[rows])
            if self.probe is not None:
                self.probe(slots, logits.float())
            stats = row_stats(logits, mass=asked)
            chosen = self._choose(slots, logits, stats)
            logprobs = torch.zeros_like(stats.top)
            if asked and stats.lse is not None:
                logprobs = logits.gather(-1, chosen[:, None])[:, 0].float() - stats.lse
            packed.append(_packed(chosen, logprobs, stats.top))
        return torch.cat(packed, dim=1)

    def _index(self, places: Int64Array) -> torch.Tensor:
        """On the device, without waiting for it, as a plain copy would: what it works on now is
        the step that this belongs to."""
        return staged([places.astype(np.int32)], self.last.device)[0]

    def _choose(self, slots: Int64Array, logits: torch.Tensor, stats: RowStats) -> torch.Tensor:
        seqs = self._seqs
        drawn = seqs.temperature[slots].any()
        if not drawn and not seqs.matchers:
            return stats.best
        allowed = self._masked(slots, logits.float())
        if not drawn:
            return allowed.argmax(-1)
        numbers = uniform(seqs.seed[slots], seqs.done[slots])
        columns = (seqs.temperature[slots], seqs.top_k[slots], seqs.top_p[slots], numbers)
        return draw(allowed, *(arriving(c, logits.device) for c in columns))

    def _masked(self, slots: Int64Array, logits: torch.Tensor) -> torch.Tensor:
        """Logits with what the rows' grammars forbid at -inf; the originals are left alone."""
        matchers = {i: self._seqs.matchers.get(s) for i, s in enumerate(slots.tolist())}
        bound = [(i, m) for i, m in matchers.items() if m is not None]
        if not bound:
            return logits
        mask = np.ones(logits.shape, bool)
        for i, matcher in bound:
            mask[i] = matcher.mask()[: logits.shape[1]]
        return logits.masked_fill(~torch.from_numpy(mask).to(logits.device), -torch.inf)

    def _score(self, score: Score, hidden: torch.Tensor) -> tuple[torch.Tensor, Int64Array]:
        """int32 [2, scores]: agrees, log-probability; and the place of each."""
        packed = [self.last.new_empty((2, 0))]
        if not len(score.rows):  # of most steps, and the rest of this costs as much as sampling
            return packed[0], np.empty(0, np.int64)
        unique, inverse = np.unique(score.rows, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        cuts = np.searchsorted(inverse[order], np.arange(0, len(unique), self._rows))
        for lo, part in zip(
            range(0, len(unique), self._rows), np.split(order, cuts[1:]), strict=False
        ):
            rows = self._index(unique[lo : lo + self._rows])
            logits = self._decoder.logits(hidden[rows])
            picks, targets = self._index(inverse[part] - lo), self._index(score.targets[part])
            stats = row_stats(logits)
            assert stats.lse is not None
            values = logits[picks, targets].float() - stats.lse[picks]
            agree = stats.best[picks] == targets
            packed.append(torch.stack((agree.to(torch.int32), values.view(torch.int32))))
        return torch.cat(packed, dim=1), order


class Flight:
    """An outcome on its way from the device: the copy is under way, nobody waits yet."""

    def __init__(self, sampled: torch.Tensor, scored: torch.Tensor, order: Int64Array) -> None:
        self._parts = [_leaving(sampled), _leaving(scored)]
        self._order = order
        self._event: torch.cuda.Event | None = None
        if sampled.device.type == "cuda":
            self._event = torch.cuda.current_stream(sampled.device).record_event()

    def outcome(self) -> Outcome:
        """The one place where a step waits for the device."""
        if self._event is not None:
            self._event.synchronize()
        sampled, scored = (part.numpy() for part in self._parts)
        scores = np.zeros(len(self._order), np.float32)
        agree = np.zeros(len(self._order), bool)
        scores[self._order], agree[self._order] = scored[1].view(np.float32), scored[0] != 0
        return Outcome(
            sampled[0], sampled[1].view(np.float32), sampled[2] != 0, scores, agree
        )  # fmt: skip


def _leaving(x: torch.Tensor) -> torch.Tensor:
    if x.device.type == "cpu":
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)


def _packed(tokens: torch.Tensor, logprobs: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """int32 [3, R]: one copy to the host instead of three."""
    broken = ~top.isfinite()
    columns = (tokens.to(torch.int32), logprobs.float().view(torch.int32), broken.to(torch.int32))
    return torch.stack(columns)


def resolved(tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Tokens with what they promise (see Sequences.promise) in its place."""
    return torch.where(tokens < 0, last[(-1 - tokens).clamp_min(0)].to(tokens.dtype), tokens)
