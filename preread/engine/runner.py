"""Runs a packed step on the device: embed, attend, choose. Knows nothing of jobs or memory."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from preread.engine.arena import Arena
from preread.engine.attend import StepAttention
from preread.engine.pages import Pages
from preread.engine.sampler import Flight, Sampler, resolved
from preread.engine.step import Step
from preread.kernels.rows import RowStats
from preread.models.interface import Attend, Decoder

if TYPE_CHECKING:
    from preread.engine.fast import FastSteps


class Forward:
    """The decoder over the arena and the pages, up to the hidden rows. last: see `Sampler`. fast:
    the kernels and graphs of a CUDA device, for the steps that they cover; None: torch's own calls
    for every step, the slow twin."""

    def __init__(
        self,
        decoder: Decoder,
        arena: Arena,
        pages: Pages,
        last: torch.Tensor,
        fast: FastSteps | None = None,
    ) -> None:
        self._decoder = decoder
        self._arena = arena
        self._pages = pages
        self._last = last
        self.fast = fast
        self._on_gpu = decoder.device.type == "cuda"

    def current(self) -> torch.cuda.device | nullcontext[None]:
        """Triton and streams go by the current device."""
        return torch.cuda.device(self._decoder.device) if self._on_gpu else nullcontext()

    @torch.inference_mode()
    def __call__(self, step: Step, *, stats: bool) -> tuple[torch.Tensor, RowStats | None]:
        """Hidden rows [T, E]; KV is written. stats: where it costs nothing, also what the logits of
        every row say."""
        if self.fast is not None and (lists := self.fast.lists(step)) is not None:
            return self.fast.run(lists, stats=stats, layers=step.layers)
        attention: Attend = StepAttention(step, self._arena, self._pages)
        if step.layers is not None:
            attention = step.layers.before(attention)
        tokens, positions = (
            torch.from_numpy(x).to(self._decoder.device) for x in (step.tokens, step.positions)
        )
        return self._decoder.hidden(resolved(tokens, self._last), positions, attention), None


class Runner:
    """A forward pass and what is read off it."""

    def __init__(self, forward: Forward, sampler: Sampler) -> None:
        self._forward = forward
        self._sampler = sampler

    @torch.inference_mode()
    def launch(self, step: Step) -> Flight:
        """Compute the step; KV is written, nothing else changes. Does not wait for the device where
        the kernels cover the step. Raises whatever the device raises, after which the same step, or
        a smaller one, may be launched again."""
        with self._forward.current():
            hidden, stats = self._forward(step, stats=self._sampler.plain(step))
            return self._sampler.outcome(step, hidden, stats)
