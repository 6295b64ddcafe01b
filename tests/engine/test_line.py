"""Who gets memory for a prefix: the order, what may pass, and that nobody waits for ever."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from preread.engine import line
from preread.errors import OutOfMemory
from tests.engine.helpers import Echo, batch, drain, greedy, small_engine

ARENA = 20  # extents of 16 tokens


def prefix(first: int, extents: int) -> list[int]:
    """Tokens that fill so many extents."""
    return [first + i % 50 for i in range(16 * extents)]


def ids(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


def patience(tokens: list[int]) -> int:
    return line.PATIENCE + len(tokens) // line.TOKENS_PER_STEP


class Stream:
    """Contexts with a question always waiting, beside other work."""

    def __init__(self, *hot: list[int], extents: int = ARENA, **config: object) -> None:
        self.engine = small_engine(Echo(), extents=extents, **config)
        self.hot = hot
        self.names: dict[int, object] = {}
        self.waiting: Counter[object] = Counter()
        self.ended: Counter[object] = Counter()
        self.steps = 0

    def submit(self, name: object, tokens: list[int], rows: int = 1, new: int = 3) -> None:
        job = self.engine.submit(batch([[1, 2]] * rows, greedy(new), prefixes=[tokens]))
        self.names[job] = name
        self.waiting[name] += rows

    def step(self) -> None:
        self.steps += 1
        for name, tokens in enumerate(self.hot):
            for i in range(6 - self.waiting[name]):
                self.submit(name, tokens, new=3 + (self.steps + i) % 7)
        for job, news in self.engine.step().items():
            assert not news.errors
            ended = int((news.finish > 0).sum())
            self.ended[self.names[job]] += ended
            self.waiting[self.names[job]] -= ended

    def steps_until(self, name: object, rows: int, most: int) -> int:
        """How many steps until so many of its rows have ended; `most` if they do not."""
        for n in range(most):
            if self.ended[name] >= rows:
                return n
            self.step()
        return most


HOT, BIG = prefix(100, 8), prefix(200, 14)


def test_a_big_context_gets_its_turn_beside_one_that_is_always_asked(monkeypatch):
    stream = Stream(HOT)
    for _ in range(10):
        stream.step()
    stream.submit("big", BIG)
    drained, reading = 10, len(BIG) // 48 + 4
    assert stream.steps_until("big", 1, 400) <= patience(BIG) + drained + reading
    before = stream.ended[0]
    assert stream.steps_until(0, before + 20, 400) < 400, "and then the other goes on"

    monkeypatch.setattr(line, "PATIENCE", 10**9)
    stream = Stream(HOT)
    stream.step()
    stream.submit("big", BIG)
    assert stream.steps_until("big", 1, 400) == 400, "without patience's end it would starve"


def test_it_waits_as_long_as_it_should_and_no_longer():
    stream = Stream(HOT)
    stream.step()
    reading = stream.engine.hold(ids(BIG))
    for _ in range(patience(BIG)):
        stream.step()
    assert reading.waited == patience(BIG) and not reading.placed
    assert stream.ended[0] > 50, "nobody was held up until now"
    for _ in range(10):
        stream.step()
    assert reading.placed
    before = stream.ended[0]
    for _ in range(20):
        stream.step()
    assert stream.ended[0] == before, "now the others wait for it"
    stream.engine.release(reading)
    assert stream.steps_until(0, before + 3, 40) < 40


def test_an_older_batch_gives_way_too_and_is_taken_up_again():
    stream = Stream(max_sequences=4)
    stream.submit("batch", HOT, rows=300)
    for _ in range(5):
        stream.step()
    stream.submit("big", BIG, rows=300)
    swaps = 0
    owner = None
    while stream.ended["batch"] + stream.ended["big"] < 600:
        before = stream.ended.copy()
        stream.step()
        grew = {name for name in stream.ended if stream.ended[name] > before[name]}
        if grew and owner not in grew:
            (owner,) = grew
            swaps += 1
        assert stream.steps < 1500
    assert 3 < swaps < 12, "they take turns, but memory does not change hands all the time"


def test_what_fits_beside_is_not_held_up():
    small, other = prefix(300, 4), prefix(400, 8)
    stream = Stream(small, other)
    for _ in range(5):
        stream.step()
    reading = stream.engine.hold(ids(BIG))
    for _ in range(patience(BIG) + 10):
        stream.step()
    assert reading.placed
    before = stream.ended.copy()
    for _ in range(30):
        stream.step()
    assert stream.ended[0] > before[0] + 20 and stream.ended[1] == before[1]
    stream.engine.release(reading)


def test_what_fits_beside_one_by_one_but_not_together_is_held_up():
    """Of two, the first that is asked may stay."""
    stream = Stream(prefix(300, 4), prefix(400, 4))
    for _ in range(5):
        stream.step()
    reading = stream.engine.hold(ids(BIG))
    for _ in range(patience(BIG) + 12):
        stream.step()
    assert reading.placed
    before = stream.ended.copy()
    for _ in range(20):
        stream.step()
    went_on = [stream.ended[name] > before[name] + 10 for name in (0, 1)]
    assert sorted(went_on) == [False, True]
    stream.engine.release(reading)


def test_questions_without_a_prefix_are_never_held_up():
    stream = Stream(HOT, [])
    stream.step()
    reading = stream.engine.hold(ids(BIG))
    for _ in range(patience(BIG) + 5):
        before = stream.ended[1]
        for _ in range(7):
            stream.step()
        assert stream.ended[1] > before
        if reading.placed:
            break
    assert reading.placed
    stream.engine.release(reading)


def test_who_continues_the_waiting_prefix_is_no_obstacle():
    """The hot context is the beginning of the big one."""
    stream = Stream(BIG[: 16 * 6], prefix(300, 8))
    for _ in range(5):
        stream.step()
    reading = stream.engine.hold(ids(BIG))
    for _ in range(patience(BIG) + 12):
        before = stream.ended[0]
        stream.step()
    assert reading.placed and stream.ended[0] >= before
    before = stream.ended[0]
    for _ in range(10):
        stream.step()
    assert stream.ended[0] > before
    stream.engine.release(reading)


def test_builds_of_the_hot_context_do_not_keep_it_there():
    """Not rows but explicit builds, one always overlapping the next."""
    engine = small_engine(Echo(), extents=ARENA)
    held = [engine.hold(ids(HOT))]
    waiting = engine.hold(ids(BIG))
    row = engine.submit(batch([[1]], greedy(500)))  # so that there are steps
    for _ in range(patience(BIG) + 2):
        held.append(engine.hold(ids(HOT)))
        assert held[-1].placed == (waiting.waited < patience(BIG))
        engine.step()
        if held[0].placed:
            engine.release(held.pop(0))
    for reading in [r for r in held if r.placed]:
        engine.release(reading)
    engine.step()
    assert waiting.placed and not held[-1].placed
    engine.release(waiting)
    engine.step()
    assert held[-1].placed
    engine.cancel(row)


def test_memory_goes_to_who_came_first():
    engine = small_engine(Echo(), extents=ARENA)
    held = engine.hold(ids(prefix(1, 12)))
    big, little = engine.hold(ids(BIG)), engine.hold(ids(prefix(500, 2)))
    engine.step()
    assert not big.placed and not little.placed, "a later one that would fit does not pass"
    again = engine.hold(ids(prefix(1, 12)))
    assert again.placed, "what needs no memory does"
    engine.release(held)
    engine.release(again)
    engine.step()
    assert big.placed and little.placed
    for reading in (big, little):
        engine.release(reading)


def test_who_gives_up_waiting_does_not_hold_up_others():
    engine = small_engine(Echo(), extents=ARENA)
    held = engine.hold(ids(prefix(1, 12)))
    big, little = engine.hold(ids(BIG)), engine.hold(ids(prefix(500, 2)))
    engine.release(big)
    engine.step()
    assert little.placed
    engine.release(held)
    engine.release(little)
    assert engine.idle


def test_a_group_that_gives_up_waiting_does_not_hold_up_others():
    engine = small_engine(Echo(), extents=ARENA)
    held = engine.hold(ids(prefix(1, 12)))
    big = engine.submit(batch([[1]], prefixes=[BIG]))
    little = engine.submit(batch([[1]], prefixes=[prefix(500, 2)]))
    engine.step()
    engine.cancel(big)
    (answers,) = drain(engine, little)
    assert len(answers.finish) == 1
    engine.release(held)


def test_what_was_read_for_rows_is_used_before_it_is_given_up():
    """The waiting one is past its patience when the other's prefix has just been read."""
    engine = small_engine(Echo(), extents=ARENA)
    (small,) = (prefix(300, 4),)
    first = engine.submit(batch([[1, 2]] * 40, greedy(2), prefixes=[small]))
    engine.step()
    waiting = engine.hold(ids(prefix(200, 18)))
    waiting.waited = 10**6
    news = []
    while not waiting.placed:
        news += [engine.step().get(first)]
        assert len(news) < 40
    ended = sum(int((n.finish > 0).sum()) for n in news if n is not None)
    assert ended == 32, "all that had slots"
    engine.release(waiting)
    drain(engine, first)


