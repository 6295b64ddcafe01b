"""Load or recompute, against a twin that tries every cut with the true times."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.store.policy import LEAST_S, Choice, Patience, Piece, decide
from preread.store.rates import Pace, Prefill, Rates

CHUNK = 256


def cost(
    upto: int, start: int, pieces: Sequence[Piece], paces: dict[str, Pace], prefill: Prefill
) -> float:
    """Load up to a cut, compute the rest: each tier and each token by itself."""
    nbytes: dict[str, int] = {}
    for piece in pieces:
        for tier, count in piece.parts if piece.end <= upto else ():
            nbytes[tier] = nbytes.get(tier, 0) + count
    load = sum(paces[tier].fixed_s + count * paces[tier].byte_s for tier, count in nbytes.items())
    end = pieces[-1].end
    tokens = sum(prefill.token_s + (n + 0.5) * prefill.past_s for n in range(upto, end))
    return load + tokens + (prefill.step_s if upto < end else 0.0)


def best(start: int, pieces: list[Piece], paces: dict[str, Pace], prefill: Prefill) -> float:
    cuts = [start, *(piece.end for piece in pieces)]
    return min(cost(cut, start, pieces, paces, prefill) for cut in cuts)


def case(draw: random.Random) -> tuple[int, list[Piece], dict[str, Pace], Prefill]:
    """A model, a length, one to three tiers, each from 10 times too slow to 10 times fast enough
    where it takes over."""
    token_s = 10 ** draw.uniform(-6, -2)
    past_s = token_s * draw.choice((0, 10 ** draw.uniform(-6, -3.5)))
    prefill = Prefill(token_s * draw.uniform(0, 30), token_s, past_s)
    token_bytes = draw.choice((12_288, 24_576, 114_688, 131_072, 524_288))
    end, start = draw.randrange(1, 24_000), 0
    if end > CHUNK and draw.random() < 0.3:
        start = draw.randrange(0, end)
    names = ["ram", "disk", "redis"][: draw.randint(1, 3)]
    break_even = (token_s + end / 2 * past_s) / token_bytes
    paces = {
        name: Pace(token_s * 10 ** draw.uniform(-1, 3), break_even * 10 ** draw.uniform(-1, 1))
        for name in names
    }
    ends = [n for n in range(CHUNK, end, CHUNK) if n > start] + [end]
    borders = sorted(draw.randrange(len(ends) + 1) for _ in names[1:])
    pieces, before = [], start - start % CHUNK
    for n, upto in enumerate(ends):
        tier = names[sum(n >= border for border in borders)]
        pieces.append(Piece(upto, ((tier, (upto - before) * token_bytes),)))
        before = upto
    return start, pieces, paces, prefill


@pytest.mark.parametrize("seed", range(60))
def test_with_the_true_rates_it_is_the_best_cut(seed: int) -> None:
    start, pieces, paces, prefill = case(random.Random(seed))
    choice = decide(start, pieces, paces, prefill)
    least = best(start, pieces, paces, prefill)
    assert cost(choice.upto, start, pieces, paces, prefill) == pytest.approx(least, rel=1e-6)
    load_s = cost(choice.upto, start, pieces, paces, Prefill(0, 0, 0))
    assert choice.load_s == pytest.approx(load_s, rel=1e-6) and not choice.tried


def measured(draw: random.Random, paces: dict[str, Pace], prefill: Prefill, end: int) -> Rates:
    """Some uses of the machine, of other lengths than the one asked about: each time is off by some
    percent, and one in ten by much."""

    def noise() -> float:
        return draw.lognormvariate(0, 0.05) * (draw.uniform(1.5, 5) if draw.random() < 0.1 else 1)

    rates = Rates()
    for _ in range(draw.randint(6, 20)):
        for name, pace in paces.items():
            nbytes = int(2**21 * draw.uniform(0.5, 60))
            first = min(nbytes, 2**21)
            for count in (first, nbytes):
                rates.loaded(name, count, pace.seconds(count) * noise())
        upto = int(end * draw.uniform(0.2, 1.5)) + 1
        for begin in range(0, upto, max(2048, upto // 4)):
            stop = min(begin + 2048, upto)
            rates.computed(begin, stop, prefill.seconds(begin, stop) * noise())
    return rates


def test_right_in_500_cases_from_noisy_measurements() -> None:
    """Right: it takes at most 2 % longer than the best cut. A wrong one costs at most 10 %."""
    right = worst = always = never = 0.0
    for seed in range(500):
        draw = random.Random(seed)
        start, pieces, paces, prefill = case(draw)
        rates = measured(draw, paces, prefill, pieces[-1].end)
        known = {name: pace for name in paces if (pace := rates.pace(name))}
        choice = decide(start, pieces, known, rates.prefill())
        took = cost(choice.upto, start, pieces, paces, prefill)
        least = best(start, pieces, paces, prefill)
        right += took <= 1.02 * least
        worst = max(worst, took / least - 1)
        always += cost(pieces[-1].end, start, pieces, paces, prefill) <= 1.02 * least
        never += cost(start, start, pieces, paces, prefill) <= 1.02 * least
    print(f"\nload or recompute: right in {right / 5:.1f} % of 500, the worst costs {worst:.1%};")
    print(f"always loading is right in {always / 5:.1f} %, never in {never / 5:.1f} %")
    assert right >= 475 and worst <= 0.10
    assert always <= 400 and never <= 400  # or the cases would say nothing


def test_nothing_known_is_tried() -> None:
    pieces = [Piece(256, (("near", 1000),)), Piece(512, (("far", 1000),))]
    choice = decide(0, pieces, {}, Prefill(0.0, 1e-3, 0.0))
    assert choice == (512, 0.0, pytest.approx(0.512), {"near", "far"})
    known = {"near": Pace(9.0, 0.0)}  # which costs more than what lies behind it can save
    assert decide(0, pieces, known, Prefill(0.0, 1e-3, 0.0)).upto == 0
    assert decide(0, pieces, known, None).upto == 512
    assert decide(7, [], {}, None) == Choice(7, 0.0, math.inf)


def test_a_slow_tier_behind_a_quick_one_is_left_alone() -> None:
    pieces = [Piece(n, (("near" if n <= 512 else "far", 1000),)) for n in (256, 512, 768, 1024)]
    paces = {"near": Pace(0.001, 1e-9), "far": Pace(0.001, 1e-3)}
    assert decide(0, pieces, paces, Prefill(0.0, 1e-4, 0.0)).upto == 512


# --- how a load goes ---


def test_patience_ends_where_computing_the_rest_is_quicker() -> None:
    patience = Patience(0, 1000, Prefill(0.0, 1e-3, 0.0))  # a millisecond a token
    assert patience.deadline_s == 1.0
    assert not patience.ends(100, 0.09)  # as fast as computing
    assert not patience.ends(10, 0.04)  # slower, but it has hardly begun
    assert patience.ends(10, 0.11)
    assert not patience.ends(900, 0.99) and patience.ends(900, 1.01)
    assert Patience(0, 8, Prefill(0.0, 1e-6, 0.0)).deadline_s == LEAST_S


@given(st.floats(1e-6, 1e-2), st.floats(1e-6, 1e-1), st.integers(1, 200), st.floats(0, 1e-7))
def test_a_load_that_is_given_up_and_computed_takes_at_most_twice_as_long_as_computing(
    token_s: float, pace_s: float, spans: int, past_s: float
) -> None:
    """Whatever the tier's true pace. It is asked after every span of 256 tokens."""
    prefill, upto = Prefill(0.0, token_s, past_s), 256 * spans
    patience = Patience(0, upto, prefill)
    elapsed = 0.0
    for token in range(256, upto + 1, 256):
        elapsed = min(elapsed + 256 * pace_s, patience.deadline_s)  # nobody waits longer
        if token < upto and patience.ends(token, elapsed):
            left_s = prefill.seconds(token, upto)
            assert elapsed + left_s <= 2 * max(LEAST_S, prefill.seconds(0, upto))
            return
    assert elapsed <= max(LEAST_S, 2 * prefill.seconds(0, upto))
