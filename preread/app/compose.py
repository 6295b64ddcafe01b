"""The composition root: the only file that names concrete classes. Heavy imports happen when an
engine is opened, not when this module is imported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from preread.config import Config, load_config, local_model
from preread.metrics import Metrics

if TYPE_CHECKING:
    from preread.contexts.catalog.base import Catalog
    from preread.engine.local import LocalBackend
    from preread.tokens.parity import ParityReport

Weights = Literal["load", "random"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of. parameters: number of weights of the local model."""

    config: Config
    backend: LocalBackend
    catalog: Catalog
    metrics: Metrics
    parameters: int


def open_parts(
    model: str, *, dtype: str, device: str, weights: Weights, home: str | Path | None
) -> Parts:
    """Resolve the configuration and put the parts together. See `preread.open`."""
    from preread.home import make_home

    config = load_config(Path(home).expanduser().absolute() if home else None)
    chosen = replace(
        config.model,
        model=local_model(model or config.model.model),
        dtype=dtype or config.model.dtype,
        device=device or config.model.device,
    )
    make_home(config.home)
    return _local(replace(config, model=chosen), weights)


def check_parity(model: str, *, prompts: int) -> ParityReport:
    """Law 1 on the user's own weights: random prompts on random prefixes, cold, cached, batched and
    alone, against the same weights in a wider type. Needs memory for both."""
    from preread.engine.engine import Engine
    from preread.engine.parity import parity, wider
    from preread.models.load import load_model

    config = load_config()
    chosen = config.model
    loaded = load_model(
        model or chosen.model, dtype=chosen.dtype, device=chosen.device, home=config.home
    )
    return parity(Engine(loaded.decoder, config.engine), wider(loaded), prompts=prompts)


def _local(config: Config, weights: Weights) -> Parts:
    import torch

    from preread.engine.local import LocalBackend
    from preread.home import open_catalog, open_disk
    from preread.models.layers import parameter_count
    from preread.models.load import load_model
    from preread.store.keys import Geometry, fingerprint
    from preread.store.store import Store

    if config.model.threads:
        torch.set_num_threads(config.model.threads)
    metrics = Metrics()
    loaded = load_model(
        config.model.model,
        dtype=config.model.dtype,
        device=config.model.device,
        weights=weights,
        home=config.home,
    )
    geometry = Geometry(
        layers=loaded.config.layers,
        kv_heads=loaded.config.kv_heads,
        head_dim=loaded.config.head_dim,
        dtype=loaded.dtype,
        chunk_tokens=config.store.chunk_tokens,
        chunk_bytes=config.store.chunk_bytes,
    )
    identity = fingerprint(loaded.fingerprint_parts)
    tenant = config.store.tenant
    store = Store([open_disk(config)], geometry, identity, tenant=tenant, metrics=metrics)
    backend = LocalBackend(loaded, store, config.engine, metrics, name=config.model.model)
    parameters = parameter_count(loaded.config)
    return Parts(config, backend, open_catalog(config), metrics, parameters)
