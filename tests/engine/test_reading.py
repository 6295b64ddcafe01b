"""On whose account a prefix is computed, whoever gives up on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preread.engine.engine import Engine
from preread.engine.meeting import Meeting
from preread.engine.reading import Reading
from preread.engine.uploads import Uploads
from tests.engine.helpers import Answers, Echo, batch, drain, greedy, small_engine

BOOK = [100 + i % 60 for i in range(150)]  # read in steps of 48, 48, 48, 6
OTHER = [*BOOK[:90], *range(300, 340)]


def ids(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


def reader(engine: Engine, tokens: list[int], **options: bool) -> Reading:
    """A build that waits for its tokens."""
    reading = engine.hold(ids(tokens), **options)
    engine.read(reading)
    return reading


def steps(engine: Engine, n: int) -> None:
    for _ in range(n):
        engine.step()


@pytest.fixture
def engine() -> Engine:
    return small_engine(Echo())


def test_who_comes_first_pays(engine):
    first, second = reader(engine, BOOK), reader(engine, BOOK)
    steps(engine, 4)
    assert (engine.settle(first), engine.settle(second)) == (150, 0)
    assert engine.settle(first) == 0, "once"


def test_each_pays_for_what_only_it_wants(engine):
    first, second = reader(engine, BOOK[:90]), reader(engine, BOOK)
    steps(engine, 5)
    assert (engine.settle(first), engine.settle(second)) == (90, 60)
    third = reader(engine, OTHER)
    steps(engine, 1)
    assert engine.settle(third) == len(OTHER) - 90


def test_who_stores_pays_before_who_does_not(engine):
    first, second = reader(engine, BOOK), reader(engine, BOOK, stores=True)
    steps(engine, 4)
    assert (engine.settle(first), engine.settle(second)) == (0, 150)


@pytest.mark.parametrize("after", range(5))
def test_a_waiting_build_pays_for_one_that_gives_up(engine, after):
    first, second = reader(engine, BOOK), reader(engine, BOOK)
    steps(engine, after)
    engine.release(first)
    steps(engine, 4 - after)
    assert engine.settle(second) == 150


@pytest.mark.parametrize("came", range(4))
def test_nobody_pays_for_what_was_there_when_it_came(engine, came):
    first = reader(engine, BOOK)
    steps(engine, came)
    second = reader(engine, BOOK)
    steps(engine, 1)
    engine.release(first)
    steps(engine, 4)
    assert engine.settle(second) == 150 - 48 * came
    assert second.cached == 48 * came


def test_an_account_is_divided_among_those_who_share_parts_of_it(engine):
    first, half = reader(engine, BOOK), reader(engine, BOOK[:90])
    fork, late = reader(engine, OTHER), reader(engine, BOOK)
    steps(engine, 3)
    assert first.spent == [(0, 48), (48, 90), (90, 138)] and fork.spent == [(90, 130)]
    engine.release(first)
    assert half.spent == [(0, 48), (48, 90)] and late.spent == [(90, 138)]
    engine.release(half)
    steps(engine, 1)
    assert (engine.settle(fork), engine.settle(late)) == (130, 60)


def test_what_was_settled_does_not_pass_on(engine):
    first, second = reader(engine, BOOK), reader(engine, BOOK)
    steps(engine, 4)
    assert engine.settle(first) == 150
    engine.release(first)
    assert engine.settle(second) == 0


@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("heir", ["question", "build"])
def test_rows_that_give_up_leave_their_account_to_who_waits(engine, after, heir):
    """Cancelled before the first step, while the prefix is read, and when its row runs."""
    first = engine.submit(batch([[1, 2]], greedy(3), prefixes=[BOOK]))
    build = reader(engine, BOOK) if heir == "build" else None
    second = engine.submit(batch([[1, 2, 3]] * 2, greedy(3), prefixes=[BOOK]))
    answers = {first: Answers(), second: Answers()}
    for step in range(20):
        if step == after:
            engine.cancel(first)
        for job, news in engine.step().items():
            answers[job].add(news)
    cost = [sum(u[2] for u in a.usage.values()) for a in answers.values()]
    paid = cost[0] + cost[1] + (engine.settle(build) if build is not None else 0)
    own = 2 if after > 4 else 0  # of the cancelled row, when it was read
    assert paid == 150 + 2 * 3 + own
    assert all(u[1] + u[2] == 153 for u in answers[second].usage.values())
    assert answers[first].usage[0][2] == own + (150 if own and build is None else 0)


def test_the_first_row_pays_even_if_it_is_cancelled_while_it_writes(engine):
    """And says so, so that nothing is lost."""
    job = engine.submit(batch([[1, 2]] * 3, greedy(30), prefixes=[BOOK]))
    steps(engine, 8)
    engine.cancel(job, np.array([0]))
    (answers,) = drain(engine, job)
    assert [answers.usage[i][:3] for i in range(3)] == [(150, 0, 152), (150, 150, 2), (150, 150, 2)]


def test_rows_pay_no_more_than_they_begin_with(engine):
    """Two rows on the beginning of a prefix, which was computed as a whole."""
    rows = batch([[1], [2], [3]], greedy(1), prefixes=[BOOK], base=[10, 100, 150])
    (answers,) = drain(engine, engine.submit(rows))
    assert [answers.usage[i][1:3] for i in range(3)] == [(0, 11), (0, 101), (110, 41)]


def test_no_more_is_computed_than_somebody_wants():
    decoder = Echo()
    engine = small_engine(decoder)
    short, long = reader(engine, BOOK[:60]), reader(engine, BOOK)
    steps(engine, 1)
    engine.release(long)
    steps(engine, 3)
    assert sum(decoder.sizes) == 60 and engine.settle(short) == 60


@pytest.mark.parametrize("beside", [False, True])
def test_what_is_split_off_behind_a_load_is_not_left_loading(engine, beside):
    """The load is of a beginning; what comes after was made a segment of its own meanwhile."""
    whole, part = engine.hold(ids(BOOK)), engine.hold(ids(BOOK[:90]))
    if beside:
        meeting = Meeting(
            90, 16, 1.0, lambda a, b: 1.0, lambda *x: None, Uploads(torch.device("cpu")),
            lambda: None, lambda: True,
        )  # fmt: skip
        engine.readings.meet(part, meeting)
    else:
        engine.loading(part, 90)
    engine.hold(ids([*BOOK[:110], 300, 301]))
    engine.readings.met(part) if beside else engine.loaded(part, 90)
    engine.release(part)
    engine.read(whole)
    steps(engine, 6)
    assert engine.readings.done(whole)


def test_a_kept_row_does_not_make_ready_what_a_load_writes(engine):
    """Else somebody would read there before what the load writes is verified."""
    engine.submit(batch([[1, 2, 3]], greedy(3), prefixes=[BOOK], keep=True))
    steps(engine, 4)
    reading = engine.hold(ids([*BOOK, 1, 2, 3, *range(300, 320)]))
    assert engine.loading(reading, reading.upto) == 150
    answers = Answers()
    for _ in range(8):
        for news in engine.step().values():
            answers.add(news)
    assert answers.finish == {0: "length"} and not engine.metrics.snapshot().get("engine.rows_kept")
    assert engine.readings.ready(reading) == 150


def test_newcomers_leave_room_in_the_step_for_what_is_read():
    """A hot context whose questions fill every step, and a cold one."""
    engine = small_engine(Echo(), batch_tokens=32, max_sequences=8)
    drain(engine, engine.submit(batch([[1]], prefixes=[OTHER])))
    hot = engine.submit(batch([[7] * 30 for _ in range(400)], greedy(1), prefixes=[OTHER]))
    cold = reader(engine, BOOK)
    steps(engine, 12)
    assert engine.settle(cold) == 60, "the rest is shared"
    assert cold.leaf is not None and engine.tree.ready(cold.leaf, 150) == 150
    engine.cancel(hot)


@pytest.mark.parametrize("seed", range(8))
def test_everything_computed_is_on_exactly_one_account(seed):
    """Builds and questions on prefixes with common beginnings come and go at random. One build of
    everything is there from the first to the last, so that nothing is computed for nobody."""
    make = np.random.default_rng(seed)
    decoder = Echo()
    engine = small_engine(decoder, extents=200)
    texts = [make.integers(0, 2, 200).tolist() for _ in range(3)]
    texts += [texts[i][: int(n)] + [7] * 50 for i, n in enumerate(make.integers(1, 200, 3))]
    always = [engine.hold(ids(text)) for text in texts]
    builds: list[Reading] = []
    answers: dict[int, Answers] = {}
    paid, own = 0, {}
    for _ in range(80):
        move, text = make.random(), texts[make.integers(6)][: int(make.integers(1, 251))]
        if move < 0.2:
            builds.append(reader(engine, text, stores=bool(make.integers(2))))
        elif move < 0.4:
            job = engine.submit(batch([[9] * 3] * 2, greedy(1), prefixes=[text]))
            answers[job], own[job] = Answers(), len(text)
        elif move < 0.5 and own:
            engine.cancel(int(make.choice(list(own))))
        elif move < 0.6 and builds:
            engine.release(builds.pop(int(make.integers(len(builds)))))
        for reading in [r for r in builds if engine._scheduler.readings.done(r)]:
            paid += engine.settle(reading)
            engine.release(reading)
            builds.remove(reading)
        for job, news in engine.step().items():
            answers[job].add(news)
    for reading in always:
        engine.read(reading)
    while not engine.idle or engine.has_news:
        for job, news in engine.step().items():
            answers[job].add(news)
    paid += sum(engine.settle(reading) for reading in [*builds, *always])
    for job, got in answers.items():
        assert all(u[1] + u[2] in (0, own[job] + 3) for u in got.usage.values())
        paid += sum(u[2] for u in got.usage.values())
    assert paid == sum(decoder.sizes)
