"""One job with and without reuse, on a backend that counts honestly."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from preread.batch.applicants import applicants, rubric
from preread.batch.claims import TABLE, claimed, corrected
from preread.batch.trial import Afresh, Job, Made, Measured, Mode, run_part, sized
from preread.errors import EngineError
from preread.testing.backend import FakeBackend
from preread.testing.replies import Reply
from preread.types import Prefix


def answer(prefix: Prefix, question: str) -> Reply:
    return Reply("A")


def job_of(backend: FakeBackend, requests: int = 60, run: str = "1") -> Job:
    return asyncio.run(sized(backend, requests=requests, shared=400, own=30, run=run))


def measured(mode: Mode, job: Job, folder: Path, *, local: bool = True) -> Measured:
    backend, seen = FakeBackend(answer), Measured(mode, job.requests)
    asyncio.run(run_part(backend, job, seen, 0, job.requests, folder, local=local))
    return seen


def test_a_job_has_the_size_that_was_asked_for() -> None:
    job = job_of(FakeBackend(answer))
    assert abs(job.shared - 400) <= 4 and abs(job.own - 30) <= 2


def test_only_the_full_mode_reuses(tmp_path: Path) -> None:
    job = job_of(FakeBackend(answer))
    whole = measured(Mode.keep_alive, job, tmp_path)
    full = measured(Mode.full, job, tmp_path)
    assert whole.cached == whole.hits == 0 and whole.ran == full.ran == 60
    assert full.cached + full.computed - full.once_tokens == whole.computed
    assert full.hits == 60 and full.once_tokens == job.shared
    assert full.computed == job.shared + (whole.computed - 60 * job.shared)
    assert full.hit_rate == pytest.approx(59 * job.shared / whole.computed)
    assert whole.hit_rate == 0
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_prompts_apart_share_nothing_even_where_a_server_would_reuse(tmp_path: Path) -> None:
    job = job_of(FakeBackend(answer))
    apart = measured(Mode.keep_alive, job, tmp_path, local=False)
    whole = measured(Mode.keep_alive, job, tmp_path)
    assert apart.cached <= 60 * 2  # the template's own words
    assert apart.cached + apart.computed == whole.computed + 60  # a number more each


def test_what_is_done_once_does_not_grow(tmp_path: Path) -> None:
    job = job_of(FakeBackend(answer))
    full = measured(Mode.full, job, tmp_path)
    full.once_s, full.seconds = 2.0, 5.0
    at = full.at(600)
    assert at.seconds == pytest.approx(2 + 30)
    assert at.computed - job.shared == 10 * (full.computed - job.shared)
    base = Measured(Mode.baseline, 10, 10, loads=2, load_s=1.0, computed=100, seconds=4.0)
    assert base.at(100).loads == 20 and base.at(100).seconds == pytest.approx(40)
    keep = Measured(Mode.keep_alive, 10, 10, loads=1, load_s=1.0, once_s=1.0, seconds=4.0)
    assert keep.at(100).loads == 1 and keep.at(100).seconds == pytest.approx(31)


def test_parts_add_up(tmp_path: Path) -> None:
    job, backend = job_of(FakeBackend(answer)), FakeBackend(answer)
    seen = Measured(Mode.baseline, 60)
    for begin in range(0, 60, 20):
        part = run_part(backend, job, seen, begin, begin + 20, tmp_path, local=True)
        asyncio.run(part)
    whole = measured(Mode.keep_alive, job, tmp_path)
    assert (seen.ran, seen.computed) == (60, whole.computed)


def test_a_failed_request_is_no_measurement(tmp_path: Path) -> None:
    job, seen = job_of(FakeBackend(answer)), Measured(Mode.full, 60)
    backend = FakeBackend(lambda prefix, text: Reply("", error="no luck"))
    with pytest.raises(EngineError, match="no luck"):
        asyncio.run(run_part(backend, job, seen, 0, 60, tmp_path, local=True))
    assert seen.ran == 0 and list(tmp_path.iterdir()) == []


def test_applicants_are_the_same_each_time_and_never_twice() -> None:
    some = list(applicants(0, 3000, 14))
    assert some[100:200] == list(applicants(100, 200, 14))
    assert len({name for name, _ in some}) == 3000
    assert {len(profile.split()) for _, profile in some} == {14}
    assert rubric(50, "x") != rubric(50, "y") and len(rubric(50).split()) == 50


def test_afresh_leaves_the_rest_alone() -> None:
    backend = FakeBackend(answer)
    made = Afresh(backend)
    assert made.info is backend.info
    assert asyncio.run(made.count([Prefix("a b")])) == asyncio.run(backend.count([Prefix("a b")]))
    asyncio.run(made.build(Prefix("a b")))
    asyncio.run(made.forget([Prefix("a b")]))
    asyncio.run(made.close())
    assert {call.kind for call in backend.calls} == {"count", "build", "forget"}


def test_the_input_is_read_the_same_each_time() -> None:
    from preread.batch.table import Faults

    job = job_of(FakeBackend(answer))
    made = Made(job, 5, 25)
    (one,), (two,) = (list(made.read(Faults())) for _ in range(2))
    assert one == two and len(one) == 20 and one.texts == list(job.texts(5, 25))


def test_the_arithmetic_done_right() -> None:
    full, base = corrected(Mode.full, TABLE), corrected(Mode.baseline, TABLE)
    assert (full.computed, base.computed) == (8_502_000, 348_500_000)
    assert full.hit_rate == pytest.approx(0.976, abs=5e-4)
    assert corrected(Mode.full, 100).computed == claimed(Mode.full, 100).computed == 7000
    assert corrected(Mode.full, 100).hit_rate == pytest.approx(0.966, abs=5e-4)
    assert claimed(Mode.baseline, 1000).computed is None
