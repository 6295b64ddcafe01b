"""How many sequences at once are best: double until it no longer helps, then back off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from preread.capacity.trial import Sample
from preread.errors import EngineError

FIRST = 2
GAIN = 1.1  # twice the sequences must bring this much more to be worth it
NEAR = 0.95  # the fewest sequences within this of the best are chosen
PATIENCE = 2  # doublings in a row that do not gain: one could be noise

Ended = Literal["flat", "memory", "most"]


@dataclass(frozen=True, slots=True)
class Tuned:
    """sequences: the limit that was found; ended: why no more were tried (the throughput was flat,
    memory ran out, the most that were allowed); samples: by number of sequences."""

    sequences: int
    ended: Ended
    samples: tuple[Sample, ...]

    @property
    def chosen(self) -> Sample:
        return next(s for s in self.samples if s.sequences == self.sequences)

    def describe(self) -> str:
        """One sentence."""
        why = {
            "flat": "more sequences bring no more",
            "memory": "more sequences do not fit into memory",
            "most": "no more were tried",
        }[self.ended]
        return (
            f"{self.sequences} sequences: {60 * self.chosen.requests_per_s:,.1f} requests/min; "
            f"{why}."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "sequences": self.sequences,
            "ended": self.ended,
            "samples": [sample.to_json() for sample in self.samples],
        }


def tune(
    measure: Callable[[int], Sample], most: int, tell: Callable[[Sample], None] = lambda _: None
) -> Tuned:
    """measure: a sample of so many sequences; it may raise EngineError when they do not fit. most:
    highest number that is tried. tell: called with every sample. Raises EngineError when not even
    the first number works."""
    samples: list[Sample] = []
    ended: Ended = "most"
    best, idle, count = 0.0, 0, min(FIRST, most)
    while count <= most:
        try:
            sample = measure(count)
        except EngineError:
            if not samples:
                raise
            ended = "memory"
            break
        samples.append(sample)
        tell(sample)
        if sample.strained:
            ended = "memory"
            break
        idle = 0 if sample.requests_per_s >= GAIN * best else idle + 1
        best = max(best, sample.requests_per_s)
        if idle == PATIENCE:
            ended = "flat"
            break
        count *= 2
    if all(sample.strained for sample in samples):  # already the first number was too many
        samples.insert(0, replace(measure(1), strained=False))
        tell(samples[0])
    return Tuned(_backed_off(samples), ended, tuple(samples))


def _backed_off(samples: list[Sample]) -> int:
    """The fewest sequences that are nearly the best of those that memory held."""
    sound = [s for s in samples if not s.strained]
    best = max(s.requests_per_s for s in sound)
    return next(s.sequences for s in sound if s.requests_per_s >= NEAR * best)
