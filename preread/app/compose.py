"""The composition root: the only file that names concrete classes. Heavy imports happen when an
engine is opened, not when this module is imported."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from preread.app.choosing import computed_by
from preread.config import Config, load_config, local_model
from preread.errors import ConfigError
from preread.metrics import Metrics

if TYPE_CHECKING:
    import torch

    from preread.contexts.catalog.base import Catalog
    from preread.engine.local import LocalBackend
    from preread.engine.parts import Parts as EngineParts
    from preread.foreign.backend import ForeignBackend
    from preread.models.agreement import Agreement
    from preread.models.load import LoadedModel
    from preread.models.text import Text
    from preread.providers.backend import RemoteBackend
    from preread.tokens.parity import ParityReport

Weights = Literal["load", "random"]

log = logging.getLogger("preread")


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of. parameters: number of weights of the local model; notes: what its
    user should know about it; scopes: whose epochs void what it has in memory; text: tokenizer and
    chat template of the local model; loaded: the weights that our own decoder computes with."""

    config: Config
    backend: LocalBackend | ForeignBackend | RemoteBackend
    catalog: Catalog
    metrics: Metrics
    parameters: int
    notes: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    text: Text | None = None
    loaded: LoadedModel | None = None


def open_parts(
    model: str,
    *,
    dtype: str = "",
    device: str = "",
    weights: Weights = "load",
    home: str | Path | None = None,
    sequences: int = 0,
    codec: str = "",
    backend: str = "",
) -> Parts:
    """Resolve the configuration and put the parts together. See `preread.open`."""
    from preread.home import make_home

    config = load_config(Path(home).expanduser().absolute() if home else None)
    if remote(backend or config.model.backend):
        return remote_parts(config, backend or config.model.backend, model)
    chosen = replace(
        config.model,
        backend=backend or config.model.backend,
        model=local_model(model or config.model.model),
        dtype=dtype or config.model.dtype,
        device=device or config.model.device,
    )
    make_home(config.home)
    engine = replace(config.engine, max_sequences=sequences or config.engine.max_sequences)
    store = replace(config.store, codec=codec or config.store.codec)
    config = replace(config, model=chosen, engine=engine, store=store)
    parts = computed_by(
        config, lambda: _native(config, weights), lambda why: _foreign(config, weights, why)
    )
    for note in parts.notes:
        log.warning("%s", note)
    return parts


def remote(backend: str) -> bool:
    """Whether a backend's name means somebody else's server."""
    from preread.providers.opening import is_remote

    return is_remote(backend)


def open_backend(spec: str, model: str = "", home: str | Path | None = None) -> RemoteBackend:
    """Somebody else's server as a Backend, without catalog or contexts: `openai`,
    `openai:http://localhost:8000`, `anthropic` … model: "" for the only one that it has. Raises
    ConfigError, ProviderError, ModelNotFound."""
    from preread.providers.opening import open_remote

    config = load_config(Path(home).expanduser().absolute() if home else None)
    return open_remote(spec, model, config.providers)


def check_parity(model: str, *, prompts: int) -> ParityReport:
    """Law 1 on the user's own weights: random prompts on random prefixes, cold, cached, batched and
    alone, against the same weights in a wider type. Needs memory for both."""
    config = load_config()
    config = replace(config, model=replace(config.model, model=model or config.model.model))
    chosen = config.model
    name, dtype, device = chosen.model, chosen.dtype, chosen.device

    def native() -> ParityReport:
        from preread.engine.engine import Engine
        from preread.engine.parity import parity, wider
        from preread.models.load import load_model

        loaded = load_model(
            name,
            dtype=dtype,
            device=device,
            weights_precision=chosen.weights_precision,
            kv_precision=chosen.kv_precision,
            home=config.home,
        )
        engine = Engine(loaded.decoder, config.engine, kv_precision=loaded.kv_precision)
        return parity(engine, wider(loaded), prompts=prompts)

    def foreign(_: str) -> ParityReport:
        from preread.foreign.load import load_foreign
        from preread.foreign.parity import parity

        loaded = load_foreign(name, dtype=dtype, device=device, home=config.home)
        return parity(loaded, prompts=prompts)

    return computed_by(config, native, foreign)


def check_agreement(model: str, text: str) -> Agreement | None:
    """How far weights and KV in the configured precisions leave the model what it is, measured on a
    text. None if both are full."""
    from preread.models.agreement import measure
    from preread.models.load import load_model

    config = load_config()
    chosen = config.model
    if chosen.weights_precision == chosen.kv_precision == "full":
        return None
    loaded = load_model(
        model or chosen.model,
        dtype=chosen.dtype,
        device=chosen.device,
        weights_precision=chosen.weights_precision,
        kv_precision=chosen.kv_precision,
        home=config.home,
    )
    return measure(loaded, text)