def test_a_prefix_prepared_for_rows_stays_until_some_have_run():
    def prepared(flag: bool) -> int:
        decoder = Echo()
        engine = small_engine(decoder, extents=ARENA)
        built = engine.hold(ids(HOT))
        engine.read(built)
        for _ in range(4):
            engine.step()
        waiting = engine.hold(ids(BIG))
        waiting.waited = 10**6
        job = engine.submit(batch([[1, 2]], greedy(2), prefixes=[HOT]), prepared=flag)
        engine.release(built)
        while not waiting.placed:
            engine.step()
        engine.release(waiting)
        drain(engine, job)
        return sum(decoder.sizes)

    assert prepared(True) == len(HOT) + 3
    assert prepared(False) == 2 * len(HOT) + 3, "read twice"


def test_what_nobody_may_find_needs_memory_of_its_own():
    engine = small_engine(Echo(), extents=ARENA)
    held = engine.hold(ids(HOT))
    waiting = engine.hold(ids(BIG))
    job = engine.submit(batch([[1]], greedy(1), prefixes=[HOT], reuse=False))
    for _ in range(5):
        assert engine.step() == {}
    engine.release(held)
    engine.step()
    assert waiting.placed
    engine.release(waiting)
    drain(engine, job)


def test_many_small_contexts_leave_room_for_a_big_one_exactly():
    """What is held and what is free, counted in extents: 18 of 20 can be had beside the one."""
    engine = small_engine(Echo(), extents=ARENA)
    prefixes = [[1000 + 50 * i + j for j in range(20)] for i in range(10)]
    drain(
        engine, engine.submit(batch([[1]] * 10, greedy(1), prefixes=prefixes, prefix_of=range(10)))
    )
    held = engine.hold(ids(prefixes[3]))
    big = engine.hold(ids(prefix(200, 18)))
    assert held.placed and big.placed
    engine.check()


