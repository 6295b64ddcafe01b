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
from preread.models.interface import Decoder

if TYPE_CHECKING:
    from preread.engine.fast import FastSteps


class Runner:
    """The decoder over the arena and the pages. fast: the kernels and graphs of a CUDA device,
    for the steps that they cover; None: torch's own calls for every step, the slow twin."""

    def __init__(
        self,
        decoder: Decoder,
        arena: Arena,
        pages: Pages,
        sampler: Sampler,
        fast: FastSteps | None = None,
    ) -> None:
        self._decoder = decoder
        self._arena = arena
        self._pages = pages
        self._sampler = sampler
        self._fast = fast
        # Triton and streams go by the current device.
        on_gpu = decoder.device.type == "cuda"
        self._current = torch.cuda.device(decoder.device) if on_gpu else nullcontext()

    @torch.inference_mode()
    def launch(self, step: Step) -> Flight:
        """Compute the step; KV is written, nothing else changes. Does not wait for the device where
        the kernels cover the step. Raises whatever the device raises, after which the same step, or
        a smaller one, may be launched again."""
        with self._current:
            return self._launch(step)

    def _launch(self, step: Step) -> Flight:
        if self._fast is not None and (lists := self._fast.lists(step)) is not None:
            hidden, stats = self._fast.run(lists, stats=self._sampler.plain(step))
            return self._sampler.outcome(step, hidden, stats)
        attention = StepAttention(step, self._arena, self._pages)
        tokens, positions = (
            torch.from_numpy(x).to(self._decoder.device) for x in (step.tokens, step.positions)
        )
        hidden = self._decoder.hidden(resolved(tokens, self._sampler.last), positions, attention)
        return self._sampler.outcome(step, hidden)
