"""Both at once: what is computed from the front and what comes from the end make one prefix,
however the two take turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.engine.engine import Engine
from preread.engine.meeting import Meeting
from preread.engine.reading import Reading
from preread.engine.uploads import Behind, Uploads
from preread.store.keys import Box
from preread.testing.conformance_tier import Clock
from tests.engine.helpers import Answers, Echo, Flaky, batch, drain, greedy, run, small_engine
from tests.engine.test_reading import ids

SPAN, LENGTH = 16, 150  # nine whole spans and one of 6 tokens
BOOK = [100 + i % 60 for i in range(LENGTH)]
FORK = [*BOOK[:72], *range(300, 340)]  # parts in the middle of a span
QUESTIONS = [[1, 2, 3], [4, 5]]
STARTS = list(range(0, LENGTH, SPAN))


@dataclass
class Feed:
    """A load by hand: gives the spans of a prefix from its end. kv: what it gives."""

    engine: Engine
    kv: torch.Tensor
    reading: Reading
    upto: int = LENGTH
    token_s: float = 1e-3
    clock: Clock = field(default_factory=Clock)
    stopped: int = 0
    loaded: int = 0
    uploads: Uploads = field(default_factory=lambda: Uploads(torch.device("cpu")))

    def __post_init__(self) -> None:
        self.meeting = Meeting(
            self.upto, SPAN, self.token_s, lambda a, b: (b - a) * 1e-3,
            self.write, self.uploads, lambda: None, lambda: True, self.clock,
        )  # fmt: skip
        self.meeting.listen(self.stop)
        self.left = [a for a in STARTS if a < self.upto]
        assert self.engine.readings.meet(self.reading, self.meeting) < self.upto

    def stop(self) -> None:
        self.stopped += 1

    def write(self, first: int, box: Box, kv: torch.Tensor) -> None:
        leaf = self.reading.leaf
        assert leaf is not None and self.engine.tree.ready(leaf, self.upto) <= first
        runs = self.engine.tree.runs(leaf, first, box.token_end)
        self.engine.arena.write(runs, kv[:, :, :, first - box.token_start :], box.cell)

    def give(self, *, whole: bool = True, middle: Callable[[], None] | None = None) -> bool:
        """The next span, in two boxes; middle: between them. False: nothing more is wanted."""
        start = self.left[-1] if self.left else 0
        end = min(start + SPAN, self.upto)
        if not self.left or not self.meeting.begin(start, end):
            return False
        self.left.pop()
        layers, _, heads, _, _ = self.kv.shape
        cut = layers // 2
        for i, j in ((0, cut), (cut, layers)) if whole else ((0, cut),):
            box = Box(start, end, i, j, 0, heads)
            self.meeting.fill(box, self.kv[i:j, :, :, start:end])
            if i == 0 and middle is not None:
                middle()
        self.loaded += self.meeting.end(start, end, whole=whole)
        return True

    def done(self) -> None:
        """The load is over."""
        self.engine.readings.met(self.reading)
        self.engine.check()


def truth(decoder) -> torch.Tensor:
    """The KV of the whole book, all of it computed: [layers, 2, heads, tokens, head_dim]."""
    engine = small_engine(decoder)
    reading = engine.hold(ids(BOOK))
    engine.read(reading)
    while not engine.idle:
        engine.step()
    return engine.arena.read(reading.runs)


@pytest.fixture(scope="module")
def kv(decoder) -> torch.Tensor:
    return truth(decoder)


@pytest.fixture(scope="module")
def answers(decoder):
    """What is answered where everything is computed: of the book, and of what forks from it."""
    return {name: asked(small_engine(decoder), text) for name, text in TEXTS.items()}


TEXTS = {"book": BOOK, "fork": FORK, "short": BOOK[:40]}


def asked(engine: Engine, text: list[int]) -> tuple[list[list[int]], list[list[float]]]:
    (got,) = run(engine, batch(QUESTIONS, greedy(6, logprobs=True), prefixes=[text]))
    return got.rows(), [got.logprobs[i] for i in sorted(got.logprobs)]


def same(got, want) -> None:
    assert got[0] == want[0]
    for one, other in zip(got[1], want[1], strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def finished(engine: Engine, reading: Reading) -> None:
    for _ in range(100):
        if engine.readings.done(reading):
            return
        engine.step()
        engine.check()
    raise AssertionError("it is never ready")


def met(engine: Engine, feed: Feed) -> None:
    """Compute what is left, in steps; the load gives nothing more."""
    for _ in range(100):
        if engine.readings.done(feed.reading):
            break
        engine.step()
        feed.clock.tick(1)
        engine.check()
    feed.done()
    engine.read(feed.reading)
    finished(engine, feed.reading)


def right(engine: Engine, feed: Feed, kv: torch.Tensor) -> None:
    """What came is there to the bit, and what was computed as it would be elsewhere."""
    got = engine.arena.read(feed.reading.runs)[:, :, :, : feed.upto]
    assert torch.allclose(got, kv[:, :, :, : feed.upto], atol=1e-4)


@pytest.fixture
def engine(decoder) -> Engine:
    return small_engine(decoder)


@pytest.mark.parametrize("spans", range(len(STARTS) + 1))
def test_they_meet_at_every_span(engine, kv, answers, spans):
    feed = Feed(engine, kv, engine.hold(ids(BOOK)))
    for _ in range(spans):
        assert feed.give()
    met(engine, feed)
    computed = engine.settle(feed.reading)
    back = STARTS[-spans] if spans else LENGTH
    assert (computed, feed.loaded) == (back, LENGTH - back)
    right(engine, feed, kv)
    same(asked(engine, BOOK), answers["book"])
    assert feed.stopped or spans == len(STARTS), "a load that nobody wants is told"
    assert not feed.give(), "and gives nothing more"


def test_no_more_boxes_are_under_way_in_a_span_of_many(engine, kv):
    """What they are copied from is memory that a load has only so much of, see store.room."""

    class Counts(Uploads):
        under_way = most = 0

        def behind(self) -> Behind:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            return super().behind()

        def ease(self) -> None:
            self.under_way = 0

    uploads = Counts(torch.device("cpu"))
    feed = Feed(engine, kv, engine.hold(ids(BOOK)), uploads=uploads)
    while feed.give():
        pass
    assert (feed.loaded, uploads.most) == (LENGTH, 1)


@pytest.mark.parametrize("every", range(1, 5))
def test_they_take_turns(engine, kv, answers, every):
    """A step of the engine after so many spans."""
    feed = Feed(engine, kv, engine.hold(ids(BOOK)))
    given = 0
    while feed.give():
        given += 1
        feed.clock.tick(0.01)
        if given % every == 0:
            engine.step()
            engine.check()
    met(engine, feed)
    assert engine.settle(feed.reading) + feed.loaded == LENGTH
    assert 0 < feed.loaded < LENGTH
    right(engine, feed, kv)
    same(asked(engine, BOOK), answers["book"])


def test_nobody_sees_what_lies_behind_the_gap(engine, kv, answers):
    """Rows on the book wait; those on its beginning run when that is computed."""
    feed = Feed(engine, kv, engine.hold(ids(BOOK)))
    for _ in range(5):
        feed.clock.tick(0.1)  # six times as slow as computing
        feed.give()
    engine.readings.fetch()
    leaf = feed.reading.leaf
    assert engine.tree.ready(leaf, LENGTH) == 0 and not engine.resident(ids(BOOK))
    job = engine.submit(batch(QUESTIONS, greedy(6, logprobs=True), prefixes=[BOOK]))
    short = engine.submit(batch(QUESTIONS, greedy(6, logprobs=True), prefixes=[TEXTS["short"]]))
    engine.step()  # 48 of the 70 tokens before the gap ends
    assert 0 < engine.tree.ready(leaf, LENGTH) < LENGTH - 5 * SPAN
    assert not engine._seqs.state.any()
    got = drain(engine, short, job)
    feed.done()
    for one, name in zip(got, ("short", "book"), strict=True):
        same((one.rows(), [one.logprobs[i] for i in sorted(one.logprobs)]), answers[name])


def test_the_engine_may_compute_into_a_span_that_is_on_its_way(engine, kv):
    """Between its first and its second box: what the engine took stays the engine's."""
    feed = Feed(engine, kv, engine.hold(ids(BOOK)), upto=40, token_s=10.0)
    assert feed.give()  # [32, 40)

    def computes() -> None:
        taken = feed.meeting.take(0, 20)
        assert taken == 20, "of the span [16, 32) the first four tokens"

    assert feed.give(middle=computes)
    assert feed.loaded == 8 + 12 and feed.meeting.front == 20
    assert not feed.give(), "the rest is the engine's"
    met(engine, feed)
    assert engine.settle(feed.reading) == LENGTH - 20
    right(engine, feed, kv)


