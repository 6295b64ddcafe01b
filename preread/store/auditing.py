"""Whether what the tiers hold of a prefix is what its next load expects: every field, and the seal
where there is one. `Upkeep.verify` knows neither tokens nor keys: it says that a chunk is whole and
in its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from preread.store.asking import Asker
from preread.store.chunk import ChunkFault, ChunkHeader, Fault
from preread.store.layout import Layout
from preread.store.tiers.base import ChunkKey, ChunkUnreadable, Outcome, Tier
from preread.store.upkeep import Judged, VerifyReport, examined

if TYPE_CHECKING:
    from preread.store.keys import Tokens


def audit(asker: Asker, layout: Layout, tokens: Tokens) -> VerifyReport:
    """Read the chunks of these tokens from every tier and unpack each as `load` does; those that a
    load would refuse are set aside. Decodes nothing and judges no KV by its numbers: what a forger
    wrote under a valid plain header is not found out."""
    expected = {
        chunk.key: chunk
        for span, keys in layout.keyed(layout.spans(tokens))
        for chunk in layout.chunks(span, keys)
    }

    def judged(tier: Tier) -> Judged:
        return _judged(tier, layout, expected)

    return examined(asker.tiers, expected, judged, asker.reject, asker.failed)


def together(reports: Iterable[VerifyReport]) -> VerifyReport:
    """Of several prefixes; a chunk that begins more than one of them counts for each. What a tier
    says each time stands there once."""
    told = list(reports)
    faults: Counter[str] = Counter()
    for report in told:
        faults.update(report.faults)
    return VerifyReport(
        sum(report.checked for report in told),
        sum(report.ok for report in told),
        sum(report.nbytes for report in told),
        tuple(dict.fromkeys(key for report in told for key in report.missing)),
        dict(faults),
        tuple(one for report in told for one in report.bad),
        tuple(dict.fromkeys(error for report in told for error in report.errors)),
    )


def _judged(tier: Tier, layout: Layout, expected: Mapping[ChunkKey, ChunkHeader]) -> Judged:
    """Of what the tier holds: why a load would refuse it."""
    keys: Sequence[ChunkKey] = list(expected)
    held = [key for key, has in zip(keys, tier.find(keys), strict=True) if has]
    for key, value in zip(held, tier.read(held), strict=True):
        if value is not None:  # else somebody removed it just now: no fault
            yield key, _size(value), _refused(layout, value, expected[key])


def _size(value: Outcome) -> int:
    return value.nbytes if isinstance(value, memoryview) else 0


def _refused(layout: Layout, value: Outcome, expected: ChunkHeader) -> Fault | None:
    if not isinstance(value, memoryview):
        assert isinstance(value, ChunkUnreadable), value
        return Fault.UNREADABLE
    try:
        layout.unpack(value, expected)
    except ChunkFault as fault:
        return fault.reason
    return None
