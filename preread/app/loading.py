"""The native model of a configuration, on one device or on several that behave as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preread.config import Config

if TYPE_CHECKING:
    from preread.engine.parts import Parts
    from preread.models.load import LoadedModel


def open_model(config: Config, weights: str) -> tuple[LoadedModel, Parts | None]:
    """weights: "load" or "random". parts: what an engine over several devices is made of. Raises
    what load_model and open_group raise."""
    chosen = config.model
    if chosen.gpus > 1:
        from preread.engine.group.open import Wanted, open_group

        return open_group(
            Wanted(
                chosen.model, chosen.gpus, chosen.dtype, chosen.device, weights,
                chosen.weights_precision, chosen.kv_precision, threads=chosen.threads,
                home=config.home,
            )
        )  # fmt: skip
    from preread.models.load import load_model

    loaded = load_model(
        chosen.model,
        dtype=chosen.dtype,
        device=chosen.device,
        weights=weights,
        weights_precision=chosen.weights_precision,
        kv_precision=chosen.kv_precision,
        home=config.home,
    )
    return loaded, None
