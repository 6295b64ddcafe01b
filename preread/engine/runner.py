"""Runs a packed step on the device: embed, attend, choose. Knows nothing of jobs or memory."""

from __future__ import annotations

import torch

from preread.engine.arena import Arena
from preread.engine.attend import StepAttention
from preread.engine.pages import Pages
from preread.engine.sampler import Outcome, Sampler
from preread.engine.step import Step
from preread.models.interface import Decoder


class Runner:
    """The decoder over the arena and the pages."""

    def __init__(self, decoder: Decoder, arena: Arena, pages: Pages, sampler: Sampler) -> None:
        self._decoder = decoder
        self._arena = arena
        self._pages = pages
        self._sampler = sampler

    @torch.inference_mode()
    def run(self, step: Step) -> Outcome:
        """Compute the step; KV is written, nothing else changes. Raises whatever the device
        raises, after which the same step, or a smaller one, may be run again."""
        attention = StepAttention(step, self._arena, self._pages)
        tokens, positions = (
            torch.from_numpy(x).to(self._decoder.device) for x in (step.tokens, step.positions)
        )
        hidden = self._decoder.hidden(tokens, positions, attention)
        return self._sampler.outcome(step, hidden)
