"""What an engine keeps on its device, and who makes it: one device by itself, or a group of them
(see engine/group) that behaves as one."""

from __future__ import annotations

import torch

from preread.config import EngineSection
from preread.engine.arena import Arena
from preread.engine.fast import fast_steps
from preread.engine.kv import KVShape
from preread.engine.pages import Pages
from preread.engine.plan import MemoryPlan
from preread.engine.runner import Forward, Runner
from preread.engine.sampler import Sampler
from preread.engine.uploads import Uploads
from preread.models.interface import Decoder


class Parts:
    """The parts of an engine on one device."""

    def pools(self, shape: KVShape, plan: MemoryPlan) -> tuple[Arena, Pages]:
        """Memory for prefixes and for running sequences."""
        arena = Arena(shape, plan.extents, plan.extent_tokens)
        return arena, Pages(shape, plan.pages, plan.page_tokens)

    def runner(
        self, decoder: Decoder, pools: tuple[Arena, Pages], sampler: Sampler, config: EngineSection
    ) -> Runner:
        fast = fast_steps(decoder, config, *pools, sampler.last)
        return Runner(Forward(decoder, *pools, sampler.last, fast), sampler)

    def uploads(self, device: torch.device) -> Uploads:
        """How loaded KV comes to the device: one for each thread that loads."""
        return Uploads(device)

    def close(self) -> None:
        """Let go of other processes."""
