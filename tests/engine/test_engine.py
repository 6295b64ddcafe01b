"""The engine over a tiny model: every road gives what recomputing everything gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from preread.engine.engine import Engine
from preread.testing.models import forward
from preread.testing.models import greedy as recomputed
from preread.tokens.batch import ChooseSpec, GenerateSpec, LikelihoodSpec
from preread.tokens.labels import label_trie
from preread.types import Finish, Sampling
from tests.engine.helpers import SMALL, Flaky, batch, drain, greedy, run

MAKE = np.random.default_rng(5)


def text(n: int) -> list[int]:
    return MAKE.integers(0, 256, n).tolist()


BOOK = text(150)
BOOK_2 = BOOK[:90] + text(40)  # version 2 of it
OWN = [text(n) for n in (3, 17, 1, 60, 5, 9)]


@pytest.fixture(scope="module")
def oracle(decoder):
    """Greedy tokens by recomputing the whole prompt."""

    def ask(prompts, steps=8):
        return recomputed(decoder, prompts, steps)

    return ask


def with_config(decoder, **changes) -> Engine:
    return Engine(decoder, replace(SMALL, **changes))


def test_rows_on_one_prefix(engine, oracle):
    (got,) = run(engine, batch(OWN, prefixes=[BOOK]))
    assert got.rows() == oracle([BOOK + own for own in OWN])
    assert set(got.finish.values()) == {Finish.LENGTH}
    assert got.usage[0] == (150, 0, 153, 8)
    assert got.usage[1] == (150, 150, 17, 8)
    (again,) = run(engine, batch(OWN, prefixes=[BOOK]))
    assert again.rows() == got.rows()
    assert again.usage[0] == (150, 150, 3, 8)


def test_rows_without_a_prefix(engine, oracle):
    (got,) = run(engine, batch(OWN))
    assert got.rows() == oracle(OWN)
    assert got.usage[3] == (0, 0, 60, 8)


def test_several_prefixes_in_one_batch_nested_and_apart(engine, oracle):
    prefixes = [BOOK, BOOK_2, BOOK[:70], text(33)]
    which = [0, 1, 2, 3, -1, 0]
    (got,) = run(engine, batch(OWN, prefixes=prefixes, prefix_of=which))
    heads = [*prefixes, []]
    assert got.rows() == oracle([heads[w] + own for w, own in zip(which, OWN, strict=True)])
    read = sum(u[2] for u in got.usage.values())
    assert read == sum(map(len, OWN)) + 150 + 40 + 33  # shared stretches are read once


def test_a_prefix_may_be_used_in_part(engine, oracle):
    base = [150, 149, 10, 1, 120, 120]
    (got,) = run(engine, batch(OWN, prefixes=[BOOK], base=base))
    assert got.rows() == oracle([BOOK[:b] + own for b, own in zip(base, OWN, strict=True)])


def test_jobs_at_once_and_late_comers(engine, oracle):
    first = engine.submit(batch(OWN, greedy(20), prefixes=[BOOK]))
    early = [engine.step() for _ in range(5)]
    second = engine.submit(batch(OWN[:2], prefixes=[BOOK_2]))
    a, b = drain(engine, first, second)
    tokens = {r: [] for r in range(6)}
    for news in early:
        for n in news.values():
            for row, token in zip(n.rows.tolist(), n.tokens.values.tolist(), strict=True):
                tokens[row].append(token)
    merged = [tokens[r] + a.tokens[r] for r in range(6)]
    assert merged == oracle([BOOK + own for own in OWN], 20)
    assert b.rows() == oracle([BOOK_2 + own for own in OWN[:2]])


def test_long_own_prompts_are_read_in_chunks(decoder, oracle):
    engine = with_config(decoder, batch_tokens=32)
    own = [text(100), text(70), text(2)]
    (got,) = run(engine, batch(own, prefixes=[BOOK[:50]]))
    assert got.rows() == oracle([BOOK[:50] + o for o in own])


@pytest.mark.parametrize("min_rows", [0, 1, 2, 100])
def test_the_plain_and_the_shared_road_agree(decoder, oracle, min_rows):
    engine = with_config(decoder, shared_min_rows=min_rows)
    prefixes = [BOOK[:40], BOOK[:40] + text(20), text(30)]
    which = [0, 1, 2, 0, 1, 2]
    (got,) = run(engine, batch(OWN, prefixes=prefixes, prefix_of=which))
    assert got.rows() == oracle([prefixes[w] + o for w, o in zip(which, OWN, strict=True)])


def test_many_more_rows_than_slots(decoder, oracle):
    engine = with_config(decoder, max_sequences=3)
    own = [text(4) for _ in range(20)]
    (got,) = run(engine, batch(own, greedy(4), prefixes=[BOOK]))
    assert got.rows() == oracle([BOOK + o for o in own], 4)


def test_preempted_rows_are_computed_again(decoder, oracle):
    plan = replace(Engine(decoder, SMALL).plan, pages=24)
    engine = Engine(decoder, SMALL, plan=plan)
    own = [text(12) for _ in range(8)]
    (got,) = run(engine, batch(own, greedy(40), prefixes=[BOOK]))
    assert engine.metrics.snapshot()["engine.preempted"] > 0
    assert got.rows() == oracle([BOOK + o for o in own], 40)


def test_one_token_answers_take_no_pages(engine, oracle, monkeypatch):
    monkeypatch.setattr(
        engine.pages, "take", lambda n: pytest.fail("took pages") if n else np.empty(0, np.int32)
    )
    (got,) = run(engine, batch(OWN, greedy(1), prefixes=[BOOK]))
    assert got.rows() == oracle([BOOK + o for o in OWN], 1)


def test_end_tokens_end_and_are_no_output(engine, oracle):
    want = oracle([BOOK + OWN[0]])[0]
    eos = want[3]
    (got,) = run(engine, batch(OWN[:1], greedy(8, eos=(eos, 999)), prefixes=[BOOK]))
    assert got.tokens[0] == want[: want.index(eos)]
    assert got.finish[0] is Finish.STOP
    assert got.usage[0][3] == want.index(eos)


def test_log_probabilities_are_the_model_s(engine, decoder):
    (got,) = run(engine, batch(OWN[:2], greedy(5, logprobs=True), prefixes=[BOOK]))
    for row in (0, 1):
        whole = BOOK + OWN[row] + got.tokens[row]
        logits = forward(decoder, [whole])[0].log_softmax(-1)
        want = [float(logits[len(whole) - 6 + i, t]) for i, t in enumerate(got.tokens[row])]
        assert got.logprobs[row] == pytest.approx(want, abs=1e-4)


def test_a_seed_gives_the_same_text_alone_and_in_a_crowd(decoder):
    spec = GenerateSpec(12, Sampling(temperature=1.3, top_p=0.95, top_k=40))
    (crowd,) = run(
        Engine(decoder, SMALL), batch(OWN, spec, prefixes=[BOOK], seeds=[4, 5, 6, 7, 8, 9])
    )
    for i in (1, 4):
        (alone,) = run(
            Engine(decoder, SMALL), batch([OWN[i]], spec, prefixes=[BOOK], seeds=[4 + i])
        )
        assert alone.tokens[0] == crowd.tokens[i]
    (other,) = run(Engine(decoder, SMALL), batch([OWN[1]], spec, prefixes=[BOOK], seeds=[99]))
    assert other.tokens[0] != crowd.tokens[1]


@pytest.mark.parametrize("budget", [256, 16])
def test_likelihood_of_continuations(decoder, budget):
    engine = with_config(decoder, batch_tokens=budget)
    counts = np.array([2, 5, 1, 30, 1, 9], np.int32)
    own = [o + text(int(c)) for o, c in zip(OWN, counts, strict=True)]
    (got,) = run(engine, batch(own, LikelihoodSpec(counts), prefixes=[BOOK]))
    for row, count in enumerate(counts.tolist()):
        whole = BOOK + own[row]
        logits = forward(decoder, [whole])[0].log_softmax(-1)[-count - 1 : -1]
        want = logits.gather(1, torch.tensor(whole[-count:])[:, None])[:, 0]
        np.testing.assert_allclose(got.scores[row][:count], want, atol=2e-4)
        assert got.agree[row] == bool((logits.argmax(-1) == torch.tensor(whole[-count:])).all())
    best = recomputed(decoder, [BOOK + OWN[0]], 3)[0]
    (got,) = run(
        engine, batch([OWN[0] + best], LikelihoodSpec(np.array([3], np.int32)), prefixes=[BOOK])
    )
    assert got.agree[0]


LABELS = [[1, 2, 3], [1, 2, 4], [1, 5], [9], [200, 201, 202, 203]]


@pytest.mark.parametrize("budget", [256, 16])
def test_choose_scores_whole_labels(decoder, budget):
    engine = with_config(decoder, batch_tokens=budget)
    spec = ChooseSpec(label_trie(LABELS))
    (got,) = run(engine, batch(OWN, spec, prefixes=[BOOK]))
    for row, own in enumerate(OWN):
        for j, label in enumerate(LABELS):
            whole = BOOK + own + label
            logits = forward(decoder, [whole])[0].log_softmax(-1)[-len(label) - 1 : -1]
            want = float(logits.gather(1, torch.tensor(label)[:, None]).sum())
            assert got.scores[row][j] == pytest.approx(want, abs=3e-4)
    assert got.usage[1] == (150, 150, 17, 0)


def test_choose_and_generate_mix_in_one_step(engine, oracle):
    a, b, c = run(
        engine,
        batch(OWN, ChooseSpec(label_trie(LABELS)), prefixes=[BOOK]),
        batch(OWN, prefixes=[BOOK]),
        batch(OWN[1:], ChooseSpec(label_trie([[3], [4, 4]])), prefixes=[BOOK]),
    )
    (alone,) = run(engine, batch(OWN[1:], ChooseSpec(label_trie([[3], [4, 4]])), prefixes=[BOOK]))
    assert b.rows() == oracle([BOOK + own for own in OWN])
    for row in range(5):
        np.testing.assert_allclose(c.scores[row], alone.scores[row], atol=1e-4)
    assert len(a.scores) == 6


def test_a_question_never_sees_another(engine, oracle):
    for own in reversed(OWN):
        (got,) = run(engine, batch([own], prefixes=[BOOK]))
        assert got.rows() == oracle([BOOK + own])


def test_kept_rows_are_continued_and_forked(engine, oracle):
    (turn,) = run(engine, batch([OWN[0]], prefixes=[BOOK], keep=True))
    history = BOOK + OWN[0] + turn.tokens[0]
    forks = [history[:-1] + text(5), history[:-1] + text(7), history[:-3] + text(4)]
    (got,) = run(
        engine,
        batch([f[-1:] for f in forks], prefixes=[f[:-1] for f in forks], prefix_of=[0, 1, 2]),
    )
    assert got.rows() == oracle(forks)
    assert got.usage[0][1] == len(history) - 1
    assert got.usage[2][1] == len(history) - 3


def test_prompts_find_what_is_resident_by_themselves(engine, oracle):
    head = text(80)
    run(engine, batch([[1], [2]], prefixes=[head]))
    left, right = [head[40] ^ 1, *text(8)], [head[10] ^ 1, *text(2)]  # other than the head's
    rows = [head + text(5), head[:40] + left, head, head[:10] + right]
    (got,) = run(engine, batch(rows))
    assert got.rows() == oracle(rows)
    assert [got.usage[i][:3] for i in range(4)] == [(0, 80, 5), (0, 40, 9), (0, 79, 1), (0, 0, 13)]
    spec = LikelihoodSpec(np.array([50], np.int32))
    (cold,) = run(Engine(engine.decoder, SMALL), batch([head], spec))
    (warm,) = run(engine, batch([head], spec))
    assert warm.usage[0][1] == 29
    np.testing.assert_allclose(warm.scores[0], cold.scores[0], atol=1e-4)


def test_reuse_can_be_refused(engine, oracle):
    run(engine, batch(OWN, prefixes=[BOOK]))
    (got,) = run(engine, batch(OWN[:2], prefixes=[BOOK] * 2, prefix_of=[0, 1], reuse=False))
    assert got.rows() == oracle([BOOK + own for own in OWN[:2]])
    assert [got.usage[r][1:3] for r in (0, 1)] == [(0, 153), (0, 167)]
    engine.check()


def test_cancel_frees_at_once(engine):
    job = engine.submit(batch(OWN, greedy(50), prefixes=[BOOK]))
    for _ in range(6):
        engine.step()
    assert engine.pages.free < engine.pages.total
    engine.cancel(job, np.array([2]))
    (news,) = engine.step().values()
    assert news.finish[news.rows == 2].tolist() == [3]
    engine.cancel(job)
    assert engine.pages.free == engine.pages.total
    (news,) = engine.step().values()
    assert sorted(news.rows.tolist()) == [0, 1, 3, 4, 5]
    assert engine.idle
    engine.check()


def test_cancel_before_and_while_a_prefix_is_read(engine, oracle):
    job = engine.submit(batch(OWN, prefixes=[BOOK]))
    engine.cancel(job)
    assert engine.step()[job].finish.tolist() == [3] * 6
    job = engine.submit(batch(OWN, prefixes=[BOOK]))
    engine.step()
    engine.cancel(job)
    assert len(engine.step()[job].rows) == 6
    (got,) = run(engine, batch(OWN, prefixes=[BOOK]))
    assert got.rows() == oracle([BOOK + own for own in OWN])
    assert got.usage[0][1:3] == (48, 105), "what was read stays, what was not is paid for now"


def test_misfits_end_alone(decoder, engine, oracle):
    long = text(20)
    limit = decoder.max_positions
    own = [OWN[0], [], [400], text(limit - 100), OWN[1]]
    (got,) = run(engine, batch(own, prefixes=[BOOK]))
    assert [got.finish[i] for i in range(5)] == [Finish.LENGTH, *[Finish.ERROR] * 3, Finish.LENGTH]
    assert "empty" in got.errors[1] and "token id" in got.errors[2]
    assert f"{limit:,}" in got.errors[3] and f"{limit + 50:,} prompt tokens" in got.errors[3]
    assert got.rows() == oracle([BOOK + own[0], BOOK + own[4]])
    (got,) = run(engine, batch([long], greedy(4), prefixes=[[*BOOK, 9999]]))
    assert "token id" in got.errors[0]


def test_what_cannot_fit_says_so(decoder):
    plan = replace(Engine(decoder, SMALL).plan, extents=12, pages=10)
    engine = Engine(decoder, SMALL, plan=plan)
    own = [[1], [2], text(30)]
    (got,) = run(engine, batch(own, greedy(20), prefixes=[text(200), BOOK], prefix_of=[0, 1, -1]))
    assert [got.finish[i] for i in range(3)] == [Finish.ERROR, Finish.LENGTH, Finish.ERROR]
    assert "192 prefix tokens" in got.errors[0] and "prefix_memory_mb" in got.errors[0]
    assert "40 tokens of running" in got.errors[2] and "suffix_memory_mb" in got.errors[2]


def test_a_held_arena_makes_rows_wait_not_fail(decoder, oracle):
    plan = replace(Engine(decoder, SMALL).plan, extents=12)
    engine = Engine(decoder, SMALL, plan=plan)
    held = engine.hold(np.array(text(100), np.int32))
    job = engine.submit(batch([[1]], prefixes=[BOOK]))
    assert engine.step() == {} and engine.stalled and not engine.idle
    engine.release(held)
    (got,) = drain(engine, job)
    assert got.rows() == oracle([[*BOOK, 1]])


def test_more_prefixes_than_memory_take_turns(decoder, oracle):
    engine = Engine(decoder, replace(SMALL, prefix_memory_mb=1, max_sequences=4))
    prefixes = [text(500) for _ in range(8)]  # the arena holds about four of them
    assert engine.plan.prefix_tokens < 8 * 500
    own = [text(3) for _ in range(16)]
    which = [i % 8 for i in range(16)]
    (got,) = run(engine, batch(own, greedy(3), prefixes=prefixes, prefix_of=which))
    assert got.rows() == oracle([prefixes[w] + o for w, o in zip(which, own, strict=True)], 3)


@pytest.mark.parametrize("most", [60, 20, 3])
def test_out_of_memory_lowers_and_goes_on(decoder, oracle, most):
    flaky = Flaky(decoder, most if most > 16 else 17)
    engine = Engine(flaky, SMALL)
    (got,) = run(engine, batch(OWN, prefixes=[BOOK]), failures=True)
    assert flaky.failures > 0
    assert got.rows() == oracle([BOOK + own for own in OWN])
    if most == 3:
        flaky.most = 3  # from now on not even a small chunk fits
        (got,) = run(engine, batch(OWN, greedy(2), prefixes=[text(30)]), failures=True)
        assert set(got.finish.values()) == {Finish.ERROR}
        assert "Out of memory" in got.errors[0]
        flaky.most = 10**9
        (got,) = run(engine, batch(OWN, prefixes=[BOOK]), failures=True)
        assert got.rows() == oracle([BOOK + own for own in OWN])


def test_one_failing_row_fails_alone(decoder, oracle):
    engine = Engine(Flaky(decoder, poison=300), SMALL)
    own = [*OWN[:3], [1, 300, 2], *OWN[3:]]
    (got,) = run(engine, batch(own, prefixes=[BOOK]), failures=True)
    assert got.finish[3] is Finish.ERROR and "poisoned" in got.errors[3]
    assert got.rows() == oracle([BOOK + o for o in OWN])
    assert engine.idle


def test_a_row_that_is_not_finite_poisons_nobody(decoder, oracle):
    class Broken(Flaky):
        poisoned = False

        def logits(self, hidden):
            logits = self._decoder.logits(hidden)
            if self.poisoned:
                logits[0] = torch.nan
            return logits

    broken = Broken(decoder)
    engine = Engine(broken, SMALL)
    run(engine, batch(OWN, prefixes=[BOOK]))
    broken.poisoned = True
    (got,) = run(engine, batch(OWN, greedy(1), prefixes=[BOOK]))
    failed = [r for r, f in got.finish.items() if f is Finish.ERROR]
    assert len(failed) == 1 and "not finite" in got.errors[failed[0]]
    broken.poisoned = False
    (got,) = run(engine, batch(OWN, prefixes=[BOOK]))
    assert got.rows() == oracle([BOOK + own for own in OWN])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(decoder, dtype, tmp_path):
    from preread.testing.models import load_decoder, write_tiny_model

    half = load_decoder(write_tiny_model(tmp_path / "m", "llama"), dtype)
    engine = Engine(half, SMALL)
    (got,) = run(engine, batch(OWN, prefixes=[BOOK]))
    (again,) = run(engine, batch(OWN, prefixes=[BOOK]))
    assert got.rows() == again.rows()


@pytest.mark.parametrize("pages", [0, 24])
def test_who_waits_for_the_end_is_told_the_same_at_once(decoder, pages):
    plan = Engine(decoder, SMALL).plan
    told, logprobs = [], []
    for stream in (True, False):
        engine = Engine(decoder, SMALL, plan=replace(plan, pages=pages or plan.pages))
        spec = greedy(20, logprobs=True, stream=stream, eos=(7, 99, 180))
        (got,) = run(engine, batch(OWN, spec, prefixes=[BOOK]))
        told.append((got.tokens, got.finish, got.usage, got.errors))
        logprobs.append(np.concatenate([got.logprobs[i] for i in sorted(got.logprobs)]))
    assert told[0] == told[1]
    np.testing.assert_allclose(*logprobs, atol=1e-5)


def test_nothing_is_told_before_the_end_unless_somebody_reads_along(engine):
    job = engine.submit(batch(OWN, greedy(6, stream=False)))
    assert [job in engine.step() for _ in range(5)] == [False] * 5
    assert engine.step()[job].finish.all()


@pytest.mark.parametrize("stream", [True, False])
def test_a_cancelled_row_says_what_it_wrote(engine, oracle, stream):
    job, seen = engine.submit(batch(OWN[:1], greedy(50, stream=stream))), []
    for _ in range(5):
        seen += engine.step().values()
    engine.cancel(job)
    seen += engine.step().values()
    tokens = np.concatenate([news.tokens.values for news in seen]).tolist()
    assert tokens == oracle(OWN[:1], 5)[0] and seen[-1].usage[0, 3] == 5
