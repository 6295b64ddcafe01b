"""Steps on a CUDA device: the lists of the kernels, a graph where all rows decode."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from preread.config import EngineSection
from preread.engine.arena import Arena
from preread.engine.pages import Pages
from preread.engine.step import Step
from preread.kernels.rows import RowStats
from preread.models.interface import Decoder

if TYPE_CHECKING:
    from preread.engine.graphs import DecodeGraphs
    from preread.engine.layers import Layers
    from preread.engine.tiled import Lists


def fast_covers(decoder: Decoder, config: EngineSection, kv_precision: str) -> bool:
    """Whether there are kernels for a device, model and form of KV, and they are wanted."""
    if decoder.device.type != "cuda" or config.kernels == "stock":
        return False
    from preread.kernels.cuda.attention import supports
    from preread.kernels.cuda.probe import attention_works

    kind = (decoder.dtype, decoder.head_dim, decoder.heads // decoder.kv_heads)
    return supports(*kind) and attention_works(decoder.device, *kind, kv_precision)


def fast_steps(
    decoder: Decoder, config: EngineSection, arena: Arena, pages: Pages, last: torch.Tensor,
    *, head: bool = True,
) -> FastSteps | None:  # fmt: skip
    """None where torch's own calls do all. last: see `Sampler`. head: whether logits are computed
    here."""
    if not fast_covers(decoder, config, arena.shape.precision):
        return None
    graphs = None
    if config.graphs:
        from preread.engine.graphs import DecodeGraphs

        graphs = DecodeGraphs(decoder, arena, pages, last, head=head)
    return FastSteps(decoder, arena, pages, last, graphs)


class FastSteps:
    """graphs: decoding steps are captured and replayed; None: launched kernel by kernel."""

    def __init__(
        self, decoder: Decoder, arena: Arena, pages: Pages, last: torch.Tensor,
        graphs: DecodeGraphs | None,
    ) -> None:  # fmt: skip
        """last: see `Sampler`."""
        from preread.engine.tiled import Layout

        processors = torch.cuda.get_device_properties(decoder.device).multi_processor_count
        fold = decoder.heads // decoder.kv_heads
        self._layout = Layout(fold, decoder.kv_heads, decoder.head_dim, processors)
        self._decoder, self._arena, self._pages = decoder, arena, pages
        self._last = last
        self.graphs = graphs

    def lists(self, step: Step) -> Lists | None:
        """None where a step needs torch's own calls."""
        return self._layout.lists(step)

    def run(
        self, lists: Lists, *, stats: bool, layers: Layers | None = None
    ) -> tuple[torch.Tensor, RowStats | None]:
        """Hidden rows [T, E]; where a graph ran, perhaps with what their logits say. layers: see
        Step; a graph waits for nobody."""
        from preread.engine.graphs import NotCaptured
        from preread.engine.tiled import Device, forward

        graphs = self.graphs if layers is None else None
        if graphs is not None and graphs.usable and lists.decodes:
            with contextlib.suppress(NotCaptured):
                return graphs.run(lists, stats=stats)
        step = Device.of(lists, self._decoder.device)
        return forward(self._decoder, step, self._arena, self._pages, self._last, layers), None
