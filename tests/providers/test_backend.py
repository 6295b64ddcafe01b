"""RemoteBackend over real sockets: warming, limits, faults, keys, and that a row fails alone."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from itertools import chain

import pytest

from preread.backend import Choose, Generate, Leaving, LogLikelihood, RequestBatch
from preread.contexts.rows import collect
from preread.errors import ConfigError, EngineError, ModelNotFound, ProviderError, RequestError
from preread.providers.opening import connect, open_remote
from preread.testing.provider import Profile, Provider
from preread.testing.replies import Reply
from preread.testing.simulation.faults import Odds
from preread.types import Finish, Prefix, Sampling

from .purse import Purse

RUBRIC = Prefix("Judge the candidate.\n" + "\n".join(f"point {n}: value {n}" for n in range(60)))
OTHER = Prefix("Another rubric.\n" + "\n".join(f"point {n}: value {n}" for n in range(60)))
ONE = Generate(max_tokens=4)


def ask(n: int, *prefixes: Prefix, work: Generate | Choose = ONE) -> RequestBatch:
    return RequestBatch(work, [f"Candidate {i}: point {i}?" for i in range(n)], prefixes)


async def test_one_goes_first_and_the_rest_find_what_it_read(opened):
    server, backend = await opened(latency_ms=5)
    rows = await collect(backend, ask(30, RUBRIC))
    hits = [row.usage.cached_tokens for row in rows]
    assert hits.count(0) == 1 and min(h for h in hits if h) >= 200
    assert [row.text for row in rows] == [f"value {i}" for i in range(30)]
    again = await collect(backend, ask(3, RUBRIC))
    assert all(row.usage.cached_tokens for row in again)
    assert server.asked["/v1/chat/completions"] == 33


async def test_batches_at_once_share_the_first(opened):
    _, backend = await opened(latency_ms=5)
    both = await asyncio.gather(*(collect(backend, ask(10, RUBRIC)) for _ in range(3)))
    assert sum(not row.usage.cached_tokens for rows in both for row in rows) == 1


async def test_every_group_has_its_own_first(opened):
    _, backend = await opened(latency_ms=5)
    batch = RequestBatch(ONE, [f"point {i}?" for i in range(20)], (RUBRIC, OTHER),
                         prefix_of=[0, 1] * 10)  # fmt: skip
    rows = await collect(backend, batch)
    assert [not row.usage.cached_tokens for row in rows].count(True) == 2


async def test_when_the_first_fails_the_next_goes_alone(opened):
    def answer(prefix: Prefix, question: str) -> str | Reply:
        return "fine"

    server, backend = await opened(latency_ms=5, answer=answer, limit=4096)
    prompts = ["word " * 5000, *(f"point {i}?" for i in range(9))]
    rows = await collect(backend, RequestBatch(ONE, prompts, (RUBRIC,)))
    assert rows[0].finish is Finish.ERROR and "maximum context length" in rows[0].error
    assert [not row.usage.cached_tokens for row in rows[1:]].count(True) == 1
    assert server.answered == 9


async def test_a_forgotten_prefix_is_warmed_again(opened):
    server, backend = await opened(latency_ms=5)
    await collect(backend, ask(3, RUBRIC))
    await backend.forget([RUBRIC])
    server.cache._blocks.clear()
    rows = await collect(backend, ask(10, RUBRIC))
    assert [not row.usage.cached_tokens for row in rows].count(True) == 1


async def test_a_prefix_too_short_to_be_reused_is_said(opened, caplog):
    _, backend = await opened(latency_ms=5)
    short = RequestBatch(ONE, ["a?", "b?", "c?"], (Prefix("Be nice."),))
    with caplog.at_level(logging.WARNING, "preread"):
        await collect(backend, short)
        await collect(backend, short)
    assert [r.message for r in caplog.records if "at least 16 tokens" in r.message] != []
    assert len(caplog.records) == 1


async def test_faults_cost_time_and_change_nothing(opened):
    odds = Odds(busy=0.1, error=0.1, half=0.1, reset=0.1, seed=3)
    server, backend = await opened(odds=odds, config={"attempts": 20})
    rows = await collect(backend, ask(60, RUBRIC))
    assert [row.text for row in rows] == [f"value {i}" for i in range(60)]
    assert set(server.faults.met) == {"busy", "error", "half", "reset"}
    assert server.answered - server.faults.met["half"] == 60


async def test_no_answer_at_all_is_tried_again_and_then_said(opened):
    _, backend = await opened(
        odds=Odds(hang=1.0), config={"timeout_s": 0.1, "attempts": 2}, server="vllm"
    )
    (row,) = await collect(backend, ask(1))
    assert row.finish is Finish.ERROR and "no answer within 0.1 s (after 2 attempts)" in row.error


async def spent(backend, batch: RequestBatch) -> Purse:
    """What may have been billed for it."""
    purse = Purse()
    async for _ in backend.submit(replace(batch, spending=purse)):
        pass
    assert not purse.open
    return purse


async def test_what_was_sent_and_not_answered_is_told_of(opened):
    """Time-outs and half answers may have been billed: at most the whole prompt and all that was
    asked for, each time."""
    for odds, each in ((Odds(hang=1.0), 2), (Odds(half=1.0), 2), (Odds(error=1.0), 0)):
        _, backend = await opened(odds=odds, config={"timeout_s": 0.1, "attempts": 2})
        purse = await spent(backend, ask(1, RUBRIC))
        ((prompt, output),) = purse.doubts.values() or [(0, 0)]
        assert output == each * ONE.max_tokens and (prompt > 200) == (each > 0)
        assert purse.sent[0] == 2 and not purse.billed


async def test_what_was_answered_is_what_was_billed(opened):
    server, backend = await opened()
    purse = await spent(backend, ask(5, RUBRIC))
    billed = [sum(column) for column in zip(*chain(*purse.billed.values()), strict=True)]
    assert not purse.doubts and {*map(len, purse.billed.values())} == {1}
    assert billed == [*(server.tokens[name] for name in ("cached", "computed", "output")), 0]


async def test_what_never_arrived_is_not(opened):
    server, backend = await opened(config={"attempts": 2})
    await server.stop()
    purse = await spent(backend, ask(1, RUBRIC))
    assert purse.sent[0] == 2 and not purse.doubts and not purse.billed


@pytest.mark.parametrize("fault", [{"half": 1.0}, {"hang": 1.0}, {"error": 1.0}, {}])
async def test_what_was_sent_is_answered_or_in_doubt_when_a_row_leaves(opened, fault):
    """Rows that are withdrawn between two attempts, or left while one is under way: whatever was
    sent is an answer, a refusal or in doubt."""
    server, backend = await opened(latency_ms=20, odds=Odds(**fault), config={"max_inflight": 4})
    leaving, finish = Leaving(), list[Finish | None]()

    async def stop() -> None:
        while sum(server.asked.values()) < 12 - 8 * ("hang" in fault):
            await asyncio.sleep(0.005)
        leaving.withdraw()
        for row in range(40):
            leaving.leave(row)

    prompts, purse = [f"point {i}?" for i in range(40)], Purse()
    batch = RequestBatch(ONE, prompts, leaving=leaving, spending=purse)
    stopping = asyncio.create_task(stop())
    async with asyncio.timeout(20):
        async for news in backend.submit(batch):
            finish += news.finish
    await stopping
    await asyncio.sleep(0.05)
    sent, refused = sum(server.asked.values()), server.faults.met["error"]
    well = finish.count(Finish.STOP) + finish.count(Finish.LENGTH)
    doubted = sum(output for _, output in purse.doubts.values())
    assert not purse.open
    assert len(finish) == 40 and doubted % ONE.max_tokens == 0
    assert sent - refused <= well + doubted // ONE.max_tokens <= sent


async def test_what_a_row_of_several_requests_was_answered_is_told_of(opened):
    """Labels of several tokens take several requests; who stops between them has paid for the
    first."""
    _, backend = await opened(server="vllm", config={"rpm": 2})
    leaving, purse = Leaving(), Purse()
    labels = Choose(("very good", "very bad", "bad"))
    batch = RequestBatch(labels, ["How?", "Who?"], leaving=leaving, spending=purse)

    async def stop() -> None:
        while len(purse.billed) < 2:
            await asyncio.sleep(0.002)
        leaving.withdraw()

    stopping = asyncio.create_task(stop())
    async for news in backend.submit(batch):
        assert {*news.finish} == {Finish.CANCELLED}
    await stopping
    assert {*purse.billed} == {0, 1} and all(b.computed for bs in purse.billed.values() for b in bs)
    while purse.open:
        await asyncio.sleep(0)
    assert not purse.doubts


async def test_nothing_more_is_sent_for_a_batch_that_was_left(opened):
    server, backend = await opened(latency_ms=2000)
    batch = RequestBatch(ONE, [f"point {i}?" for i in range(1200)])
    run = asyncio.create_task(collect(backend, batch))
    while sum(server.asked.values()) < 32:
        await asyncio.sleep(0.01)
    (running,) = backend._running
    workers = list(running._tasks)
    run.cancel()
    await asyncio.wait(workers, timeout=10)
    assert all(worker.cancelled() for worker in workers)
    assert sum(server.asked.values()) == 32 and backend._sender.gate.running == 0


async def test_limits_are_never_exceeded(opened):
    """The server refuses what is over; nothing is."""
    limits = {"rpm": 40, "tpm": 30_000, "period_s": 1.0}
    server, backend = await opened(
        requests=40, tokens=30_000, period_s=1.0, config=limits, answer=lambda *_: "fine"
    )
    rows = await collect(backend, ask(100, RUBRIC))
    assert all(row.text == "fine" for row in rows)
    assert server.over == 0 and server.faults.met == {}


async def test_limits_nobody_told_us_are_learnt(opened):
    server, backend = await opened(requests=50, period_s=1.0, config={"period_s": 1.0})
    rows = await collect(backend, ask(120, RUBRIC))
    assert not any(row.error for row in rows)
    assert server.answered == 120 and server.over <= 2


async def test_keys_of_several_organisations(opened):
    keys = {"OPENAI_API_KEYS": "red:sk-red-1,red:sk-red-2,blue:sk-blue-1"}
    server, backend = await opened(
        env=keys, requests=10, period_s=1.0, config={"rpm": 10, "period_s": 1.0}
    )
    rows = await collect(backend, ask(30, RUBRIC))
    assert not any(row.error for row in rows) and server.over == 0
    assert set(server.keys) == {"sk-red-1", "sk-red-2", "sk-blue-1"}
    assert {name for name, _ in server.rates.meters} == {"red", "blue"}


async def test_a_wrong_key_is_never_shown(opened, caplog):
    keys = {"OPENAI_API_KEY": "sk-acme-verysecret"}
    with caplog.at_level(logging.DEBUG, "preread"):
        _, backend = await opened(env=keys, keys=("sk-acme-other",))
        (row,) = await collect(backend, ask(1))
    assert row.finish is Finish.ERROR and "401" in row.error
    assert "verysecret" not in row.error + caplog.text + repr(backend._sender.limiter.lanes)


async def test_rows_that_nobody_waits_for_end_cancelled(opened):
    _, backend = await opened(latency_ms=50)
    leaving = Leaving()
    leaving.leave(2)
    batch = RequestBatch(ONE, [f"point {i}?" for i in range(6)], leaving=leaving)
    seen = {}
    async for news in backend.submit(batch):
        seen |= dict(zip(news.rows.tolist(), news.finish, strict=True))
        if len(seen) == 1:
            leaving.leave(4)
    assert seen[2] is seen[4] is Finish.CANCELLED
    assert [seen[i] for i in (0, 1, 3, 5)] == [Finish.STOP] * 4


@pytest.mark.parametrize("fault", ["", "error"])
async def test_what_was_not_sent_is_withdrawn_and_the_rest_is_waited_for(opened, fault):
    """Three requests a minute: nobody waits for those to come. One that is under way and fails is
    not tried again; it goes on waiting, too."""
    odds = Odds(error=1.0) if fault else Odds()
    server, backend = await opened(latency_ms=500, odds=odds, config={"rpm": 3})
    leaving, ends = Leaving(), {}

    async def stop() -> None:
        while not sum(server.asked.values()):
            await asyncio.sleep(0.01)
        leaving.withdraw()

    batch = RequestBatch(ONE, [f"point {i}?" for i in range(40)], leaving=leaving)
    stopping = asyncio.create_task(stop())
    async with asyncio.timeout(20):
        async for news in backend.submit(batch):
            ends |= dict(zip(news.rows.tolist(), news.finish, strict=True))
    await stopping
    sent = server.asked["/v1/chat/completions"]
    well = [row for row, finish in ends.items() if finish is Finish.STOP]
    assert len(ends) == 40 and {*ends.values()} <= {Finish.STOP, Finish.CANCELLED}
    assert 1 <= sent <= 3 and len(well) == (0 if fault else sent)


async def test_closing_ends_what_runs(opened):
    _, backend = await opened(latency_ms=2000)
    run = asyncio.create_task(collect(backend, ask(4)))
    await asyncio.sleep(0.05)
    await backend.close()
    assert {row.finish for row in await run} == {Finish.CANCELLED}
    with pytest.raises(EngineError, match="closed"):
        await collect(backend, ask(1))


async def test_choosing_by_the_most_likely_first_tokens(opened):
    server, backend = await opened(server="openai", answer=lambda *_: "B because")
    (row,) = await collect(backend, ask(1, work=Choose(("A", "B", "C"))))
    assert max(range(3), key=row.label_probs.__getitem__) == 1
    assert 0.9 < row.mass <= 1 and row.usage.output_tokens == 0 and row.text == ""
    sent = server.bodies[-1]
    assert sent["top_logprobs"] == 20 and 1 in (sent.get("max_tokens"),
                                                sent.get("max_completion_tokens"))  # fmt: skip


async def test_labels_the_first_token_cannot_tell_are_refused(opened):
    _, backend = await opened()
    with pytest.raises(RequestError, match="'yes' is the beginning of 'yesterday'"):
        await collect(backend, ask(1, work=Choose(("yes", "yesterday"))))
    (row,) = await collect(backend, ask(1, work=Choose(("maybe", "perhaps"))))
    assert row.finish is Finish.ERROR and "None of the labels" in row.error


async def test_labels_of_several_tokens_are_exact_on_vllm(opened):
    """P(label) is the product over its tokens, and labels are told apart at any token."""
    _, backend = await opened(server="vllm", answer=lambda *_: "very good indeed")
    (row,) = await collect(backend, ask(1, work=Choose(("very good", "very bad", "bad"))))
    assert max(range(3), key=row.label_probs.__getitem__) == 0
    assert row.mass == pytest.approx(2.718281828**-0.2, rel=1e-2)  # two likely tokens


async def test_likelihood_by_echo_where_the_server_does_it(opened):
    _, backend = await opened(server="")
    batch = RequestBatch(LogLikelihood([" upon a time"]), ["Once"], raw=True)
    (row,) = await collect(backend, batch)
    assert len(row.logprobs) == 3 and max(row.logprobs) < 0
    chat = RequestBatch(LogLikelihood(["x"]), ["Once"])
    with pytest.raises(RequestError, match="use `choose`"):
        await collect(backend, chat)


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        (RequestBatch(Generate(ignore_eos=True), ["a"]), "go on after the end"),
        (RequestBatch(Generate(sampling=Sampling(top_k=5)), ["a"]), "no top_k"),
        (RequestBatch(Generate(), ["a"], reuse=False), "afresh"),
        (RequestBatch(Generate(), ["a"], (RUBRIC,), raw=True), "chat template"),
    ],
)
async def test_what_cannot_be_said_is_refused_and_never_left_out(opened, batch, why):
    server, backend = await opened(server="")
    with pytest.raises(RequestError, match=why):
        await collect(backend, batch)
    assert server.answered == 0


@pytest.mark.parametrize("server", ["", "openai", "vllm", "sglang", "llama-server"])
async def test_servers_are_recognised(opened, server):
    _, backend = await opened(server=server, limit=2048)
    said = {"openai": ""}.get(server, server)  # the real one is known by its host
    assert backend.facts.server == said
    assert backend.info.model == "simulated"
    assert backend.info.exact_counts is (server in ("vllm", "llama-server"))
    assert backend.info.limit == (2048 if server in ("vllm", "llama-server") else 131_072)


@pytest.mark.parametrize("tells", [True, False])
async def test_a_server_that_does_not_say_what_it_reused_is_told_of(opened, caplog, tells):
    """Nothing cached would otherwise look like nothing reused."""
    server, backend = await opened(server="vllm", tells=tells)
    rows = await collect(backend, ask(3, RUBRIC))
    assert server.tokens["cached"] and all(row.finish is Finish.STOP for row in rows)
    assert any(row.usage.cached_tokens for row in rows) is tells
    await collect(backend, ask(3, RUBRIC))
    said = [text for text in caplog.messages if "--enable-prompt-tokens-details" in text]
    assert len(said) == (0 if tells else 1)


async def test_what_reuses_nothing_is_not_expected_to_say_so(opened, caplog):
    """vLLM leaves the field out where nothing was cached."""
    _, backend = await opened(server="vllm", tells=False)
    await collect(backend, ask(3))
    await collect(backend, ask(3, Prefix("short")))
    assert not caplog.messages or all("reuses beginnings of at least" in m for m in caplog.messages)


async def test_llama_server_says_what_its_slot_held(opened):
    server, backend = await opened(server="llama-server", min_prefix=1, block=1)
    rows = await collect(backend, ask(3, RUBRIC))
    assert all(row.usage.cached_tokens for row in rows[1:])
    assert server.bodies[-1]["cache_prompt"] is True
    cold = RequestBatch(ONE, ["point 1?"], (RUBRIC,), reuse=False)
    assert (await collect(backend, cold))[0].usage.cached_tokens == 0


async def test_a_server_with_several_models_is_asked_for_one(opened):
    async with Provider(Profile(server="vllm", model="a,b")) as server:
        with pytest.raises(ModelNotFound, match="these models: a, b"):
            await connect(f"openai:{server.url}", env={})


async def test_a_model_that_a_server_does_not_name_is_said(opened, caplog):
    """Before thousands of rows come back with a 404."""
    await opened(model="one", server="vllm")
    assert [m for m in caplog.messages if "names no model 'one'; it has simulated." in m]
    caplog.clear()
    await opened(model="simulated", server="vllm")
    assert not caplog.messages


async def test_a_server_that_is_not_there(unused_tcp_port):
    with pytest.raises(ProviderError, match=r"cannot be reached.*Start the server"):
        await connect(f"openai:http://127.0.0.1:{unused_tcp_port}", env={})


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("opnai", "No backend 'opnai'"),
        ("openai", "needs a key"),
        ("openai:localhost:8000", "is no URL"),
        ("openai:http://user:secret@host", "key in it"),
    ],
)
def test_what_cannot_be_opened(spec, why):
    with pytest.raises(ConfigError, match=why):
        open_remote(spec, env={})


async def test_an_estimate_learns_from_answers(opened):
    _, backend = await opened(server="")
    (before,) = await backend.count([RUBRIC])
    rows = await collect(backend, ask(20, RUBRIC))
    (after,) = await backend.count([RUBRIC])
    whole = rows[0].usage.cached_tokens + rows[0].usage.computed_tokens
    assert abs(after - whole) < abs(before - whole)


async def test_open_from_any_thread(opened):
    server, _ = await opened()
    backend = await asyncio.to_thread(open_remote, f"openai:{server.url}", env={})
    rows = await collect(backend, ask(2, RUBRIC))
    assert [row.text for row in rows] == ["value 0", "value 1"]
    await backend.close()


async def test_a_server_of_ones_own_has_no_price(opened):
    _, backend = await opened(model="gpt-4o-mini")
    assert backend.info.prices is None


async def test_a_price_of_ones_own(opened, tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text("[openai.simulated]\ncomputed = 1\ncached = 0.1\noutput = 2\nlimit = 5000\n")
    _, backend = await opened(config={"prices": str(file)})
    assert backend.info.prices.cached == 0.1 and backend.info.limit == 5000


async def test_no_more_are_under_way_than_a_server_has_slots(opened):
    """More would wait at the server, with their time-outs running."""
    most = 0

    def answer(prefix: Prefix, question: str) -> str:
        nonlocal most
        most = max(most, backend._sender.gate.running)
        return "fine"

    _, backend = await opened(latency_ms=2, server="llama-server", slots=3, answer=answer)
    await collect(backend, ask(40, RUBRIC))
    assert most == 3
