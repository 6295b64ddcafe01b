"""LocalBackend: the suite of all backends, and what only it promises."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from preread.backend import Backend, Choose, Generate, Leaving, LogLikelihood, RequestBatch
from preread.config import EngineSection
from preread.contexts.crowd import Crowd
from preread.contexts.rows import collect
from preread.engine.local import LocalBackend
from preread.errors import Cancelled, EngineError, OutOfMemory, RequestError, UsageError
from preread.models.load import LoadedModel, load_model
from preread.store.keys import Geometry, fingerprint
from preread.store.pump import DEPTH
from preread.store.saving import Manner
from preread.store.store import Store
from preread.store.tiers.memory import MemoryTier
from preread.testing.conformance_backend import BackendConformance
from preread.testing.faulty import FaultyTier, Trouble, at
from preread.testing.models import write_tiny_model
from preread.testing.questions import BOOK, OTHER, QUESTIONS, SHORT
from preread.tokens import requests
from preread.types import Finish, Prefix, Sampling
from tests.engine.helpers import Gated

CONFIG = EngineSection(
    prefix_memory_mb=16,
    suffix_memory_mb=4,
    extent_tokens=64,
    max_sequences=16,
    prefill_chunk=256,
    truth_check=True,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = write_tiny_model(tmp_path_factory.mktemp("local") / "tiny", "qwen3")
    return load_model(str(folder), dtype="float32", device="cpu")


def store_of(model: LoadedModel, *tiers, **options) -> Store:
    geometry = Geometry(
        model.config.layers, model.config.kv_heads, model.config.head_dim, model.dtype, 64
    )
    kind = fingerprint(model.fingerprint_parts)
    return Store(tiers or [MemoryTier()], geometry, kind, **options)


@pytest.fixture
async def backend(model):
    backend = LocalBackend(model, None, CONFIG)
    yield backend
    await backend.close()


class TestConformance(BackendConformance):
    @pytest.fixture(autouse=True)
    def _model(self, model: LoadedModel) -> None:
        self.model = model

    async def open(self) -> Backend:
        return LocalBackend(self.model, None, CONFIG)


class TestConformanceWithAStore(TestConformance):
    async def open(self) -> Backend:
        return LocalBackend(self.model, store_of(self.model), CONFIG)


class TestConformanceInACrowd(TestConformance):
    async def open(self) -> Backend:
        return Crowd(LocalBackend(self.model, None, CONFIG))


async def test_another_process_loads_what_one_computed(model):
    tier = MemoryTier()
    first = LocalBackend(model, store_of(model, tier), CONFIG)
    built = await first.build(BOOK)
    want = [r.tokens for r in await collect(first, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))]
    await first.close()
    second = LocalBackend(model, store_of(model, tier), CONFIG)
    rows = await collect(second, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
    again = await second.build(BOOK)
    await second.close()
    assert [r.tokens for r in rows] == want
    assert rows[0].timing.load_ms > 0
    for row in rows:
        brought = row.timing.brought
        assert brought is not None and [s.tier for s in brought.served] == ["memory"]
        assert brought.tokens == brought.served[0].tokens >= built.tokens - 64
    assert rows[0].usage.cached_tokens >= built.tokens - 64  # the last span is whole or not kept
    assert built.stored and built.chunk_keys == again.chunk_keys
    assert again.computed_tokens == 0


async def test_a_killed_build_is_taken_up_where_it_was(model):
    tier, config = MemoryTier(), replace(CONFIG, save_every_s=0.0, prefill_chunk=128)
    long = Prefix(BOOK.system * 3)
    first = LocalBackend(model, store_of(model, tier), config)

    def die(ready: int, of: int) -> None:
        if ready > of / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await first.build(long, progress=die)
    await first.close()
    second = LocalBackend(model, store_of(model, tier), config)
    built = await second.build(long)
    rows = await collect(second, RequestBatch(SHORT, list(QUESTIONS), (long,)))
    cold = await collect(second, RequestBatch(SHORT, list(QUESTIONS), (long,), reuse=False))
    await second.close()
    assert built.tokens / 4 < built.loaded_tokens < built.tokens
    assert built.loaded_tokens + built.computed_tokens == built.tokens
    assert [r.tokens for r in rows] == [r.tokens for r in cold]


async def test_a_longer_version_loads_the_common_part(model):
    tier = MemoryTier()
    first = LocalBackend(model, store_of(model, tier), CONFIG)
    await first.build(BOOK)
    await first.close()
    second = LocalBackend(model, store_of(model, tier), CONFIG)
    built = await second.build(Prefix(BOOK.system + "\nThe cellar has no number."))
    await second.close()
    assert built.loaded_tokens > built.tokens // 2
    assert built.loaded_tokens + built.computed_tokens == built.tokens


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


async def test_labels_too_long_for_a_float_still_have_probabilities(backend):
    labels = ("x" * 200, "y" * 150)
    (row,) = await collect(backend, RequestBatch(Choose(labels), ["Which?"]))
    assert sum(row.label_probs) == pytest.approx(1.0)
    assert row.mass < 1e-30


async def test_the_end_of_a_grammar_is_no_output_even_when_ends_are_ignored(backend):
    work = Generate(40, schema={"type": "integer"}, ignore_eos=True)
    (row,) = await collect(backend, RequestBatch(work, ["one"], raw=True))
    assert row.finish is Finish.STOP
    assert bytes(row.tokens).decode() == row.text == str(int(row.text))


async def test_no_reuse_computes_everything_and_says_the_same(backend):
    warm = await collect(backend, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
    cold = await collect(backend, RequestBatch(SHORT, list(QUESTIONS), (BOOK,), reuse=False))
    assert [r.tokens for r in cold] == [r.tokens for r in warm]
    counts = await backend.count([BOOK] * 3, QUESTIONS)
    assert [(r.usage.cached_tokens, r.usage.computed_tokens) for r in cold] == [
        (0, n) for n in counts
    ]
    assert [r.usage.context_tokens for r in cold] == [r.usage.context_tokens for r in warm]


@pytest.mark.parametrize("work", [Choose(("yes", "no")), LogLikelihood(["On floor 4."] * 3)])
async def test_scores_without_reuse_are_the_same(backend, work):
    warm = await collect(backend, RequestBatch(work, list(QUESTIONS), (BOOK,)))
    cold = await collect(backend, RequestBatch(work, list(QUESTIONS), (BOOK,), reuse=False))
    for a, b in zip(warm, cold, strict=True):
        assert a.label_probs == pytest.approx(b.label_probs, abs=1e-4)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


async def test_hundreds_of_interleaved_raw_prompts(backend):
    heads = ["The quick brown fox. " * n for n in (5, 9, 14)]
    prompts = [heads[i % 3] + f"Number {i}?" for i in range(90)]
    together = await collect(backend, RequestBatch(Generate(max_tokens=3), prompts, raw=True))
    cold = RequestBatch(Generate(max_tokens=3), prompts, raw=True, reuse=False)
    assert [r.tokens for r in await collect(backend, cold)] == [r.tokens for r in together]
    computed = sum(r.usage.computed_tokens for r in together)
    assert computed < 0.25 * sum(len(p) for p in prompts)


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
    rows = await collect(
        backend, RequestBatch(Generate(max_tokens=200, schema=schema), list(QUESTIONS), (BOOK,))
    )
    for row in rows:
        assert row.finish is Finish.STOP, row.text
        assert set(json.loads(row.text)) == {"n", "ok"}
    (cut,) = await collect(
        backend, RequestBatch(Generate(max_tokens=3, schema=schema), ["Hm?"], (BOOK,))
    )
    assert cut.finish is Finish.LENGTH
    with pytest.raises(RequestError, match="schema"):
        await collect(backend, RequestBatch(Generate(schema={"type": "nothing"}), ["?"], (BOOK,)))


async def test_mixed_prefixes_one_of_which_cannot_be_read(backend):
    long = Prefix("word and " * backend.info.limit)
    which = np.array([0, 1, 2, 0], np.int32)
    batch = RequestBatch(SHORT, [QUESTIONS[0]] * 4, (BOOK, long, OTHER), which)
    rows = await collect(backend, batch)
    assert [r.finish for r in rows] == [Finish.LENGTH, Finish.ERROR, Finish.LENGTH, Finish.LENGTH]
    assert f"{backend.info.limit:,}" in rows[1].error


async def test_a_prefix_beyond_memory_is_refused_with_the_plan(model):
    tiny = LocalBackend(model, None, EngineSection(prefix_memory_mb=1, suffix_memory_mb=1))
    with pytest.raises(OutOfMemory, match=r"bytes per token.*prefix_memory_mb"):
        await tiny.build(Prefix("word and " * 300))
    (row,) = await collect(tiny, RequestBatch(SHORT, ["Hm?"], (Prefix("word and " * 300),)))
    assert row.finish is Finish.ERROR and "prefix_memory_mb" in row.error
    await tiny.close()


async def test_closing_ends_running_rows_as_cancelled(model):
    backend = LocalBackend(model, None, CONFIG)
    batch = RequestBatch(Generate(max_tokens=2000, ignore_eos=True), list(QUESTIONS), (BOOK,))
    ends = {}
    async for news in backend.submit(batch):
        ends |= {int(r): f for r, f in zip(news.rows, news.finish, strict=True) if f}
        await backend.close()
    assert ends == dict.fromkeys(range(3), Finish.CANCELLED)
    with pytest.raises(EngineError):
        await backend.build(BOOK)


async def test_rows_that_wait_are_withdrawn_and_those_that_run_end_well(model):
    backend = LocalBackend(model, None, replace(CONFIG, max_sequences=2))
    leaving, long = Leaving(), Generate(max_tokens=40, ignore_eos=True)
    batch = RequestBatch(long, [*QUESTIONS] * 3000, (BOOK,), leaving=leaving)
    ends = {}
    async for news in backend.submit(batch):
        leaving.withdraw()  # the first news: two rows run, and not all texts are encoded yet
        ends |= {int(r): f for r, f in zip(news.rows, news.finish, strict=True) if f}
    assert len(ends) == len(batch)
    ran = [row for row, finish in ends.items() if finish is Finish.LENGTH]
    assert 1 <= len(ran) <= 4 and {*ends.values()} == {Finish.LENGTH, Finish.CANCELLED}
    rows = await collect(backend, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
    assert [row.finish for row in rows] == [Finish.LENGTH] * 3
    await backend.close()


async def test_a_prefix_is_not_read_for_withdrawn_rows(model):
    backend = LocalBackend(model, None, CONFIG)
    leaving = Leaving()
    leaving.withdraw()
    rows = await collect(backend, RequestBatch(SHORT, [*QUESTIONS], (BOOK,), leaving=leaving))
    assert {row.finish for row in rows} == {Finish.CANCELLED}
    assert not backend.metrics.snapshot().get("engine.prefix_computed_tokens")
    await backend.close()


async def test_a_cancelled_build_stops(model):
    backend = LocalBackend(model, None, EngineSection(prefill_chunk=8, prefix_memory_mb=16))
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(
        backend.build(BOOK, progress=lambda *_: loop.call_soon_threadsafe(seen.set))
    )
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    built = await backend.build(BOOK)
    assert built.reused_tokens + built.computed_tokens == built.tokens
    await backend.close()


async def test_many_threads_may_ask_at_once(model):
    backend = LocalBackend(model, store_of(model), CONFIG)
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


async def test_a_bug_in_the_engine_is_told_to_everybody(model, monkeypatch):
    backend = LocalBackend(model, None, CONFIG)

    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("preread.engine.scheduler.Scheduler.schedule", broken)
    rows = await collect(backend, RequestBatch(SHORT, list(QUESTIONS), raw=True))
    assert all(row.finish is Finish.ERROR and "a bug" in row.error for row in rows)
    with pytest.raises(EngineError, match="a bug"):
        await backend.build(BOOK)
    await backend.close()


async def test_parity_of_the_user_s_own_weights(model):
    backend = LocalBackend(model, None, CONFIG)
    report = await asyncio.to_thread(backend.parity, 6)
    assert report.ok and report.rows == 13 and report.steps == 13 * 8
    await backend.close()


async def test_random_weights_have_no_wider_copy(model):
    random = load_model(str(model.folder), weights="random", dtype="float32", device="cpu")
    backend = LocalBackend(random, None, CONFIG)
    with pytest.raises(UsageError, match="Random"):
        await asyncio.to_thread(backend.parity, 2)
    await backend.close()


def test_a_raw_prefix_without_an_event_loop(model):
    tier = MemoryTier()
    backend = LocalBackend(model, store_of(model, tier), CONFIG)
    tokens = np.arange(100, dtype=np.int32)
    assert backend.prefill(tokens, store=False).chunk_keys == ()
    assert not list(tier.scan())
    built = backend.prefill(tokens)
    assert (built.reused_tokens, built.computed_tokens) == (100, 0)
    assert len(list(tier.scan())) == len(built.chunk_keys) > 0
    asyncio.run(backend.close())


class Stepping:
    """A backend whose steps are let through one by one; a long prefix that takes many."""

    def __init__(self, model, tier) -> None:
        self.gate = Gated(model.decoder)
        config = replace(CONFIG, save_every_s=0.0, prefill_chunk=128)
        self.backend = LocalBackend(
            replace(model, decoder=self.gate), store_of(model, tier), config
        )
        self.prefix = Prefix(BOOK.system * 3)

    async def steps(self, n: int) -> None:
        """Let n more be done; the next one is held again."""
        for _ in range(n):
            self.gate.let.release()
            await asyncio.to_thread(self.gate.held.acquire)

    async def join(self, work, mails: int) -> asyncio.Task:
        """A task that has sent so much to the engine thread, a step at most before each is read;
        with the last it waits for the prefix."""
        sent = asyncio.Queue()
        loop, send = asyncio.get_running_loop(), self.backend._thread.send

        def telling(mail):
            future = send(mail)
            loop.call_soon_threadsafe(sent.put_nowait, mail)
            return future

        self.backend._thread.send = telling
        task = asyncio.create_task(work)
        for _ in range(mails):
            await sent.get()
            await self.steps(1)
        self.backend._thread.send = send
        return task

    async def close(self) -> None:
        self.gate.open()
        await self.backend.close()


@pytest.mark.parametrize("heir", ["build", "question"])
@pytest.mark.parametrize("after", [0, 1, 4])
async def test_who_waits_takes_over_from_a_cancelled_build(model, heir, after):
    """What it pays, what is saved as it goes, and what is saved in the end."""
    tier = MemoryTier()
    stepping = Stepping(model, tier)
    backend, prefix = stepping.backend, stepping.prefix
    first = asyncio.create_task(backend.build(prefix))
    await asyncio.to_thread(stepping.gate.held.acquire)
    asked = RequestBatch(SHORT, list(QUESTIONS), (prefix,))
    waiting = backend.build(prefix) if heir == "build" else collect(backend, asked)
    mails = 1 if heir == "build" else 2  # is it there? then: read it
    second = await stepping.join(waiting, mails)
    await stepping.steps(after)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    saved = len(list(tier.scan()))
    await stepping.steps(4)
    while len(list(tier.scan())) == saved:  # by the second, as it goes
        await stepping.steps(1)
    stepping.gate.open()
    result = await second
    (tokens,) = await backend.count([prefix])
    await stepping.close()
    if heir == "build":
        assert result.stored and result.reused_tokens + result.computed_tokens == tokens
        computed = result.computed_tokens
    else:
        assert [r.finish for r in result] == [Finish.LENGTH] * 3
        computed = tokens - result[0].usage.cached_tokens
    missing = tokens - 128 * mails  # at least, when it came
    assert missing <= computed <= tokens - 128 + 4, "all but what was there when it came"
    other = LocalBackend(model, store_of(model, tier), CONFIG)
    assert (await other.build(prefix)).computed_tokens == 0, "everything was stored"
    await other.close()


async def test_a_large_batch_of_texts_runs_block_by_block(model, monkeypatch):
    monkeypatch.setattr(requests, "BLOCK", 16)
    backend = LocalBackend(model, None, replace(CONFIG, max_sequences=4))
    batch = RequestBatch(SHORT, [f"What of {i}? {'x' * (i % 7)}" for i in range(100)], (BOOK,))
    most, engine = 0, backend._thread._engine
    texts: dict[int, str] = {}
    async for news in backend.submit(batch):
        most = max(most, len(engine._admission.jobs))
        for row, text in zip(news.rows.tolist(), news.texts, strict=True):
            texts[row] = texts.get(row, "") + text
    assert most <= 2, "a batch stands in line once"
    monkeypatch.setattr(requests, "BLOCK", 1000)
    at_once = await collect(backend, batch)
    assert [row.text for row in at_once] == [texts[i] for i in range(100)]
    await backend.close()


async def test_forgetting_waits_for_no_build(backend):
    gate = threading.Event()
    builds = [backend._workers.submit(gate.wait, 60) for _ in range(50)]
    try:
        await asyncio.wait_for(backend.forget([BOOK]), 30)
    finally:
        gate.set()
    assert all(build.result() for build in builds)


async def test_no_load_waits_for_a_save(model):
    """A tier that takes nothing more fills the queue of what is written behind."""
    gate = threading.Event()

    class Full(MemoryTier):
        def write(self, key, value):
            return gate.wait(60) and super().write(key, value)

    tiers, manners = (MemoryTier(), Full(name="far")), {"far": Manner(behind=True)}
    store = store_of(model, *tiers, manners=manners, behind_bytes=1, drain_s=60.0)
    backend = LocalBackend(model, store, CONFIG)
    first = asyncio.create_task(backend.build(BOOK))
    try:
        while not tiers[0].usage().chunks:  # it is being saved
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        batch = RequestBatch(SHORT, list(QUESTIONS), (OTHER,))
        rows = await asyncio.wait_for(collect(backend, batch), 30)
        assert len(rows) == len(QUESTIONS) and not first.done()
    finally:
        gate.set()
        await first
        await backend.close()


@pytest.mark.parametrize("ends", ["cancelled", "closed"])
async def test_a_load_ends_with_who_wanted_it(model, ends):
    """Also one whose values go straight to their places."""
    kept, over = MemoryTier(), threading.Event()
    first = LocalBackend(model, store_of(model, kept), CONFIG)
    values = len((await first.build(BOOK)).chunk_keys)
    await first.close()
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(seconds: float) -> None:
        loop.call_soon_threadsafe(began.set)
        over.wait(60)

    far = FaultyTier(kept, at({("read", 1): Trouble.DELAY}), sleep=wait)
    backend = LocalBackend(model, store_of(model, far, always=True), CONFIG)
    build = asyncio.create_task(backend.build(BOOK))
    await began.wait()
    if ends == "cancelled":
        build.cancel()
    else:
        await backend.close()
        over.set()
    with pytest.raises((asyncio.CancelledError, Cancelled)):
        await build
    over.set()
    await backend.close()
    await asyncio.to_thread(backend._workers.shutdown)  # the load's thread
    assert far._calls["read"] <= 3 + DEPTH < values  # what was read ahead is not taken
