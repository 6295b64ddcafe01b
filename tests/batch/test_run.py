"""From a file to a file: every row once, in order, reusing what is shared."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preread.backend import RequestBatch, ResultBatch
from preread.batch.job import begin, models, tallied
from preread.batch.journal import Journal
from preread.batch.keys import prefix_of
from preread.batch.run import Runner, Stop
from preread.errors import EngineError, RequestError, Resumable, StateError
from preread.testing.backend import FakeBackend
from preread.testing.instant import InstantBackend
from preread.testing.replies import Reply
from preread.types import Finish, Prefix

from .made import (
    RUBRIC,
    batch_table,
    chat,
    finished,
    objects,
    row_table,
    written,
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal.open(tmp_path / "run.journal")
    yield made
    made.close()


def echo(prefix: Prefix, text: str) -> Reply:
    """The question back, or what it wants to fail with."""
    return Reply("", error="no such sailor") if "fail" in text else Reply(f"said {text}")


def test_answers_stand_in_the_order_of_the_input(tmp_path: Path, journal: Journal) -> None:
    systems = ["Rubric one. " * 30, "Rubric two. " * 30]
    lines = [chat(f"r{i}", f"candidate {i}", systems[i % 2]) for i in range(50)]
    backend = FakeBackend(echo)
    table = batch_table(written(tmp_path / "in.jsonl", lines))
    tally, counts = finished(table, journal, backend, tmp_path / "out.jsonl")
    out = objects(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in out] == [f"r{i}" for i in range(50)]
    told = [line["response"]["body"]["choices"][0]["message"]["content"] for line in out]
    assert told == [f"said candidate {i}" for i in range(50)]
    assert counts == (50, 0) and tally.done == 50
    # Each rubric was read once: 48 rows found theirs.
    heads = asyncio.run(backend.count([Prefix(system) for system in systems]))
    assert 24 * sum(heads) <= tally.cached < 25 * sum(heads)
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_rows_of_a_table_keep_their_columns(tmp_path: Path, journal: Journal) -> None:
    source = tmp_path / "in.csv"
    source.write_text('name,profile\nAnn,"sails, ""well"""\nBob,"two\nlines"\n', encoding="utf-8")
    table = row_table(source, item="{name}: {profile}")
    backend = FakeBackend(echo)
    finished(table, journal, backend, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["Ann", "Bob"]
    assert rows[0]["profile"] == 'sails, "well"' and rows[1]["profile"] == "two\nlines"
    assert rows[1]["answer"] == "said Bob: two\nlines" and rows[1]["finish_reason"] == "stop"
    (call,) = [call for call in backend.calls if call.kind == "submit"]
    assert call.what.prefixes == (Prefix(RUBRIC),)


def test_gzip_globs_and_jsonl_rows_of_different_columns(tmp_path: Path, journal: Journal) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"name": "Ann", "age": 30}\n\n{"name": "Bob", "boats": ["Eos"]}\n')
    written(tmp_path / "b.jsonl", [{"name": "Cy"}])
    table = row_table(tmp_path / "*.jsonl*")
    finished(table, journal, FakeBackend(echo), tmp_path / "out.jsonl")
    out = objects(tmp_path / "out.jsonl")
    assert [row["answer"] for row in out] == [
        "said name: Ann\nage: 30", 'said name: Bob\nboats: ["Eos"]', "said name: Cy",
    ]  # fmt: skip
    assert out[1]["boats"] == ["Eos"] and "age" not in out[2]


def test_equal_requests_run_once_and_all_are_answered(tmp_path: Path, journal: Journal) -> None:
    lines = [chat(f"r{i}", f"candidate {i % 3}") for i in range(30)]
    backend = InstantBackend()
    finished(batch_table(written(tmp_path / "in.jsonl", lines)), journal, backend,
             tmp_path / "out.jsonl")  # fmt: skip
    assert sorted(backend.texts) == ["candidate 0", "candidate 1", "candidate 2"]
    out = objects(tmp_path / "out.jsonl")
    assert len(out) == 30 and len({line["custom_id"] for line in out}) == 30
    said = {line["response"]["body"]["choices"][0]["message"]["content"] for line in out}
    assert len(said) == 3


