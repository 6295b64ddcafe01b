"""ForeignBackend: the suite of all backends, and what only it promises."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from preread.backend import Backend, Choose, Generate, LogLikelihood, RequestBatch
from preread.contexts.rows import collect
from preread.errors import EngineError, OutOfMemory, RequestError
from preread.foreign.backend import ForeignBackend
from preread.foreign.load import ForeignModel
from preread.store.tiers.memory import MemoryTier
from preread.testing.conformance_backend import BackendConformance
from preread.testing.questions import BOOK, OTHER, QUESTIONS, SHORT
from preread.types import Finish, Prefix, Sampling
from tests.foreign.conftest import Load
from tests.foreign.tools import CONFIG, ROOM, backend_of, stores_of


@pytest.fixture(scope="module", params=["mistral", "gpt2"])
def model(request: pytest.FixtureRequest, load: Load) -> ForeignModel:
    return load(request.param)


@pytest.fixture
async def backend(load: Load):
    backend = backend_of(load("mistral"))
    yield backend
    await backend.close()


class TestConformance(BackendConformance):
    @pytest.fixture(autouse=True)
    def _model(self, model: ForeignModel) -> None:
        self.model = model

    async def open(self) -> Backend:
        return backend_of(self.model)


class TestConformanceWithAStore(TestConformance):
    async def open(self) -> Backend:
        return backend_of(self.model, MemoryTier())


async def test_it_says_what_computes(backend):
    assert backend.info.name == "transformers"


async def test_the_row_that_reads_the_prefix_pays_for_it(backend):
    rows = await collect(backend, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
    (head,) = await backend.count([BOOK])
    assert rows[0].usage.computed_tokens > head
    assert rows[0].usage.cached_tokens == 0
    assert all(r.usage.cached_tokens >= head - 4 for r in rows[1:])


async def test_the_next_row_pays_when_the_first_cannot_run(backend):
    prompts = ["q" * 5000, *QUESTIONS]
    rows = await collect(backend, RequestBatch(SHORT, prompts, (BOOK,)))
    (head,) = await backend.count([BOOK])
    assert rows[0].finish is Finish.ERROR
    assert rows[1].usage.computed_tokens > head


async def test_raw_prompts_share_what_they_begin_with(backend):
    heads = ["The quick brown fox. " * n for n in (5, 9, 14)]
    prompts = [heads[i % 3] + f"Number {i}?" for i in range(30)]
    work = Generate(max_tokens=3)
    together = await collect(backend, RequestBatch(work, prompts, raw=True))
    cold = await collect(backend, RequestBatch(work, prompts, raw=True, reuse=False))
    assert [r.tokens for r in cold] == [r.tokens for r in together]
    assert sum(r.usage.computed_tokens for r in together) < 0.25 * sum(map(len, prompts))
    assert all(r.usage.cached_tokens == 0 for r in cold)


@pytest.mark.parametrize("work", [
    Choose(("yes", "no", "not stated", "no idea")), LogLikelihood(["On floor 4."] * 3),
])  # fmt: skip
async def test_scores_without_reuse_are_the_same(backend, work):
    warm = await collect(backend, RequestBatch(work, list(QUESTIONS), (BOOK,)))
    cold = await collect(backend, RequestBatch(work, list(QUESTIONS), (BOOK,), reuse=False))
    for a, b in zip(warm, cold, strict=True):
        assert a.label_probs == pytest.approx(b.label_probs, abs=1e-4)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)
        assert b.usage.cached_tokens == 0


async def test_a_label_s_probability_is_its_likelihood(backend):
    """Two roads to one number: `choose` on branches, `loglikelihood` in one pass."""
    labels = ("yes", "never")
    (row,) = await collect(backend, RequestBatch(Choose(labels), QUESTIONS[:1], (BOOK,)))
    work = LogLikelihood(list(labels))
    told = await collect(backend, RequestBatch(work, [QUESTIONS[0]] * 2, (BOOK,)))
    for share, label in zip(row.label_probs, told, strict=True):
        assert share * row.mass == pytest.approx(np.exp(sum(label.logprobs)), rel=1e-3)


async def test_labels_that_begin_alike_exclude_one_another(backend):
    labels = ("no", "not stated")
    (row,) = await collect(backend, RequestBatch(Choose(labels), QUESTIONS[:1], (BOOK,)))
    work = LogLikelihood(["no"])
    (no,) = await collect(backend, RequestBatch(work, QUESTIONS[:1], (BOOK,)))
    assert row.mass == pytest.approx(np.exp(sum(no.logprobs)), rel=1e-3)


async def test_rows_without_a_seed_differ_and_with_one_repeat(backend):
    free = Generate(max_tokens=12, sampling=Sampling(temperature=1.5), ignore_eos=True)
    rows = await collect(backend, RequestBatch(free, [QUESTIONS[0]] * 3, (BOOK,)))
    assert len({tuple(r.tokens) for r in rows}) == 3
    tied = Generate(max_tokens=12, sampling=Sampling(temperature=1.5, seed=-3), ignore_eos=True)
    rows = await collect(backend, RequestBatch(tied, [QUESTIONS[0]] * 3, (BOOK,)))
    assert len({tuple(r.tokens) for r in rows}) == 1


async def test_structured_output_is_valid_or_incomplete(backend):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
        "additionalProperties": False,
    }
    work = Generate(max_tokens=200, schema=schema)
    for row in await collect(backend, RequestBatch(work, list(QUESTIONS), (BOOK,))):
        assert row.finish is Finish.STOP, row.text
        assert set(json.loads(row.text)) == {"n", "ok"}
    cut = Generate(max_tokens=3, schema=schema)
    (row,) = await collect(backend, RequestBatch(cut, ["Hm?"], (BOOK,)))
    assert row.finish is Finish.LENGTH
    with pytest.raises(RequestError, match="schema"):
        await collect(backend, RequestBatch(Generate(schema={"type": "nothing"}), ["?"], (BOOK,)))


async def test_mixed_prefixes_one_of_which_cannot_be_read(backend):
    long = Prefix("word and " * backend.info.limit)
    which = np.array([0, 1, 2, 0], np.int32)
    batch = RequestBatch(SHORT, [QUESTIONS[0]] * 4, (BOOK, long, OTHER), which)
    rows = await collect(backend, batch)
    assert [r.finish for r in rows] == [Finish.LENGTH, Finish.ERROR, Finish.LENGTH, Finish.LENGTH]
    assert f"{backend.info.limit:,}" in rows[1].error


async def test_a_row_that_makes_the_model_raise_fails_alone(backend, monkeypatch):
    net = backend._model.net
    right = net.forward

    def poisoned(tokens, *rest, **options):
        if (np.asarray(tokens) == ord("~")).any():
            raise RuntimeError("poisoned")
        return right(tokens, *rest, **options)

    monkeypatch.setattr(net, "forward", poisoned)
    prompts = [QUESTIONS[0], "a ~ tilde", QUESTIONS[1]]
    rows = await collect(backend, RequestBatch(SHORT, prompts, (BOOK,)))
    assert [r.finish for r in rows] == [Finish.LENGTH, Finish.ERROR, Finish.LENGTH]
    assert rows[1].error == "poisoned"


async def test_output_that_is_no_number_is_an_error(backend, monkeypatch):
    net = backend._model.net
    right = net.forward
    monkeypatch.setattr(net, "forward", lambda *a, **o: right(*a, **o) * float("nan"))
    for work in (SHORT, Choose(("yes", "no")), LogLikelihood(["x"])):
        (row,) = await collect(backend, RequestBatch(work, ["Hm?"]))
        assert row.finish is Finish.ERROR and "not finite" in row.error


async def test_a_prefix_beyond_memory_is_refused(load):
    tiny = backend_of(load("mistral"), room=200_000)
    with pytest.raises(OutOfMemory, match="prefix_memory_mb"):
        await tiny.build(BOOK)
    (row,) = await collect(tiny, RequestBatch(SHORT, ["Hm?"], (BOOK,)))
    assert row.finish is Finish.ERROR and "prefix_memory_mb" in row.error
    (row,) = await collect(tiny, RequestBatch(SHORT, ["Hm?"]))
    assert row.finish is Finish.LENGTH
    await tiny.close()


async def test_a_small_question_does_not_wait_for_a_large_batch(backend):
    long = Generate(max_tokens=100, ignore_eos=True)
    sources = [backend.submit(RequestBatch(long, list(QUESTIONS) * 20, (BOOK,))) for _ in range(5)]
    for source in sources:
        await anext(source)
    (row,) = await collect(backend, RequestBatch(SHORT, QUESTIONS[:1], (BOOK,)))
    assert row.finish is Finish.LENGTH
    for source in sources:
        ended = sum([sum(map(bool, (await anext(source)).finish)) for _ in range(100)])
        assert ended < 5
        await source.aclose()


async def test_closing_ends_running_rows_as_cancelled(load):
    backend = backend_of(load("mistral"))
    batch = RequestBatch(Generate(max_tokens=2000, ignore_eos=True), list(QUESTIONS), (BOOK,))
    ends = {}
    async for news in backend.submit(batch):
        ends |= {int(r): f for r, f in zip(news.rows, news.finish, strict=True) if f}
        await backend.close()
    assert ends == dict.fromkeys(range(3), Finish.CANCELLED)
    with pytest.raises(EngineError):
        await backend.build(BOOK)
    rows = await collect(backend, RequestBatch(SHORT, list(QUESTIONS)))
    assert {row.finish for row in rows} == {Finish.CANCELLED}


async def test_a_cancelled_build_stops_and_what_was_read_stays(load):
    backend = backend_of(load("mistral"), config=replace(CONFIG, prefill_chunk=8))
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()

    def progress(ready: int, _: int) -> None:
        if ready > 100:
            loop.call_soon_threadsafe(seen.set)

    task = asyncio.create_task(backend.build(BOOK, progress=progress))
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    built = await backend.build(BOOK)
    assert built.reused_tokens + built.computed_tokens == built.tokens
    assert built.reused_tokens > 100
    await backend.close()


async def test_many_threads_may_ask_at_once(load):
    backend = backend_of(load("gemma3"), MemoryTier())
    want = [r.tokens for r in await collect(backend, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))]
    got: dict[int, list[int]] = {}

    def ask(i: int) -> None:
        batch = RequestBatch(SHORT, [QUESTIONS[i % 3]], (BOOK,))
        got[i] = asyncio.run(collect(backend, batch))[0].tokens

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(9)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    assert [got[i] for i in range(9)] == [want[i % 3] for i in range(9)]
    await backend.close()


def test_a_raw_prefix_without_an_event_loop(load):
    tier = MemoryTier()
    backend = ForeignBackend(load("mistral"), stores_of(load("mistral"), tier), CONFIG, ROOM)
    tokens = np.arange(100, dtype=np.int32)
    assert backend.prefill(tokens, store=False).chunk_keys == ()
    assert not list(tier.scan())
    built = backend.prefill(tokens)
    assert (built.reused_tokens, built.computed_tokens) == (100, 0)
    assert len(list(tier.scan())) == len(built.chunk_keys) > 0
    asyncio.run(backend.close())


async def test_forgetting_waits_for_no_build(backend):
    gate = threading.Event()
    builds = [backend._workers.submit(gate.wait, 60) for _ in range(50)]
    try:
        await asyncio.wait_for(backend.forget([BOOK]), 30)
    finally:
        gate.set()
    assert all(build.result() for build in builds)