@pytest.mark.parametrize("bad", range(len(STARTS)))
def test_a_span_that_is_not_to_be_had_is_computed(engine, kv, answers, bad):
    """What came behind it stays, what comes before it comes all the same."""
    feed = Feed(engine, kv, engine.hold(ids(BOOK)))
    for n in range(len(STARTS)):
        feed.give(whole=n != bad)
    met(engine, feed)
    lost = min(SPAN, LENGTH - STARTS[::-1][bad])
    assert (engine.settle(feed.reading), feed.loaded) == (lost, LENGTH - lost)
    right(engine, feed, kv)
    same(asked(engine, BOOK), answers["book"])


@pytest.mark.parametrize("when", range(8))
def test_a_fork_splits_what_is_under_way(engine, kv, answers, when):
    """Between the spans and steps of a meeting; both texts are answered."""
    feed = Feed(engine, kv, engine.hold(ids(BOOK)))
    for step in range(8):
        if step == when:
            job = engine.submit(batch(QUESTIONS, greedy(6, logprobs=True), prefixes=[FORK]))
        feed.give()
        if step % 3 == 2:
            engine.step()
        engine.check()
    met(engine, feed)
    (fork,) = drain(engine, job)
    same((fork.rows(), [fork.logprobs[i] for i in sorted(fork.logprobs)]), answers["fork"])
    right(engine, feed, kv)
    same(asked(engine, BOOK), answers["book"])


