"""Fair shares, and two queues that progress side by side."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from preread.engine.turns import even, portions
from preread.tokens.batch import ChooseSpec
from preread.tokens.labels import label_trie
from tests.engine.helpers import Echo, batch, drain, greedy, small_engine

A, B, C = ([base + i for i in range(40)] for base in (100, 200, 300))


@pytest.mark.parametrize(
    ("free", "running", "waiting", "shares"),
    [
        (4, [0, 0], [9, 9], [2, 2]),
        (5, [0, 0], [9, 9], [3, 2]),  # what cannot be divided goes to the first
        (1, [3, 2], [9, 9], [0, 1]),
        (4, [4, 0], [9, 9], [0, 4]),
        (6, [4, 0], [9, 9], [1, 5]),
        (9, [0, 0, 0], [1, 9, 2], [1, 6, 2]),  # nobody's share is left unused
        (3, [0], [1], [1]),
        (0, [1], [1], [0]),
        (2, [], [], []),
    ],
)
def test_even_shares(free, running, waiting, shares):
    assert even(free, running, waiting) == shares


@pytest.mark.parametrize("seed", range(20))
def test_even_shares_leave_nobody_behind(seed):
    make = np.random.default_rng(seed)
    n, free = int(make.integers(1, 8)), int(make.integers(0, 30))
    running, waiting = make.integers(0, 9, n), make.integers(0, 9, n)
    shares = np.array(even(free, running.tolist(), waiting.tolist()))
    assert shares.sum() == min(free, waiting.sum())
    assert ((shares >= 0) & (shares <= waiting)).all()
    unsatisfied = shares < waiting
    for i in np.flatnonzero(unsatisfied):  # whoever wants more runs no less than who got some
        assert ((running + shares)[shares > 0] <= (running + shares)[i] + 1).all()


@pytest.mark.parametrize(
    ("room", "pending", "extra", "fresh", "counts"),
    [
        (10, [4, 4, 4], 0, False, [4, 4, 2]),
        (10, [4, 4], 3, False, [4, 3]),  # the labels of the first take the room of the second
        (10, [9], 3, False, [8]),  # the labels do not fit: the last token stays with them
        (10, [1], 30, False, [0]),
        (10, [1, 1], 30, True, [1, 0]),  # more room there will never be
        (10, [5], 30, True, [4]),
        (0, [3], 0, True, [0]),
        (-4, [3], 2, True, [0]),
        (10, [], 3, True, []),
    ],
)
def test_portions_of_a_step(room, pending, extra, fresh, counts):
    assert portions(room, np.array(pending, np.int64), extra, fresh).tolist() == counts


class Race:
    """Runs an engine and notes which context each ended row belongs to."""

    def __init__(self, **config: object) -> None:
        self.engine = small_engine(Echo(), **config)
        self.context: dict[int, int] = {}
        self.ended: Counter[int] = Counter()

    def submit(self, name: int, rows: int, tokens: int, prefix: list[int]) -> None:
        work = batch([[1, 2]] * rows, greedy(tokens), prefixes=[prefix])
        self.context[self.engine.submit(work)] = name

    def warm(self, *prefixes: list[int]) -> None:
        drain(self.engine, *(self.engine.submit(batch([[1]], prefixes=[p])) for p in prefixes))

    def step(self) -> Counter[int]:
        for job, news in self.engine.step().items():
            self.ended[self.context[job]] += int((news.finish > 0).sum())
        return self.ended


@pytest.mark.parametrize("jobs", [(60, 60), (1, 1), (60, 1), (1, 60)])
def test_two_contexts_with_long_queues_progress_side_by_side(jobs):
    race = Race(max_sequences=4)
    race.warm(A, B)
    for name, (prefix, n) in enumerate(zip((A, B), jobs, strict=True)):
        for _ in range(n):
            race.submit(name, 60 // n, 3, prefix)
    for _ in range(80):
        ended = race.step()
        assert abs(ended[0] - ended[1]) <= 4
    assert ended[0] + ended[1] >= 90


def test_long_answers_do_not_take_the_slots_of_short_ones():
    race = Race(max_sequences=8)
    race.warm(A, B)
    race.submit(0, 40, 60, A)
    race.submit(1, 40, 1, B)
    for _ in range(12):
        race.step()
    assert race.ended[1] == 40, "half of the slots are theirs, and each is used for one step"


def test_a_late_context_gets_its_share_at_once():
    race = Race(max_sequences=4)
    race.warm(A, B)
    race.submit(0, 400, 3, A)
    for _ in range(90):
        race.step()
    before = race.ended[0]
    race.submit(1, 40, 3, B)
    for _ in range(60):
        ended = race.step()
    assert abs((ended[0] - before) - ended[1]) <= 8


def test_a_queue_that_was_served_for_long_is_not_starved_by_newcomers():
    """A stream of new contexts, each with one row, that takes half of the slots."""
    race = Race(max_sequences=2)
    race.warm(A)
    race.submit(0, 400, 2, A)
    for i in range(120):
        race.step()
        if i % 2:
            race.submit(1, 1, 2, [1000 + i, 1, 2])
    assert race.ended[0] >= 50 and race.ended[1] >= 50


def test_slots_that_one_context_cannot_use_go_to_others():
    race = Race(max_sequences=6)
    race.warm(A, B, C)
    for name, (rows, prefix) in enumerate(((1, A), (30, B), (30, C))):
        race.submit(name, rows, 4, prefix)
    race.step()
    assert (race.engine._seqs.state > 0).sum() == 6
    race.step()
    assert np.unique(race.engine._seqs.queue, return_counts=True)[1].max() == 3


def test_a_question_does_not_wait_behind_a_batch_on_the_same_context():
    race = Race(max_sequences=4)
    race.warm(A)
    race.submit(0, 300, 5, A)
    for _ in range(3):
        race.step()
    race.submit(1, 1, 5, A)
    for _ in range(12):
        race.step()
    assert race.ended[1] == 1


def test_jobs_on_one_context_take_turns():
    race = Race(max_sequences=1)
    race.warm(A)
    for name in range(3):
        race.submit(name, 20, 1, A)
    for _ in range(30):
        ended = race.step()
        assert max(ended.values()) - min(ended[name] for name in range(3)) <= 1
    assert sum(ended.values()) == 30


def test_what_waits_for_pages_comes_before_all_that_came_later():
    """A row that needs most of the pages, on a context with a stream of questions, beside another
    such context."""
    race = Race(max_sequences=8, pages=24)
    race.warm(A, B)
    race.submit(2, 1, 60, A)  # never enough of them at once, while others come in
    for i in range(40):
        for name, prefix in enumerate((A, B)):
            race.submit(name, 1, 2 + i % 5, prefix)
    big = batch([[9] * 70], greedy(3), prefixes=[A])
    race.context[race.engine.submit(big)] = 3
    for i in range(70):
        for name, prefix in enumerate((A, B)):
            race.submit(name, 1, 2 + i % 5, prefix)
        if race.step()[3]:
            break
    assert race.ended[3] == 1 and race.ended[0] < 60 and race.ended[1] < 60


def test_what_the_tokens_of_a_step_allow_is_shared_over_the_steps():
    """A step has room for two questions; both contexts get answers."""
    race = Race(batch_tokens=20, max_sequences=32)
    race.warm(A, B)
    for name, prefix in enumerate((A, B)):
        work = batch([[7] * 10] * 30, greedy(1), prefixes=[prefix])
        race.context[race.engine.submit(work)] = name
    for _ in range(20):
        ended = race.step()
        assert abs(ended[0] - ended[1]) <= 2
    assert ended[0] + ended[1] == 40


def test_raw_prompts_share_the_slots_between_their_jobs():
    race = Race(max_sequences=4)
    for name in (0, 1):
        race.context[race.engine.submit(batch([[3, 4]] * 50, greedy(2)))] = name
    for _ in range(30):
        ended = race.step()
        assert abs(ended[0] - ended[1]) <= 4
    assert ended[0] > 20


def test_several_contexts_are_read_at_once_however_many_jobs_wait_on_each():
    race = Race()
    for name, prefix in enumerate((A, B, C, [7] * 40, [8] * 40)):
        for _ in range(6):
            race.submit(name, 1, 2, prefix)
    race.step()
    assert race.engine.decoder.sizes == [5 * 40]
    race.step()
    assert race.engine.decoder.sizes[1] == 5 * 6 * 2


def test_of_short_contexts_as_many_are_read_at_once_as_a_step_holds():
    race = Race(batch_tokens=200)
    for name in range(12):
        race.submit(name, 1, 2, [name + 10, 5] * 20)
    race.step()
    assert race.engine.decoder.sizes == [5 * 40]
    race = Race(batch_tokens=60)  # but never fewer than four
    for name in range(12):
        race.submit(name, 1, 2, [name + 10, 5] * 20)
    race.step()
    assert race.engine.decoder.sizes == [60] and len(race.engine._admission._begun) == 4


def test_rows_of_many_contexts_that_are_there_come_in_at_once():
    race, prefixes = Race(max_sequences=24), [[name, 5] * 20 for name in range(10)]
    race.warm(*prefixes)
    race.engine.decoder.sizes.clear()
    race.engine.submit(
        batch([[1, 2, 3]] * 40, greedy(2), prefixes=prefixes, prefix_of=[*range(10)] * 4)
    )
    race.engine.step()
    assert race.engine.decoder.sizes == [24 * 3]


LABELS = ChooseSpec(label_trie([[5, 6, 7], [5, 8, 9], [4, 4], [3] * 6]))  # 9 inner nodes


@pytest.mark.parametrize("budget", [12, 40, 100])
def test_labels_count_in_the_tokens_of_a_step(budget):
    decoder = Echo()
    engine = small_engine(decoder, batch_tokens=budget)
    assert len(LABELS.trie.tokens) == 9
    drain(engine, engine.submit(batch([[7] * 3 for _ in range(40)], LABELS)))
    assert max(decoder.sizes) <= budget
    assert len(decoder.sizes) <= 1 + -(-40 * 12 // (budget - budget % 12)), "and fill it"


def test_a_long_prompt_with_labels_keeps_its_last_token_for_them():
    decoder = Echo()
    engine = small_engine(decoder, batch_tokens=16)
    (got,) = drain(engine, engine.submit(batch([[7] * 30, [7] * 14], LABELS)))
    assert max(decoder.sizes) <= 16 and sum(decoder.sizes) == 44 + 2 * 9
    assert [got.usage[i][2] for i in (0, 1)] == [30, 14]


def test_labels_count_where_most_of_a_prompt_is_found_in_memory():
    """The second row needs 10 + 9 tokens of the 12 that are left, though it came with 40."""
    decoder = Echo()
    engine = small_engine(decoder, batch_tokens=30 + 9 + 12)
    known = list(range(500, 530))
    drain(engine, engine.submit(batch([[1]], greedy(1), prefixes=[known])))
    decoder.sizes.clear()
    (got,) = drain(engine, engine.submit(batch([[7] * 30, [*known, *[8] * 10]], LABELS)))
    assert got.usage[1][1:3] == (30, 10)
    assert max(decoder.sizes) <= 51 and sum(decoder.sizes) == 40 + 2 * 9


def test_more_labels_than_a_step_has_room_for_run_alone():
    decoder = Echo()
    engine = small_engine(decoder, batch_tokens=8)
    writing = engine.submit(batch([[1]] * 3, greedy(30)))
    chosen = engine.submit(batch([[7] * 5] * 4, LABELS))
    answers = drain(engine, writing, chosen)
    assert all(len(a.finish) == n for a, n in zip(answers, (3, 4), strict=True))
    assert max(decoder.sizes) <= 3 + 1 + 9, "one row's labels at a time, beside what decodes"