def test_samples_of_one_request_are_drawn_apart(tmp_path: Path, journal: Journal) -> None:
    lines = [chat(f"r{i}", "candidate", temperature=1.0) for i in range(5)]
    backend = InstantBackend()
    finished(batch_table(written(tmp_path / "in.jsonl", lines)), journal, backend,
             tmp_path / "out.jsonl")  # fmt: skip
    assert backend.texts == ["candidate"] * 5


def test_failed_rows_stand_in_the_error_file_and_run_again_on_request(
    tmp_path: Path, journal: Journal
) -> None:
    lines = [chat(f"r{i}", "fail" if i == 3 else f"c{i}") for i in range(6)]
    table = batch_table(written(tmp_path / "in.jsonl", lines))
    out = tmp_path / "out.jsonl"
    tally, counts = finished(table, journal, FakeBackend(echo), out)
    assert counts == (5, 1) and tally.failed == 1
    (bad,) = objects(tmp_path / "out.errors.jsonl")
    assert bad["custom_id"] == "r3" and bad["error"]["message"] == "no such sailor"
    assert "r3" not in out.read_text()
    mended = InstantBackend()
    tally, counts = finished(table, journal, mended, out, resume=True)  # failed is finished
    assert mended.texts == [] and counts == (5, 1)
    better = FakeBackend(lambda prefix, text: f"said {text}")
    tally, counts = finished(table, journal, better, out, retry=True)
    assert counts == (6, 0) and not (tmp_path / "out.errors.jsonl").exists()
    assert [line["custom_id"] for line in objects(out)] == [f"r{i}" for i in range(6)]


