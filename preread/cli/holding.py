"""`list --tiers`: what each tier holds of each context, by asking it. Nothing is read, and no model
is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from preread.cli.output import emit, note, size, table
from preread.config import load_config
from preread.errors import TierError

if TYPE_CHECKING:
    from preread.store.tiers.base import Tier


@dataclass(frozen=True, slots=True)
class Held:
    """The newest version of a context. chunks: it was kept in so many; by_tier: how many of them a
    tier holds, None where it could not be asked."""

    name: str
    version: int
    chunks: int
    by_tier: dict[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Room:
    """A tier, with the chunks of all contexts and models. error: why it could not be asked."""

    name: str
    chunks: int = 0
    nbytes: int = 0
    budget: int = 0
    error: str = ""


def holding_command(*, json: bool) -> None:
    from preread.home import open_catalog, open_tiers

    config = load_config()
    catalog, tiers = open_catalog(config), open_tiers(config)
    rooms = [_room(tier) for tier in tiers]
    asked = [tier for tier, room in zip(tiers, rooms, strict=True) if not room.error]
    held = []
    for summary in catalog.summaries():
        if (record := catalog.get(summary.name)) is not None:
            keys = record.chunk_keys
            by_tier = {room.name: None for room in rooms} | _counts(asked, keys)
            held.append(Held(record.name, record.version, len(keys), by_tier))
    if json:
        emit({"contexts": [asdict(h) for h in held], "tiers": [asdict(r) for r in rooms]})
        return
    names = [room.name for room in rooms]
    rows = [
        (h.name, str(h.version), f"{h.chunks:,}", *(_share(h, name) for name in names))
        for h in held
    ]
    table(("name", "version", "chunks", *names), rows)
    for room in rooms:
        print(_said(room)) if not room.error else note(f"{room.name}: {room.error}")


def _room(tier: Tier) -> Room:
    try:
        usage = tier.usage()
    except TierError as exc:
        return Room(tier.name, error=str(exc))
    return Room(tier.name, usage.chunks, usage.nbytes, usage.budget)


def _counts(tiers: Sequence[Tier], keys: Sequence[str]) -> dict[str, int | None]:
    from preread.store.tiers.base import ChunkKey

    counts: dict[str, int | None] = {}
    for tier in tiers:
        try:
            counts[tier.name] = sum(tier.find([ChunkKey(bytes.fromhex(key)) for key in keys]))
        except TierError:
            counts[tier.name] = None
    return counts


def _share(held: Held, tier: str) -> str:
    count = held.by_tier[tier]
    if count is None:
        return "?"
    return "-" if not held.chunks else f"{100 * count // held.chunks} %"


def _said(room: Room) -> str:
    budget = f" of {size(room.budget)}" if room.budget else ""
    return f"{room.name}: {room.chunks:,} chunks, {size(room.nbytes)}{budget}"
