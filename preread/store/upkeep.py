"""Looking after chunks without a model: verify them, sweep what nobody needs, set bad ones aside.

Knows neither torch nor tokens, so `preread verify` and `preread gc` start quickly and work on the
chunks of every model that shares the tiers.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from preread.errors import TierError
from preread.metrics import Metrics
from preread.store.chunk import ChunkFault, Fault
from preread.store.keys import OVERHEAD
from preread.store.seal import check
from preread.store.tiers.base import ChunkKey, ChunkUnreadable, Outcome, Tidy, Tier

Judged: TypeAlias = Iterator[tuple[ChunkKey, int, Fault | None]]  # key, bytes, what is wrong


class VerifyReport(NamedTuple):
    """ok + sum(faults) = checked, counted per tier; missing: asked-for keys in no tier; bad: (tier,
    key, reason); errors: tiers that could not be asked, with their messages."""

    checked: int
    ok: int
    nbytes: int
    missing: tuple[str, ...]
    faults: dict[str, int]
    bad: tuple[tuple[str, str, str], ...]
    errors: tuple[str, ...]


class SweepReport(NamedTuple):
    """removed, nbytes: chunks that went; kept: chunks that stay; debris: temp files of dead writers
    and quarantined values that went; errors: messages of tiers that could not be swept."""

    removed: int
    nbytes: int
    kept: int
    debris: int
    errors: tuple[str, ...]


def examined(
    tiers: Iterable[Tier],
    wanted: Iterable[ChunkKey],
    judged: Callable[[Tier], Judged],
    reject: Callable[[Tier, ChunkKey, Fault], None],
    failed: Callable[[Tier, TierError], None],
) -> VerifyReport:
    """What a look into every tier has found. wanted: keys that are missing where no tier has them;
    reject: told of each bad chunk; failed: of a tier that could not be read to its end."""
    checked = nbytes = 0
    bad: list[tuple[str, str, str]] = []
    errors: list[str] = []
    missing = set(wanted)
    for tier in tiers:
        try:
            for key, size, reason in judged(tier):
                missing.discard(key)
                checked += 1
                nbytes += size
                if reason:
                    bad.append((tier.name, key.hex(), reason.value))
                    reject(tier, key, reason)
        except TierError as exc:
            failed(tier, exc)
            errors.append(str(exc))
    faults = Counter(reason for _, _, reason in bad)
    absent = tuple(sorted(key.hex() for key in missing))
    return VerifyReport(
        checked, checked - len(bad), nbytes, absent, dict(faults), tuple(bad), tuple(errors)
    )


class Upkeep:
    """Tiers, seen by whoever cleans them. Thread-safe."""

    def __init__(
        self, tiers: Sequence[Tier], metrics: Metrics, log: logging.Logger | None = None
    ) -> None:
        self._tiers = tuple(tiers)
        self._metrics = metrics
        self._log = log or logging.getLogger("preread.store")

    def verify(self, keys: Iterable[str] | None = None, *, deep: bool = True) -> VerifyReport:
        """Check chunks (hex keys; None: all) in every tier; bad ones are set aside. deep: read each
        and check header, lengths, checksum and that its name is the one its content gives; else
        only that it is there and not too short. Chunks of a newer format are counted as faults but
        left alone: a newer preread may share the tier."""
        wanted = None if keys is None else {ChunkKey(bytes.fromhex(key)) for key in keys}

        def reject(tier: Tier, key: ChunkKey, reason: Fault) -> None:
            if reason is not Fault.FUTURE_VERSION:
                self.reject(tier, key, reason)

        def judged(tier: Tier) -> Judged:
            return self._judged(tier, wanted, deep)

        return examined(self._tiers, wanted or (), judged, reject, self.tier_failed)

    def sweep(self, live: frozenset[str], grace_s: float) -> SweepReport:
        """Remove chunks that are neither live (hex keys, see Catalog.live_chunks) nor used within
        grace_s seconds, debris of dead writers, and quarantine older than grace_s. The grace keeps
        what a build in another process has just written or loaded but not yet published."""
        removed = nbytes = kept = debris = 0
        errors: list[str] = []
        for tier in self._tiers:
            try:
                entries = list(tier.scan())
                before = time.time() - grace_s
                idle = [e for e in entries if e.key.hex() not in live and e.last_used <= before]
                removed += tier.remove([entry.key for entry in idle])
                nbytes += sum(entry.nbytes for entry in idle)
                kept += len(entries) - len(idle)
                debris += tier.tidy(grace_s) if isinstance(tier, Tidy) else 0
            except TierError as exc:
                self.tier_failed(tier, exc)
                errors.append(str(exc))
        self._metrics.add("store.swept_chunks", removed)
        self._metrics.add("store.swept_bytes", nbytes)
        return SweepReport(removed, nbytes, kept, debris, tuple(errors))

    def reject(self, tier: Tier, key: ChunkKey, reason: Fault, detail: str = "") -> bool:
        """Log and count a bad chunk and set it aside; False if it is still there."""
        self._metrics.add(f"store.fault.{reason.value}")
        self._log.warning(
            "chunk %s in %s: %s%s; set aside, its tokens are computed again.",
            key.hex(),
            tier.name,
            reason.value,
            detail,
        )
        try:
            return tier.remove([key], quarantine=True) > 0
        except TierError as exc:
            self.tier_failed(tier, exc)
            return False

    def tier_failed(self, tier: Tier, exc: TierError) -> None:
        """Log and count a tier that could not do what it was asked."""
        self._metrics.add(f"store.tier_errors.{tier.name}")
        self._log.warning("tier %s: %s", tier.name, exc)

    def _present(self, tier: Tier, wanted: set[ChunkKey] | None) -> Iterator[tuple[ChunkKey, int]]:
        """(key, bytes) of what the tier holds; also what is in the place of a wanted chunk without
        being one (a folder), as 0 bytes."""
        rest = set(wanted or ())
        for entry in list(tier.scan()):
            if wanted is None or entry.key in wanted:
                rest.discard(entry.key)
                yield entry.key, entry.nbytes
        others = sorted(rest)
        yield from ((key, 0) for key, held in zip(others, tier.find(others), strict=True) if held)

    def _judged(self, tier: Tier, wanted: set[ChunkKey] | None, deep: bool) -> Judged:
        """What the tier holds."""
        present = list(self._present(tier, wanted))
        if not deep:
            for key, size in present:
                yield key, size, Fault.TRUNCATED if size <= OVERHEAD else None
            return
        outcomes = tier.read([key for key, _ in present])
        for (key, size), value in zip(present, outcomes, strict=True):
            yield key, size, _judge(key, value)


def _judge(key: ChunkKey, value: Outcome) -> Fault | None:
    if isinstance(value, ChunkUnreadable):
        return Fault.UNREADABLE
    try:
        if isinstance(value, memoryview):  # else somebody removed it just now: no fault
            check(value, key)
    except ChunkFault as fault:
        return fault.reason
    return None