def _native(config: Config, weights: Weights) -> Parts:
    from preread.app.loading import open_model

    _threads(config)
    return native_parts(config, *open_model(config, weights))


def native_parts(config: Config, loaded: LoadedModel, parts: EngineParts | None) -> Parts:
    """An engine on loaded weights, which nothing changes: several may share them. parts: see
    open_model."""
    from preread.app.measuring import device_name
    from preread.app.storing import geometry_of, lossy_note, open_stores
    from preread.capacity.remembered import Remembered
    from preread.contexts.catalog.scopes import scopes_of
    from preread.engine.local import LocalBackend
    from preread.home import open_catalog, open_claims
    from preread.models.layers import parameter_count
    from preread.store.keys import fingerprint

    metrics, chosen = Metrics(), config.model
    geometry = geometry_of(loaded, config.store)
    identity = fingerprint(loaded.fingerprint_parts)
    device = str(loaded.decoder.device)
    tuned = Remembered(config.home).limit(device_name(device), identity)
    kind = loaded.decoder.device.type
    config = replace(config, engine=config.engine.limited(kind, tuned))
    catalog = open_catalog(config)
    hides = config.store.constant_time
    told = Metrics() if hides else metrics  # what the store counts says what there was
    store = open_stores(config, geometry, [identity], catalog, told, device)[0]
    backend = LocalBackend(
        loaded, store, config.engine, metrics, name=chosen.model, parts=parts,
        claims=open_claims(config), hides=hides,
    )  # fmt: skip
    parameters = parameter_count(loaded.config)
    scopes = scopes_of(config.store, identity)
    notes = lossy_note(config)
    text = loaded.text
    return Parts(config, backend, catalog, metrics, parameters, notes, scopes, text, loaded)


def _foreign(config: Config, weights: Weights, why: str) -> Parts:
    from preread.app.storing import lossy_note, open_stores
    from preread.contexts.catalog.scopes import scopes_of
    from preread.foreign.backend import ForeignBackend
    from preread.foreign.load import load_foreign
    from preread.home import open_catalog

    _threads(config)
    metrics, chosen, kept = Metrics(), config.model, config.store
    if kept.constant_time:
        raise ConfigError(
            f"store.constant_time is for our own decoder, which does not compute this model: "
            f"{why.rstrip('.')}.",
            hint="Remove store.shared and store.constant_time.",
        )
    loaded = load_foreign(
        chosen.model, dtype=chosen.dtype, device=chosen.device, weights=weights, home=config.home
    )
    net, catalog, stores = loaded.net, open_catalog(config), []
    if net.layout is not None:
        geometry = net.layout.geometry(kept.chunk_tokens, kept.chunk_bytes)
        identities = [loaded.fingerprint(regime) for regime in range(net.regimes)]
        stores = open_stores(config, geometry, identities, catalog, metrics, str(net.device))
    room = _prefix_room(config, net.device)
    backend = ForeignBackend(loaded, stores, config.engine, room, metrics, name=chosen.model)
    notes = [f"transformers computes this model, slower than our own decoder: {why}"]
    if net.layout is None:
        notes.append(f"every question reads its whole context again: {net.why}")
    notes += lossy_note(config)
    return Parts(
        config, backend, catalog, metrics, net.parameters, tuple(notes),
        scopes_of(config.store, loaded.fingerprint()), loaded.text,
    )  # fmt: skip


def remote_parts(config: Config, spec: str, model: str) -> Parts:
    """Contexts are named and cited here; what reads them is somewhere else."""
    from preread.home import make_home, open_catalog
    from preread.providers.opening import open_remote

    wanted = model or config.model.model
    make_home(config.home)
    backend = open_remote(spec, "" if wanted == "reader" else wanted, config.providers)
    info = backend.info
    config = replace(config, model=replace(config.model, backend=spec, model=info.model))
    where = f"{info.model} at {info.device} answers: documents and questions are sent there"
    return Parts(config, backend, open_catalog(config), Metrics(), 0, (where,))


def _threads(config: Config) -> None:
    import torch

    if config.model.threads:
        torch.set_num_threads(config.model.threads)


def _prefix_room(config: Config, device: torch.device) -> int:
    """Bytes for prefixes: as the native engine has it."""
    from preread.engine.plan import CPU_MIB, MIB, free_memory

    if config.engine.prefix_memory_mb:
        return config.engine.prefix_memory_mb * MIB
    free = free_memory(device)
    return (min(free, 4 * CPU_MIB * MIB) if device.type == "cpu" else free) // 4