def test_failed_rows_stay_in_a_table_with_their_reason(tmp_path: Path, journal: Journal) -> None:
    rows = [{"name": "Ann"}, {"name": "fail"}]
    table = row_table(written(tmp_path / "in.jsonl", rows))
    finished(table, journal, FakeBackend(echo), tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        out = list(csv.DictReader(file))
    assert [row["error"] for row in out] == ["", "no such sailor"]
    (bad,) = objects(tmp_path / "out.errors.jsonl")
    assert bad["line"] == 2 and bad["row"] == {"name": "fail"}


def test_prefixes_nest_and_stand_side_by_side(tmp_path: Path, journal: Journal) -> None:
    def line(i: int) -> dict[str, object]:
        made = chat(f"r{i}", f"q{i}", "Rules. " * (1 + i % 2))
        turns = [{"role": "user", "content": f"case {i % 4}"},
                 {"role": "assistant", "content": "Noted."}] if i % 3 else []  # fmt: skip
        made["body"]["messages"][1:1] = turns
        return made

    lines = [line(i) for i in range(48)]
    random.Random(1).shuffle(lines)
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    waiting = journal.next(0, *one_model(journal), 100)
    prefixes = [prefix_of(journal.body("prefixes", row.prefix)) for row in waiting]
    runs = [p for p, before in zip(prefixes, [None, *prefixes], strict=False) if p != before]
    assert len(runs) == len(set(runs)) == 6  # 2 rules, and of each two cases (i % 4, i % 2 agree)
    systems = [p.system for p in runs]
    assert systems == sorted(systems, key=systems.index)  # what continues a rule follows it
    assert [bool(p.history) for p in runs] == [False, True, True] * 2


def one_model(journal: Journal) -> tuple[bytes]:
    ((key,),) = journal.read("SELECT key FROM models")
    return (key,)


def test_long_common_beginnings_of_user_texts_stand_side_by_side(
    tmp_path: Path, journal: Journal
) -> None:
    heads = ["x" * 300, "x" * 299 + "y" * 900, "z" * 5000, "z" * 1100 + "w" * 4000]
    lines = [chat(f"r{i}", heads[i % 4] + f" {i}", "") for i in range(40)]
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    waiting = journal.next(0, *one_model(journal), 100)
    which = [heads.index(row.text.rpartition(" ")[0]) for row in waiting]
    runs = [w for w, before in zip(which, [None, *which], strict=False) if w != before]
    assert sorted(runs) == [0, 1, 2, 3]
    assert abs(runs.index(2) - runs.index(3)) == 1  # they share 1,024 characters
    assert all(a.idx < b.idx for a, b in pairwise(waiting)
               if a.text[:-3] == b.text[:-3])  # fmt: skip


def test_several_models_in_one_file(tmp_path: Path, journal: Journal) -> None:
    lines = [chat(f"r{i}", f"c{i}", model=f"m{i % 3}") for i in range(12)]
    lines.append({"custom_id": "raw", "method": "POST", "url": "/v1/completions",
                  "body": {"model": "m1", "prompt": "Once", "max_tokens": 4}})  # fmt: skip
    table = batch_table(written(tmp_path / "in.jsonl", lines))
    backends = {f"m{i}": InstantBackend() for i in range(3)}
    begin(journal, table)
    tally = tallied(journal)
    assert sorted(models(journal)) == [("m0", 4), ("m1", 5), ("m2", 4)]
    for model, _ in models(journal):
        asyncio.run(Runner(journal, backends[model], model, tally, Stop()).run())
    assert sorted(backends["m1"].texts) == sorted(["c1", "c4", "c7", "c10", "Once"])
    assert tally.done == tally.total == 13


PART = st.text(alphabet="ab \n", min_size=1, max_size=4)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(PART, st.lists(PART, max_size=2), PART), min_size=1, max_size=20))
def test_plan_and_merge_are_a_permutation(
    tmp_path: Path, requests: list[tuple[str, list[str], str]]
) -> None:
    """Whatever is asked, in whichever order it runs: each answer stands where its question stood,
    as if it had been asked alone."""
    lines = []
    for i, (system, turns, text) in enumerate(requests):
        line = chat(str(i), text, system)
        history = [{"role": ("user", "assistant")[j % 2], "content": t}
                   for j, t in enumerate(turns[: len(turns) // 2 * 2])]  # fmt: skip
        line["body"]["messages"][1:1] = history
        lines.append(line)

    def whole(prefix: Prefix, text: str) -> str:
        turns = [turn.content for turn in prefix.history]
        return json.dumps([prefix.system, turns, text]).replace(" ", "_")

    path = tmp_path / "p.journal"
    path.unlink(missing_ok=True)
    journal = Journal.open(path)
    table = batch_table(written(tmp_path / "p.jsonl", lines), max_tokens=1)
    finished(table, journal, FakeBackend(whole), tmp_path / "p.out.jsonl")
    journal.close()
    out = objects(tmp_path / "p.out.jsonl")
    expected = [
        whole(Prefix(system, tuple(_turns(turns))), text) for system, turns, text in requests
    ]
    said = [line["response"]["body"]["choices"][0]["message"]["content"] for line in out]
    assert said == expected
    assert [line["custom_id"] for line in out] == [str(i) for i in range(len(requests))]


def _turns(texts: list[str]) -> Iterator[object]:
    from preread.types import Message

    for i, text in enumerate(texts[: len(texts) // 2 * 2]):
        yield Message("assistant" if i % 2 else "user", text)


def test_a_stop_lets_what_runs_end_and_resume_does_the_rest(
    tmp_path: Path, journal: Journal
) -> None:
    lines = [chat(f"r{i}", f"c{i}") for i in range(3000)]
    table = batch_table(written(tmp_path / "in.jsonl", lines))
    stop, backend = Stop(), InstantBackend(piece=64)
    begin(journal, table)
    tally = tallied(journal)
    running = Runner(journal, stopping(backend, stop, 200), "m", tally, stop)
    asyncio.run(running.run())
    assert stop.reason == "enough" and 200 <= tally.done < 3000
    assert journal.count("results") == tally.done == backend.rows
    more = InstantBackend()
    tally, counts = finished(table, journal, more, tmp_path / "out.jsonl", resume=True)
    assert counts == (3000, 0)
    assert len(more.texts) == 3000 - backend.rows
    assert not {*more.texts} & {*backend.texts}


@pytest.mark.parametrize("seed", range(4))
def test_texts_that_begin_alike_stand_together_where_the_first_of_them_does(
    tmp_path: Path, journal: Journal, seed: int
) -> None:
    """So the order is that of the input where nothing is shared, and a large journal is read and
    written from its beginning to its end."""
    rng = random.Random(seed)
    heads = [f"{i} " * 200 for i in range(3)]  # 400 characters
    seconds = [head + f"{j} " * 400 for head in heads for j in range(2)]  # 1,200
    texts = [rng.choice(["", *heads, *seconds]) + f"text {i} " + "x" * 300 for i in range(80)]
    lines = [chat(str(i), text) for i, text in enumerate(texts)]
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    order = [idx for (idx,) in journal.read("SELECT idx FROM line ORDER BY no")]
    assert sorted(order) == list(range(80))
    for length in (1024, 256):  # each group once, whole, in the order of its first
        begins = [texts[idx][:length] for idx in order]
        starts = [b for i, b in enumerate(begins) if i == 0 or begins[i - 1] != b]
        assert len(starts) == len(set(starts))
    assert starts == list(dict.fromkeys(text[:256] for text in texts))


class Slow(InstantBackend):
    """Begins three rows of a batch, and the others when time comes: never. Ends what it began once
    it is told to begin no more."""

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        assert batch.leaving is not None
        withdrawn = asyncio.Event()
        batch.leaving.listen(lambda row: None, withdrawn.set)
        await withdrawn.wait()
        (news,) = [news async for news in super().submit(batch)]
        finish = [Finish.STOP if row < 3 else Finish.CANCELLED for row in range(len(batch))]
        yield replace(news, finish=finish)


@pytest.mark.parametrize("why", ["stop", "failure"])
def test_what_waits_at_the_backend_to_begin_is_not_waited_for(
    tmp_path: Path, journal: Journal, why: str
) -> None:
    lines = [chat(f"r{i}", f"c{i}") for i in range(3000)]
    table = batch_table(written(tmp_path / "in.jsonl", lines))
    begin(journal, table)
    tally, stop = tallied(journal), Stop()

    async def run() -> None:
        runner = Runner(journal, Slow(), "m", tally, stop)
        asyncio.get_running_loop().call_later(0.1, end, runner)
        async with asyncio.timeout(30):
            await runner.run()

    def end(runner: Runner) -> None:
        if why == "stop":
            stop.ask("enough")
        else:
            runner._failure = EngineError("gone")

    if why == "stop":
        asyncio.run(run())
    else:
        with pytest.raises(EngineError, match="gone"):
            asyncio.run(run())
    assert 0 < tally.done <= 9 and journal.count("results") == tally.done
    _, counts = finished(table, journal, InstantBackend(), tmp_path / "out.jsonl", resume=True)
    assert counts == (3000, 0)


class Wrapped(InstantBackend):
    """Asks or raises something after some rows."""

    def __init__(self, inner: InstantBackend, after: int, act: Callable[[], None]) -> None:
        super().__init__()
        self._inner, self._after, self._act = inner, after, act

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        async for news in self._inner.submit(batch):
            yield news
            if self._inner.rows >= self._after:
                self._act()


def stopping(inner: InstantBackend, stop: Stop, after: int) -> InstantBackend:
    return Wrapped(inner, after, lambda: stop.ask("enough"))


def test_what_a_backend_raises_ends_the_run_and_keeps_what_came(
    tmp_path: Path, journal: Journal
) -> None:
    def broken() -> None:
        raise EngineError("The device is gone.")

    lines = [chat(f"r{i}", f"c{i}") for i in range(1000)]
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    tally = tallied(journal)
    backend = Wrapped(InstantBackend(piece=50), 100, broken)
    with pytest.raises(EngineError, match="gone"):
        asyncio.run(Runner(journal, backend, "m", tally, Stop()).run())
    kept = journal.count("results")
    assert 100 <= kept < 1000 and kept == tally.done


def test_a_cancelled_run_keeps_what_has_come(tmp_path: Path, journal: Journal) -> None:
    lines = [chat(f"r{i}", f"c{i}") for i in range(2000)]
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    tally = tallied(journal)

    async def cancelled() -> None:
        runner = Runner(journal, InstantBackend(piece=10, pause_s=0.001), "m", tally, Stop())
        task = asyncio.create_task(runner.run())
        while tally.done < 300:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert 300 <= journal.count("results") == tally.done < 2000


def test_what_is_malformed_for_the_backend_fails_alone(tmp_path: Path, journal: Journal) -> None:
    class Strict(FakeBackend):
        def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
            if batch.work.max_tokens == 5:  # type: ignore[union-attr]
                raise RequestError("max_tokens is five.")
            return super().submit(batch)

    lines = [chat(f"r{i}", f"c{i}", max_tokens=5 + i % 2) for i in range(10)]
    table = batch_table(written(tmp_path / "in.jsonl", lines))
    _, counts = finished(table, journal, Strict(echo), tmp_path / "out.jsonl")
    assert counts == (5, 5)
    bad = objects(tmp_path / "out.errors.jsonl")
    assert {line["error"]["message"] for line in bad} == {"max_tokens is five."}


def test_results_are_not_dropped_unasked(tmp_path: Path, journal: Journal) -> None:
    lines = [chat(f"r{i}", f"c{i}") for i in range(3000)]
    table = batch_table(written(tmp_path / "in.jsonl", lines))
    stop = Stop()
    finished(table, journal, stopping(InstantBackend(piece=10), stop, 20), tmp_path / "out.jsonl",
             stop=stop)  # fmt: skip
    with pytest.raises(RequestError, match="--resume"):
        begin(journal, table)
    begin(journal, table, fresh=True)
    assert journal.count("results") == 0 and journal.count("line") == 3000
    finished(table, journal, InstantBackend(), tmp_path / "out.jsonl")
    begin(journal, table)  # all done, none failed: a new run may begin
    assert journal.count("results") == 0


@pytest.mark.parametrize(("change", "told"), [
    (lambda lines: lines[:7] + lines[8:], r"in\.jsonl:8"),
    (lambda lines: [*lines, chat("new", "more")], r"in\.jsonl:11 \(new\)"),
    (lambda lines: lines[:9], "1 at the end are gone"),
    (lambda lines: [*lines[:3], lines[3] | {"custom_id": "x"}, *lines[4:]], r"1 of 10 .*:4"),
    (lambda lines: [line | {"body": line["body"] | {"max_tokens": 9}} for line in lines],
     "every row differs"),
])  # fmt: skip
def test_another_input_is_not_resumed(
    tmp_path: Path, journal: Journal, change: Callable[[list[object]], list[object]], told: str
) -> None:
    lines: list[object] = [chat(f"r{i}", f"c{i}") for i in range(10)]
    path = written(tmp_path / "in.jsonl", lines)
    begin(journal, batch_table(path))
    written(path, change(lines))
    with pytest.raises(RequestError, match=told):
        begin(journal, batch_table(path), resume=True)
    assert journal.count("line") == 10


def test_a_second_process_is_refused(tmp_path: Path, journal: Journal) -> None:
    with pytest.raises(StateError, match="another process"):
        Journal.open(journal.path)
    journal.close()
    Journal.open(journal.path).close()


def test_foreign_files_are_no_journals(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("This is not a database, it is a text. " * 200)
    with pytest.raises(StateError, match="not a database"):
        Journal.open(tmp_path / "text")
    with pytest.raises(StateError, match="unable to open"):
        Journal.open(tmp_path / "none" / "x")


def test_a_full_disk_stops_the_run_and_it_goes_on_later(tmp_path: Path) -> None:
    lines = [chat(f"r{i}", f"candidate {i}") for i in range(4000)]
    table = batch_table(written(tmp_path / "in.jsonl", lines))
    path = tmp_path / "run.journal"
    begun = Journal.open(path)
    begin(begun, table)
    begun.close()
    pages = path.stat().st_size // 4096
    full = Journal.open(path, most_pages=pages + 10)
    backend = InstantBackend(piece=32, pause_s=0.02)
    with pytest.raises(Resumable, match="full"):
        asyncio.run(Runner(full, backend, "m", tallied(full), Stop()).run())
    full.close()
    roomy = Journal.open(path)
    roomy.check()
    kept = roomy.count("results")
    assert 0 <= kept < 4000
    more = InstantBackend()
    _, counts = finished(table, roomy, more, tmp_path / "out.jsonl", resume=True)
    assert counts == (4000, 0) and len(more.texts) == 4000 - kept
    roomy.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["out.jsonl", "out.errors.jsonl"])
def test_an_output_that_finds_no_room_is_named_and_written_later(
    tmp_path: Path, journal: Journal, name: str
) -> None:
    out = tmp_path / "out.jsonl"
    lines = [chat(f"r{i}", "fail" if i % 2 else f"candidate {i}") for i in range(400)]
    table = batch_table(written(tmp_path / "in.jsonl", lines))
    (tmp_path / f".{name}.part").symlink_to("/dev/full")
    with pytest.raises(Resumable, match="the disk is full") as caught:
        finished(table, journal, InstantBackend(), out)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert {path.name for path in tmp_path.glob("*out*")} == set()
    assert not [*tmp_path.glob(".*")]
    none = InstantBackend()
    _, counts = finished(table, journal, none, out, resume=True)
    assert counts == (200, 200) and not none.texts and len(objects(out)) == 200


def test_a_disk_that_is_full_while_reading_leaves_no_half_plan(tmp_path: Path) -> None:
    lines = [chat(f"r{i}", "much text " * 50 + str(i)) for i in range(2000)]
    table = batch_table(written(tmp_path / "in.jsonl", lines))
    full = Journal.open(tmp_path / "run.journal", most_pages=40)
    with pytest.raises(Resumable, match="full"):
        begin(full, table)
    full.close()
    roomy = Journal.open(tmp_path / "run.journal")
    assert not roomy.planned
    begin(roomy, table, resume=True)  # nothing to go on with: it begins
    assert roomy.count("line") == 2000
    roomy.close()


@pytest.mark.parametrize("broken", ["for ever", "for a while", "in two ways"])
def test_a_run_in_which_everything_fails_alike_stops(
    tmp_path: Path, journal: Journal, broken: str
) -> None:
    """A server that dies midway must not cost the rest of the rows."""

    def reply(prefix: Prefix, text: str) -> Reply:
        n = int(text.rsplit(" ", 1)[1])
        if n < 100 or (broken == "for a while" and n >= 350):
            return Reply("fine")
        return Reply("", error=f"cannot be reached {n % 2 if broken == 'in two ways' else 0}")

    lines = [chat(f"r{i}", f"candidate {i}", RUBRIC) for i in range(3000)]
    begin(journal, batch_table(written(tmp_path / "in.jsonl", lines)))
    stop, tally = Stop(), tallied(journal)
    asyncio.run(Runner(journal, FakeBackend(reply), "m", tally, stop).run())
    if broken == "for ever":
        assert "failed alike (cannot be reached 0)" in stop.reason and "--resume" in stop.reason
        assert 300 <= tally.failed < 2900 and tally.done < 3000, "the rest waits"
    else:
        assert not stop.reason and tally.done == 3000
