"""What the store says about what it did."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from preread.store.chunk import Fault
from preread.store.tiers.base import Gone
from preread.types import Brought, Served


class Miss(StrEnum):
    """Why a prefix ended where it did."""

    NEVER_STORED = "never_stored"  # no tier holds a chunk of it or is known to have held one
    TOO_SHORT = "too_short"  # what is stored differs or ends in the span that was not found
    EVICTED = "evicted"  # to make room, or lost with its server
    EXPIRED = "expired"  # its time in the tier was over
    GONE = "gone"  # removed by gc or by hand
    CORRUPT = "corrupt"  # refused now, or the last time
    OTHER_FINGERPRINT = "other_fingerprint"
    OTHER_TENANT = "other_tenant"
    TIER_FAILED = "tier_failed"  # the tier that holds it could not be asked or read
    TOO_SLOW = "too_slow"  # computing was predicted, or proved, to be quicker

    @classmethod
    def of(cls, fault: Fault) -> Miss:
        """What a bad chunk counts as."""
        named = {
            Fault.FOREIGN_FINGERPRINT: cls.OTHER_FINGERPRINT,
            Fault.OTHER_TENANT: cls.OTHER_TENANT,
        }
        return named.get(fault, cls.CORRUPT)

    @classmethod
    def after(cls, gone: Gone) -> Miss:
        """What a chunk counts as that a tier does not hold any more."""
        named = {
            Gone.EVICTED: cls.EVICTED,
            Gone.EXPIRED: cls.EXPIRED,
            Gone.SET_ASIDE: cls.CORRUPT,
        }
        return named.get(gone, cls.GONE)


class End(NamedTuple):
    """The prefix ends at `token`: the first differing or missing token lies in the chunk that
    begins there."""

    reason: Miss
    token: int

    @classmethod
    def at(cls, why: Miss, token: int) -> End:
        """Where nothing at all was found, nothing is known of what is stored."""
        return cls(Miss.NEVER_STORED if why is Miss.TOO_SHORT and token == 0 else why, token)


class LoadReport(NamedTuple):
    """tokens: end of the unbroken prefix that is now there (loaded from its end: where it began);
    nbytes: payload delivered; ms: wall time, the sink's included; faults: (reason, hex key) of
    chunks that were set aside; served: by tier, nearest first, those that gave nothing left out;
    end: why it goes no further, None when it reaches what was asked for; loaded: tokens that came
    from the tiers."""

    tokens: int
    nbytes: int
    ms: float
    faults: tuple[tuple[str, str], ...]
    served: tuple[Served, ...] = ()
    end: End | None = None
    loaded: int = 0


def brought(
    report: LoadReport | None, load_s: float, end: End | None = None, computed: int = 0
) -> Brought:
    """What a build says of its load: foreseen to take load_s; end: why there was none; computed:
    tokens that were computed meanwhile."""
    why = report.end if report else end
    reason, at = (why.reason.value, why.token) if why else ("", 0)
    if report is None:
        return Brought(miss=reason, at=at)
    return Brought(report.loaded, report.ms, load_s * 1e3, report.served, reason, at, computed)


class SaveReport(NamedTuple):
    """chunks, nbytes: written, counted per tier; skipped: not tried, as every tier holds them, has
    failed or has no room; stored: every tier now holds the whole prefix, to its knowledge, or will
    soon, or does not want it yet; keys: hex keys of all chunks of the tokens, for the catalog;
    pending: chunks that are written in the background, counted per tier."""

    chunks: int
    nbytes: int
    skipped: int
    stored: bool
    keys: tuple[str, ...]
    pending: int = 0