def test_two_readers_and_one_that_knows_the_beginning(engine, kv, answers):
    """One account for what is computed, nothing twice."""
    first = engine.hold(ids(BOOK), stores=True)
    feed = Feed(engine, kv, first)
    second, short = engine.hold(ids(BOOK)), engine.hold(ids(TEXTS["short"]))
    for reading in (second, short):
        engine.read(reading)
    for _ in range(4):
        feed.give()
    met(engine, feed)
    paid = [engine.settle(reading) for reading in (first, second, short)]
    assert paid == [LENGTH - feed.loaded, 0, 0]
    for name in ("book", "short"):
        same(asked(engine, TEXTS[name]), answers[name])


def test_what_is_given_up_stays_for_the_next(engine, kv, answers):
    """A caller leaves while it is loaded: the tail behind the gap is there for who comes then."""
    feed = Feed(engine, kv, engine.hold(ids(BOOK)))
    for _ in range(4):
        feed.give()
    engine.step()
    feed.done()
    engine.release(feed.reading)
    engine.check()
    again = engine.hold(ids(BOOK))
    engine.read(again)
    finished(engine, again)
    assert again.cached + engine.settle(again) + feed.loaded == LENGTH
    same(asked(engine, BOOK), answers["book"])


@pytest.mark.parametrize("way", ["alone", "both"])
def test_what_is_loaded_again_is_not_believed_before_it_has_come(engine, kv, answers, way):
    """A load may write to its places before it has verified what it writes."""
    feed = Feed(engine, kv, engine.hold(ids(BOOK)))
    for _ in range(4):
        feed.give()
    feed.done()
    engine.release(feed.reading)
    again = engine.hold(ids(BOOK))
    assert engine.tree.path(again.leaf)[0].ahead
    if way == "both":
        feed = Feed(engine, kv, again)
    else:
        assert engine.loading(again, LENGTH) == 0
    engine.arena.write(again.runs, torch.full_like(kv, torch.nan))
    assert not any(segment.ahead for segment in engine.tree.path(again.leaf))
    if way == "both":
        feed.done()
    else:
        engine.loaded(again, 0)
    engine.read(again)
    finished(engine, again)
    assert engine.settle(again) == LENGTH
    same(asked(engine, BOOK), answers["book"])


