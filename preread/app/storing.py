"""The store of an engine: its tiers, whose chunks they hold, in which codec, sealed with what."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from preread.errors import ConfigError, PrereadError

if TYPE_CHECKING:
    from preread.capacity.remembered import Remembered
    from preread.config import Config, StoreSection
    from preread.contexts.catalog.base import Catalog
    from preread.metrics import Metrics
    from preread.models.load import LoadedModel
    from preread.store.keys import Epochs, Geometry
    from preread.store.rates import Rates
    from preread.store.room import Recycled
    from preread.store.saving import Manner
    from preread.store.store import Store
    from preread.store.tiers.base import Room
    from preread.types import Fingerprint

LOADS = ("auto", "always")
COOL_S = 1.0  # a catalog that could not be asked is left alone

log = logging.getLogger("preread")


def geometry_of(loaded: LoadedModel, kept: StoreSection) -> Geometry:
    """How the KV of a model of our own decoder is cut into chunks."""
    from preread.store.keys import Geometry

    return Geometry(
        layers=loaded.config.layers,
        kv_heads=loaded.config.kv_heads,
        head_dim=loaded.config.head_dim,
        dtype=loaded.dtype,
        chunk_tokens=kept.chunk_tokens,
        chunk_bytes=kept.chunk_bytes,
    )


def lossy_note(config: Config) -> tuple[str, ...]:
    """What is to be said of a codec that loses something."""
    codec = config.store.codec
    if codec == "raw":
        return ()
    return (f"KV is kept in codec {codec}, which is not exact: preread verify --codec {codec}",)


def open_stores(
    config: Config,
    geometry: Geometry,
    identities: list[Fingerprint],
    catalog: Catalog,
    metrics: Metrics,
    device: str,
) -> list[Store]:
    """One store for each fingerprint of a model, on the same tiers. device: where KV is loaded to,
    and under whose name the rates of that are remembered."""
    from preread.app.measuring import device_name
    from preread.contexts.catalog.scopes import scopes_of
    from preread.home import open_keyring, open_tiers
    from preread.store.codec import codec_of
    from preread.store.store import Store

    agrees(kept := config.store)
    tiers = open_tiers(config, memory_for(device))
    keyring, manners = open_keyring(config), manners_of(kept)
    chosen = config.model
    rates = open_rates(
        config, device_name(device), (chosen.model, chosen.dtype, chosen.weights_precision)
    )
    # Of one model: its contexts are known by its first fingerprint, by which it is erased.
    since = Since(catalog, scopes_of(kept, identities[0]))
    return [
        Store(
            tiers,
            geometry,
            identity,
            tenant=kept.shared or kept.tenant,
            shared=bool(kept.shared),
            metrics=metrics,
            codec=codec_of(kept.codec),
            keyring=keyring,
            epochs=since,
            rates=rates,
            room=room_for(device),
            always=kept.load == "always",
            manners=manners,
            behind_bytes=kept.behind_mb << 20,
            drain_s=kept.drain_s,
        )
        for identity in identities
    ]


def agrees(kept: StoreSection) -> None:
    """Raises ConfigError for options that contradict each other, before anything is opened."""
    if kept.constant_time and not kept.shared:
        raise ConfigError(
            "store.constant_time hides what others have stored, and store.shared names no place "
            "that is shared with any.",
            hint="Remove it, or set store.shared (docs/security.md).",
        )
    if kept.load not in LOADS:
        raise ConfigError(f"store.load = {kept.load!r}.", hint=f"Give one of {', '.join(LOADS)}.")


def manners_of(kept: StoreSection) -> dict[str, Manner]:
    """How each tier is written to, by its name."""
    from preread.store.saving import Manner
    from preread.store.tiers.urls import EXTRAS, parse_tiers

    return {
        url.name: Manner(url.scheme in EXTRAS, url.count("touches", 1) > 1)
        for url in parse_tiers(kept.tiers)
    }


def memory_for(device: str) -> Room:
    """New memory for values: for CUDA pinned one, from which the device copies at the full rate of
    its bus; ordinary memory where no more can be pinned."""
    import torch

    from preread.store.tiers.base import fresh

    def pinned(nbytes: int) -> memoryview:
        try:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy().data
        except RuntimeError as exc:
            log.debug("no pinned memory for a chunk: %s", exc)
            return fresh(nbytes)

    return pinned if torch.device(device).type == "cuda" else fresh


def room_for(device: str) -> Recycled:
    """Where values are read to."""
    from preread.store.room import Recycled

    return Recycled(memory_for(device))


def open_rates(config: Config, machine: str, model: tuple[str, str, str]) -> Rates:
    """What is known of the tiers and of computing that model (name, dtype, precision of the
    weights) on that machine."""
    from preread.capacity.remembered import Remembered
    from preread.store.rates import Rates
    from preread.store.tiers.urls import parse_tiers

    places = {url.name: url.place for url in parse_tiers(config.store.tiers)}
    return Rates(_Memory(Remembered(config.home), machine, " ".join(model), places))


@dataclass(frozen=True, slots=True)
class _Memory:
    """See store.rates.Memory. A tier is remembered by its place, computing by the model."""

    home: Remembered
    machine: str
    model: str
    places: Mapping[str, str]

    def get(self, key: str) -> list[list[float]]:
        return self.home.measured(self._whole(key))

    def keep(self, key: str, rows: list[list[float]]) -> None:
        self.home.keep_measured(self._whole(key), rows)

    def _whole(self, key: str) -> str:
        kind, _, name = key.partition("/")
        what = f"{kind} {self.places.get(name, name)}" if name else f"{kind} {self.model}"
        return f"{self.machine} | {what}"


class Since:
    """A store's epochs, as the catalog has them now; None when it cannot be asked: what was erased
    must not be served, so nothing is. Then it is not asked again for a second: who loads or saves
    holds up the others."""

    def __init__(
        self,
        catalog: Catalog,
        scopes: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """scopes: of the tenant, then of the model, the tenant's and everybody's."""
        self._catalog = catalog
        self._scopes = scopes
        self._clock = clock
        self._failed = -inf

    def __call__(self) -> Epochs | None:
        from preread.store.keys import Epochs

        if self._clock() - self._failed < COOL_S:
            return None
        try:
            owner, *models = self._catalog.epochs(self._scopes)
            # None ever falls, so a sum that comes again is of the same numbers.
            return Epochs(owner, sum(models))
        except PrereadError as exc:
            self._failed = self._clock()
            log.warning("kept KV is left out, as the epochs cannot be asked: %s", exc)
            return None
