"""Doubling, flattening, backing off: on made-up machines, without a clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from preread.capacity.trial import Sample
from preread.capacity.tuning import tune
from preread.errors import EngineError


def sample(sequences: int, rate: float, strained: bool = False) -> Sample:
    return Sample(sequences, sequences / rate, 0.1, 0.2, 0.3, 50, 32, strained)


def machine(rate: Callable[[int], float], strained_from: int = 10**9) -> Callable[[int], Sample]:
    return lambda n: sample(n, rate(n), n >= strained_from)


def counts(found) -> list[int]:
    return [s.sequences for s in found.samples]


def test_it_doubles_until_the_throughput_is_flat_and_takes_the_fewest() -> None:
    found = tune(machine(lambda n: min(n, 16)), 1024)
    assert counts(found) == [2, 4, 8, 16, 32, 64]
    assert (found.sequences, found.ended) == (16, "flat")
    assert "16 sequences: 960.0 requests/min; more sequences bring no more." == found.describe()


def test_one_bad_sample_does_not_end_it() -> None:
    found = tune(machine(lambda n: 1.0 if n == 8 else min(n, 64)), 1024)
    assert found.sequences == 64


def test_throughput_that_falls_is_backed_off_from() -> None:
    found = tune(machine(lambda n: n if n <= 8 else 40 / n), 1024)
    assert (found.sequences, found.ended) == (8, "flat")


def test_a_strained_memory_ends_it_and_is_not_chosen() -> None:
    found = tune(machine(float, strained_from=16), 1024)
    assert counts(found) == [2, 4, 8, 16]
    assert (found.sequences, found.ended) == (8, "memory")
    assert "do not fit" in found.describe()


def test_a_memory_that_fails_ends_it() -> None:
    def measure(n: int) -> Sample:
        if n > 4:
            raise EngineError("out of memory")
        return sample(n, n)

    found = tune(measure, 1024)
    assert (found.sequences, found.ended, counts(found)) == (4, "memory", [2, 4])


def test_a_machine_that_strains_at_once_runs_one_at_a_time() -> None:
    found = tune(machine(float, strained_from=1), 64)
    assert (found.sequences, found.ended, counts(found)) == (1, "memory", [1, 2])


def test_the_most_ends_it() -> None:
    found = tune(machine(float), 24)
    assert (found.sequences, found.ended, counts(found)) == (16, "most", [2, 4, 8, 16])
    assert counts(tune(machine(float), 1)) == [1]


def test_what_never_works_is_an_error() -> None:
    def measure(n: int) -> Sample:
        raise EngineError("broken")

    with pytest.raises(EngineError, match="broken"):
        tune(measure, 8)


def test_every_sample_is_told_as_it_comes() -> None:
    told: list[int] = []
    tune(machine(float), 8, lambda s: told.append(s.sequences))
    assert told == [2, 4, 8]