def test_a_turn_that_ends_on_what_is_being_loaded_is_not_kept(engine, kv):
    job = engine.submit(batch([[5, 6, 7]], greedy(3), prefixes=[BOOK[:40]], keep=True))
    for _ in range(2):
        engine.step()
    (slot,) = np.flatnonzero(engine._seqs.state).tolist()
    whole = ids([*BOOK[:40], 5, 6, 7, *range(500, 540)])
    reading = engine.hold(whole)
    assert engine.loading(reading, len(whole)) == 40
    (got,) = drain(engine, job)
    assert got.finish[0] is not None and slot >= 0
    assert engine.tree.ready(reading.leaf, len(whole)) == 40, "nothing was written there"
    assert engine.metrics.snapshot()["engine.rows_not_kept"] == 1
    engine.loaded(reading, 40)


def test_what_lies_behind_a_gap_goes_when_memory_is_needed(decoder, kv):
    engine = small_engine(decoder, extents=12)
    feed = Feed(engine, kv, engine.hold(ids(BOOK)))
    feed.give()
    engine.step()
    feed.done()
    other = ids([7] * 180)
    waits = engine.hold(other)
    assert not waits.placed, "it is held"
    engine.release(feed.reading)
    engine.step()
    assert waits.placed
    engine.check()
    assert engine.tree.match(ids(BOOK))[1] == 0


def test_forgotten_while_it_is_loaded(engine, kv):
    feed = Feed(engine, kv, engine.hold(ids(BOOK)))
    feed.give()
    engine.tree.forget(ids(BOOK))
    met(engine, feed)
    right(engine, feed, kv)
    engine.release(feed.reading)
    engine.check()
    assert not engine.tree.segments


def test_nothing_behind_the_cut_is_computed_before_its_turn(engine, kv):
    """The rest may be another process's to compute."""
    feed = Feed(engine, kv, engine.hold(ids(BOOK)), upto=96)
    while feed.give():
        pass
    for _ in range(5):
        engine.step()
    leaf = feed.reading.leaf
    assert engine.tree.ready(leaf, LENGTH) == 96 and engine.stalled
    feed.done()
    assert engine.idle


def test_a_step_that_fails_is_taken_again_smaller(decoder, kv):
    flaky = Flaky(decoder, most=20)
    engine = small_engine(flaky)
    feed = Feed(engine, kv, engine.hold(ids(BOOK)))
    feed.give()
    met(engine, feed)
    assert flaky.failures
    right(engine, feed, kv)


def test_what_cannot_be_computed_ends_the_load(decoder):
    kv = truth(decoder)
    engine = small_engine(Flaky(decoder, poison=BOOK[20]))
    feed = Feed(engine, kv, engine.hold(ids(BOOK)))
    feed.give()
    for _ in range(50):
        engine.step()
    assert feed.reading.error is not None and feed.stopped and not feed.give()
    feed.done()
    engine.release(feed.reading)
    engine.check()


# --- who waits for whom ---


