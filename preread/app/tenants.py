"""Engines of other tenants in one process: the same weights, and nothing else in common."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from preread.app.compose import Parts, native_parts, remote, remote_parts
from preread.errors import ConfigError

if TYPE_CHECKING:
    from preread.config import EngineSection
    from preread.models.load import LoadedModel

ALONE = "Start a process for each tenant, with PREREAD_STORE_TENANT and a key of its own."


def parts_for(parts: Parts, tenant: str, among: int) -> Parts:
    """What answers for a tenant: its own names, chunks, memory and counters, so that neither a hit
    nor a count tells it anything of the others. among: so many tenants divide the memory that one
    engine would take. Raises ConfigError where weights cannot be shared so."""
    store = parts.config.store
    if store.shared:  # its names and chunks would be everybody's
        raise ConfigError(
            f"store.shared = {store.shared!r}: tenants of one server share nothing.",
            hint="Remove it, or start a process for each tenant.",
        )
    config = replace(parts.config, store=replace(store, tenant=tenant))
    if remote(config.model.backend):
        return remote_parts(config, config.model.backend, config.model.model)
    if parts.loaded is None:
        raise ConfigError("This model serves one tenant: transformers computes it.", hint=ALONE)
    if config.model.gpus > 1 or parts.loaded.decoder.device.type != "cpu":
        # Two engines' streams and graphs on one device were never tried together.
        raise ConfigError("On a GPU a process serves one tenant.", hint=ALONE)
    config = replace(config, engine=_share(config.engine, parts.loaded, among))
    return native_parts(config, parts.loaded, None)


def _share(engine: EngineSection, loaded: LoadedModel, among: int) -> EngineSection:
    """Of the memory: pages are taken as they are written, so several engines would each plan with
    the same free ones."""
    from preread.engine.kv import KVShape
    from preread.engine.plan import MIB, plan_memory

    plan = plan_memory(KVShape.of(loaded.decoder, loaded.kv_precision), engine)
    return replace(
        engine,
        prefix_memory_mb=max(1, plan.prefix_tokens * plan.token_bytes // MIB // among),
        suffix_memory_mb=max(1, plan.suffix_tokens * plan.token_bytes // MIB // among),
    )
