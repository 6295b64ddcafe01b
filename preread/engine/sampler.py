"""From hidden rows to tokens and log-probabilities. The LM head runs on needed rows only, in
blocks, so that the logits of a long continuation never lie in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch

from preread.engine.sequence import Sequences
from preread.engine.step import Score, Step
from preread.kernels.sample import draw, uniform
from preread.models.interface import Decoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Float32Array, Int32Array, Int64Array

_T = TypeVar("_T", bound=np.generic)

Probe = Callable[["Int64Array", torch.Tensor], None]  # (slots [R], logits [R, V])
LOGITS = 1 << 26  # most logits held at once: 256 MiB


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
        self._rows = max(1, LOGITS // decoder.vocab_size)
        self.probe: Probe | None = None

    def outcome(self, step: Step, hidden: torch.Tensor) -> Outcome:
        """hidden [T, E] of the step's rows."""
        return Outcome(*self._sample(step, hidden), *self._score(step.score, hidden))

    def _sample(
        self, step: Step, hidden: torch.Tensor
    ) -> tuple[Int32Array, Float32Array, NDArray[np.bool_]]:
        tokens, logprobs, broken = [], [], []
        for lo in range(0, len(step.sample_rows), self._rows):
            slots = step.sample_slots[lo : lo + self._rows]
            rows = torch.from_numpy(step.sample_rows[lo : lo + self._rows]).to(hidden.device)
            logits = self._decoder.logits(hidden[rows])
            if self.probe is not None:
                self.probe(slots, logits)
            broken.append(~logits.amax(-1).isfinite())
            chosen = self._choose(slots, logits)
            tokens.append(chosen)
            logprobs.append(self._logprobs(slots, logits, chosen))
        return (
            _host(tokens, np.int32), _host(logprobs, np.float32), _host(broken, np.bool_),
        )  # fmt: skip

    def _choose(self, slots: Int64Array, logits: torch.Tensor) -> torch.Tensor:
        seqs = self._seqs
        allowed = self._masked(slots, logits)
        if not seqs.temperature[slots].any():
            return allowed.argmax(-1)
        numbers = uniform(seqs.seed[slots], seqs.done[slots])
        columns = (seqs.temperature[slots], seqs.top_k[slots], seqs.top_p[slots], numbers)
        return draw(allowed, *(torch.from_numpy(c).to(logits.device) for c in columns))

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

    def _logprobs(
        self, slots: Int64Array, logits: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        if not self._seqs.logprobs[slots].any():
            return logits.new_zeros(len(slots))
        return _logprob(logits, tokens)

    def _score(self, score: Score, hidden: torch.Tensor) -> tuple[Float32Array, NDArray[np.bool_]]:
        values, agree = [], []
        unique, inverse = np.unique(score.rows, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        cuts = np.searchsorted(inverse[order], np.arange(0, len(unique), self._rows))
        for lo, part in zip(
            range(0, len(unique), self._rows), np.split(order, cuts[1:]), strict=False
        ):
            rows = torch.from_numpy(unique[lo : lo + self._rows]).to(hidden.device)
            logits = self._decoder.logits(hidden[rows])
            picks = torch.from_numpy(inverse[part] - lo).to(hidden.device)
            targets = torch.from_numpy(score.targets[part]).to(hidden.device)
            values.append(logits[picks, targets] - logits.logsumexp(-1)[picks])
            agree.append(logits.argmax(-1)[picks] == targets)
        out, same = np.zeros(len(order), np.float32), np.zeros(len(order), bool)
        out[order], same[order] = _host(values, np.float32), _host(agree, np.bool_)
        return out, same


def _logprob(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


def _host(parts: list[torch.Tensor], dtype: type[_T]) -> NDArray[_T]:
    """The one place where a step waits for the device."""
    if not parts:
        return np.empty(0, dtype)
    return torch.cat(parts).cpu().numpy().astype(dtype, copy=False)
