"""`list --tiers` and `show`: what each tier holds of each context, and why not the rest, by asking
it. Nothing is read, and no model is loaded."""

from __future__ import annotations

from collections import Counter
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


@dataclass(frozen=True, slots=True)
class Kept:
    """What a tier holds of one context: so many of its chunks. gone: of the others how many went
    for which reason, as far as the tier knows; error: why it could not be asked."""

    tier: str
    held: int = 0
    chunks: int = 0
    gone: dict[str, int] = field(default_factory=dict)
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return self.error
        why = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in self.gone.items()]
        return ", ".join([f"{self.held:,} of {self.chunks:,} chunks", *why])


def kept_in(tier: Tier, keys: Sequence[str], last_used: float) -> Kept:
    """keys: of a context that was used then, as far as its catalog knows."""
    from preread.store.reports import Miss
    from preread.store.tiers.base import ChunkKey, Gone, Recalls

    wanted = [ChunkKey(bytes.fromhex(key)) for key in dict.fromkeys(keys)]
    try:
        found = tier.find(wanted)
        lost = [key for key, held in zip(wanted, found, strict=True) if not held]
        left: dict[ChunkKey, Gone] = {}
        if lost and isinstance(tier, Recalls):
            left = tier.left(lost, since=last_used, look=True)
    except TierError as exc:
        return Kept(tier.name, error=str(exc))
    why = Counter((Miss.after(left[k]) if k in left else Miss.NEVER_STORED).value for k in lost)
    return Kept(tier.name, sum(found), len(wanted), dict(sorted(why.items())))


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
