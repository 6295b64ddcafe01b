"""What one row writes: its next token, under its grammar, and when it is done."""

from __future__ import annotations

import numpy as np
import torch

from preread.kernels.sample import draw, uniform
from preread.tokens.batch import ERROR, GOES_ON, LENGTH, STOP, GenerateSpec


class Writer:
    """written: tokens so far; an end token is none. error: what a grammar complained of."""

    def __init__(self, spec: GenerateSpec, seed: int) -> None:
        self._spec = spec
        self._seed = np.array([seed], np.uint64)
        self._matcher = spec.grammar.start() if spec.grammar is not None else None
        self.written = 0

    @property
    def error(self) -> str:
        said = self._matcher.error if self._matcher is not None else ""
        return f"schema: {said}" if said else ""

    def next(self, logits: torch.Tensor) -> tuple[int, float, int]:
        """Take logits [V] -> (token or -1, its natural log-probability or 0, code of FINISHES)."""
        if not bool(logits.amax().isfinite()):
            return -1, 0.0, ERROR
        token = self._pick(logits)
        if token in self._spec.eos:
            return -1, 0.0, STOP
        self.written += 1
        code = LENGTH if self.written >= self._spec.max_tokens else GOES_ON
        if self._matcher is not None and self._matcher.accept(token):
            code = ERROR if self._matcher.error else STOP
        logprob = float(logits[token] - logits.logsumexp(-1)) if self._spec.logprobs else 0.0
        return token, logprob, code

    def _pick(self, logits: torch.Tensor) -> int:
        if self._matcher is not None:
            mask = torch.from_numpy(self._matcher.mask()[: len(logits)])
            logits = logits.masked_fill(~mask.to(logits.device), -torch.inf)
        sampling = self._spec.sampling
        if not sampling.temperature:
            return int(logits.argmax())
        number = uniform(self._seed, np.array([self.written]))
        columns = ([sampling.temperature], [sampling.top_k], [sampling.top_p], number)
        given = (torch.from_numpy(np.asarray(c)).to(logits.device) for c in columns)
        return int(draw(logits[None], *given)[0])