def test_what_can_never_fit_is_told_so():
    seen: list[tuple] = []
    engine = small_engine(Echo(), extents=ARENA)
    with pytest.raises(OutOfMemory):
        engine.hold(ids(prefix(1, 21)))
    other = engine.hold(ids(prefix(1, 12)))
    waiting = engine.hold(ids(BIG), lambda *state: seen.append(state))
    engine.step()
    assert engine.stalled and not seen and waiting.error is None, "the other may be released"
    engine.end(RuntimeError("closed"))
    assert str(waiting.error) == "closed" == str(other.error) and seen == [(0, len(BIG), False)]


@pytest.mark.parametrize("who", ["rows", "build"])
def test_nobody_waits_for_memory_that_will_not_come(who):
    engine = small_engine(Echo(), extents=ARENA)
    leaf = engine.tree.insert(ids(HOT), 0.0)
    engine.tree.pin(leaf)  # as if somebody had forgotten to let go
    if who == "rows":
        (answers,) = drain(engine, engine.submit(batch([[1]], prefixes=[BIG])))
        assert "does not fit" in answers.errors[0]
    else:
        seen: list[tuple] = []
        waiting = engine.hold(ids(BIG), lambda *state: seen.append(state))
        engine.step()
        assert isinstance(waiting.error, OutOfMemory) and seen and engine.idle


@pytest.mark.parametrize("seed", range(4))
def test_everybody_is_served(seed):
    """Contexts of all sizes that fit only in part, questions and builds, at random."""
    make = np.random.default_rng(seed)
    contexts = [prefix(100 * i, int(make.integers(1, 19))) for i in range(1, 9)]
    stream = Stream(max_sequences=6)
    builds = []
    for name, tokens in enumerate(contexts):
        stream.submit(name, tokens, rows=int(make.integers(1, 60)), new=int(make.integers(1, 9)))
    wanted = stream.waiting.copy()
    for _ in range(6):
        reading = stream.engine.hold(ids(contexts[make.integers(8)]))
        stream.engine.read(reading) if reading.placed else None
        builds.append(reading)
    while stream.ended != wanted or builds:
        stream.step()
        for reading in [r for r in builds if r.placed and make.random() < 0.2]:
            stream.engine.release(reading)
            builds.remove(reading)
        assert stream.steps < 6000
    assert stream.engine.idle
    assert not any(segment.pins for segment in stream.engine.tree.segments)