class Passed(Uploads):
    """Copies that are given and, later, passed by who launches steps."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.given = self.passed = 0

    def behind(self) -> Behind:
        self.given += 1
        return partial(setattr, self, "passed", self.given)

    def check(self) -> None:
        assert self.passed == self.given, "a step may run before a copy of what it sees, or over it"


def alone(front: int, token_s: float, clock: Clock, **options: object) -> Meeting:
    """Tokens [0, 160), computed at a millisecond each."""
    meeting = Meeting(
        160, SPAN, token_s, lambda a, b: (b - a) * 1e-3,
        lambda *_: None, Passed(), lambda: None, lambda: True, clock,
    )  # fmt: skip
    meeting.open(front)
    return meeting


def give(meeting: Meeting, start: int) -> None:
    assert meeting.begin(start, start + SPAN)
    meeting.end(start, start + SPAN, whole=True)


def test_the_front_goes_half_of_the_way_to_where_they_should_meet():
    clock = Clock()
    meeting = alone(0, 1e-3, clock)
    assert meeting.take(0, 1000) == 40  # of 80
    assert meeting.take(0, 1000) == 40, "they are the engine's"
    assert meeting.take(0, 10) == 10
    clock.tick(0.04)
    assert meeting.take(40, 1000) == 28, "nothing came, so they meet later: at 96"
    slow = alone(0, 1.0, clock)
    assert slow.take(0, 1000) == 160, "where the load is much slower all is computed"


def test_the_last_span_is_waited_for_where_it_is_nearly_there():
    clock = Clock()
    meeting = alone(128, 0.9e-3, clock)  # due after 14 ms; computing takes 16
    clock.tick(0.010)
    assert meeting.take(128, 1000) == 16, "up to where it begins"
    assert meeting.take(144, 1000) == 0 and meeting.wait_s() == pytest.approx(0.016, rel=1e-4)
    clock.tick(0.004)
    assert meeting.take(144, 1000) == 0 and meeting.wait_s() == pytest.approx(0.012, rel=1e-4)
    assert not meeting.resumed()
    give(meeting, 144)
    assert meeting.fetch() == [(144, 160)]


def test_nothing_is_waited_for_longer_than_computing_it_takes():
    clock = Clock()
    meeting, stopped = alone(144, 0.9e-3, clock), []
    meeting.listen(lambda: stopped.append(True))
    assert meeting.take(144, 1000) == 0
    clock.tick(0.0161)
    assert meeting.take(144, 1000) == 16 and stopped
    assert meeting.resumed() and not meeting.resumed() and meeting.wait_s() is None
    assert not meeting.begin(144, 160)


def test_what_has_come_is_fetched_before_anything_behind_it_is_computed():
    meeting = alone(144, 1e-3, Clock())
    give(meeting, 144)
    assert meeting.take(144, 1000) == 0 and meeting.fetch() == [(144, 160)]


def test_who_has_left_gets_nothing_more():
    meeting = Meeting(
        160, SPAN, 1e-3, lambda a, b: 1.0, lambda *_: None, Passed(), lambda: None, lambda: False
    )  # fmt: skip
    assert not meeting.begin(144, 160)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(0, 199),
    st.integers(1, 40),
    st.sampled_from([1e-6, 1e-3, 1e-2, 10.0]),
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 100), st.booleans()), max_size=80),
)
def test_every_token_is_computed_or_comes_and_none_both(upto, start, span, token_s, moves):
    """Any interleaving. An array of tokens is the twin: 1 computed, 2 came."""
    start = start % upto
    clock, state, copies = Clock(), np.zeros(upto, np.int8), Passed()
    state[:start] = 1

    def write(first: int, box: Box, kv: torch.Tensor) -> None:
        assert (state[first : box.token_end] == 0).all(), "written over"

    meeting = Meeting(
        upto, span, token_s, lambda a, b: (b - a) * 1e-3 + 1e-3, write, copies, lambda: None,
        lambda: True, clock,
    )  # fmt: skip
    meeting.open(start)
    starts = [n for n in range(0, upto, span) if n + span > start]
    ready, open_span = start, None

    def computes(want: int) -> None:
        nonlocal ready
        for lo, hi in meeting.fetch():
            assert (state[lo:hi] == 0).all()
            state[lo:hi] = 2
        while ready < upto and state[ready] == 2:
            ready += 1
        stop = ready
        while stop < upto and state[stop] == 0:
            stop += 1
        if (taken := meeting.take(ready, min(want, stop - ready))) > 0:
            assert (state[ready : ready + taken] == 0).all()
            copies.check()
            state[ready : ready + taken] = 1
            ready += taken

    for move, n, whole in moves:
        clock.tick(n * 1e-4)
        if move < 2:
            computes(n)
        elif open_span is None and starts:
            first, end = max(starts[-1], start), min(starts[-1] + span, upto)
            if not meeting.begin(first, end):
                starts = []
                continue
            open_span = first, end
        elif open_span is not None:
            first, end = open_span
            meeting.fill(Box(first, end, 0, 1, 0, 1), torch.empty(0))
            if move > 2:
                meeting.end(first, end, whole=whole)
                starts.pop()
                open_span = None
    for _ in range(500):
        clock.tick(1)
        computes(1000)
        if ready == upto:
            break
    assert ready == upto and (state > 0).all()


# --- accounts ---


class Random:
    """One meeting at a time over random readings, given by hand."""

    def __init__(self, engine: Engine, make: np.random.Generator) -> None:
        self.engine, self.make = engine, make
        self.reading: Reading | None = None

    def begin(self, reading: Reading) -> None:
        upto, clock = int(self.make.integers(1, reading.upto + 1)), Clock()
        meeting = Meeting(
            upto, SPAN, float(self.make.choice([1e-6, 1e-3, 10.0])), lambda a, b: (b - a) * 1e-3,
            lambda *_: None, Passed(), lambda: None, lambda: True, clock,
        )  # fmt: skip
        start = self.engine.readings.meet(reading, meeting)
        if start < upto:
            self.reading, self.clock, self.meeting = reading, clock, meeting
            self.left = [(max(a, start), min(a + SPAN, upto)) for a in range(0, upto, SPAN)]
            self.left = [(a, b) for a, b in self.left if a < b]

    def give(self) -> None:
        self.clock.tick(float(self.make.choice([0, 1e-3, 1])))
        if self.left and self.meeting.begin(*self.left[-1]):
            self.meeting.end(*self.left.pop(), whole=bool(self.make.random() < 0.8))
        else:
            self.end()

    def end(self) -> None:
        """As Bringer does, whatever has become of it."""
        assert self.reading is not None
        self.engine.readings.met(self.reading)
        self.engine.read(self.reading)
        self.reading = None


@pytest.mark.parametrize("seed", range(12))
def test_everything_computed_is_on_exactly_one_account(seed):
    """Builds, questions and loads of prefixes with common beginnings come and go at random. One
    build of everything is there from the first to the last."""
    make = np.random.default_rng(seed)
    decoder = Echo()
    engine = small_engine(decoder, extents=200)
    texts = [make.integers(0, 2, 200).tolist() for _ in range(3)]
    texts += [texts[i][: int(n)] + [7] * 50 for i, n in enumerate(make.integers(1, 200, 3))]
    always = [engine.hold(ids(text)) for text in texts]
    builds: list[Reading] = []
    answers: dict[int, Answers] = {}
    own, load, paid = {}, Random(engine, make), 0
    for _ in range(120):
        move, text = make.random(), texts[make.integers(6)][: int(make.integers(1, 251))]
        if move < 0.15:
            builds.append(engine.hold(ids(text), stores=bool(make.integers(2))))
            engine.read(builds[-1])
        elif move < 0.3:
            job = engine.submit(batch([[9] * 3] * 2, greedy(1), prefixes=[text]))
            answers[job], own[job] = Answers(), len(text)
        elif move < 0.35 and own:
            engine.cancel(int(make.choice(list(own))))
        elif move < 0.5 and load.reading is None and builds:
            load.begin(builds[int(make.integers(len(builds)))])
        elif move < 0.8 and load.reading is not None:
            load.give()
        for reading in [r for r in builds if make.random() < 0.1 or engine.readings.done(r)]:
            if reading is load.reading:
                load.end()
            paid += engine.settle(reading) if engine.readings.done(reading) else 0
            engine.release(reading)
            builds.remove(reading)
        for job, news in engine.step().items():
            answers[job].add(news)
    if load.reading is not None:
        load.end()
    for reading in always:
        engine.read(reading)
    for _ in range(2000):
        if engine.idle and not engine.has_news:
            break
        for job, news in engine.step().items():
            answers[job].add(news)
    assert engine.idle
    paid += sum(engine.settle(reading) for reading in [*builds, *always])
    for job, got in answers.items():
        assert all(u[1] + u[2] in (0, own[job] + 3) for u in got.usage.values())
        paid += sum(u[2] for u in got.usage.values())
    assert paid == sum(decoder.sizes)
