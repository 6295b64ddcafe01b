"""The facade over a fake backend: what it passes on, and that it is sync everywhere."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import preread
from preread.app.compose import Parts
from preread.app.context import Context
from preread.app.engine import Engine
from preread.app.options import generate_work
from preread.config import load_config
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.errors import EngineError, RequestError, StateError, UnknownName
from preread.metrics import Metrics
from preread.testing.backend import FakeBackend
from preread.types import Completion, Finish


@pytest.fixture
def engine(home: Path) -> Iterator[Engine]:
    catalog = SqliteCatalog(home / "catalog.sqlite")
    parts = Parts(load_config(home), FakeBackend(), catalog, Metrics(), 0)  # type: ignore[arg-type]
    with Engine(parts) as made:
        yield made


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("warranty: 24 months\ncolour: blue\n")
    return folder


def test_the_public_names_are_sorted_and_exist() -> None:
    assert preread.__all__ == sorted(preread.__all__)
    for name in preread.__all__:
        assert getattr(preread, name) is not None
    with pytest.raises(AttributeError):
        _ = preread.nothing


def test_five_lines_are_enough(engine: Engine, docs: Path) -> None:
    handbook = engine.context("handbook", docs)
    answer = handbook.ask("Which warranty?")
    assert isinstance(answer, Completion) and answer.finish_reason == Finish.STOP
    assert "24 months" in answer.text
    assert answer.context is not None and answer.context.name == "handbook"
    assert answer.citations[0].source.endswith("a.md") and answer.citations[0].start_line == 1


def test_many_answers_come_in_order(engine: Engine, docs: Path) -> None:
    handbook = engine.context("handbook", docs)
    first, second = handbook.ask_many(["Which warranty?", "Which colour?"])
    assert "24 months" in first.text and "blue" in second.text


def test_a_stream_is_the_answer(engine: Engine, docs: Path) -> None:
    *deltas, last = engine.context("handbook", docs).stream("Which warranty?")
    assert isinstance(last, Completion)
    assert "".join(d for d in deltas if isinstance(d, str)) == last.text


def test_a_known_name_needs_no_path(engine: Engine, docs: Path) -> None:
    engine.context("handbook", docs)
    assert engine.context("handbook").version == 1
    with pytest.raises(UnknownName):
        engine.context("nobody")


def test_opening_again_and_again_costs_no_memory(engine: Engine, docs: Path) -> None:
    first = engine.context("handbook", docs)
    assert engine.open("handbook").opened is first.opened
    (docs / "a.md").write_text("warranty: 36 months\n")
    replaced = weakref.ref(first.opened)
    second = engine.open("handbook")
    assert "24 months" in first.ask("Which warranty?").text  # an old handle still answers
    assert "36 months" in second.ask("Which warranty?").text
    del first
    gc.collect()
    assert replaced() is None


def test_notes_say_that_it_was_rebuilt(engine: Engine, docs: Path) -> None:
    engine.context("handbook", docs)
    (docs / "a.md").write_text("warranty: 36 months\n")
    notes: list[str] = []
    again = engine.open("handbook", on_note=notes.append)
    assert again.version == 2 and "rebuilt" in notes[0]
    assert "36 months" in again.ask("Which warranty?").text


def test_sessions_remember_and_fork(engine: Engine, docs: Path) -> None:
    handbook = engine.context("handbook", docs)
    session = handbook.session("s")
    session.ask("Which warranty?")
    other = session.fork("t")
    session.ask("Which colour?")
    assert len(session.turns) == 2 and len(other.turns) == 1
    assert handbook.session("s").turns == session.turns


def test_generate_keeps_the_shape_of_what_it_was_given(engine: Engine) -> None:
    assert isinstance(engine.generate("one two", max_tokens=3), Completion)
    assert len(engine.generate(["one", "two"], max_tokens=3)) == 2
    assert len(engine.generate([[1, 2], [3]], max_tokens=3)) == 2
    assert len(engine.generate([1, 2, 3], max_tokens=3)) == 1
    assert engine.generate([], max_tokens=3) == []
    with pytest.raises(RequestError, match="mixes"):
        engine.generate(["one", [2]], max_tokens=3)  # type: ignore[arg-type]


def test_loglikelihood_keeps_the_shape_of_what_it_was_given(engine: Engine) -> None:
    one = engine.loglikelihood("a prompt", " not stated")
    assert one.logprob == sum(one.logprobs) and len(one.logprobs) == len(one.tokens)
    assert one.is_greedy
    other = engine.loglikelihood(["a prompt"], [" something else"])[0]
    assert other.logprob < one.logprob and not other.is_greedy
    assert engine.loglikelihood([], []) == []
    with pytest.raises(RequestError, match="continuations"):
        engine.loglikelihood(["a", "b"], ["c"])


def test_a_handle_does_not_answer_after_its_context_was_invalidated(
    engine: Engine, docs: Path
) -> None:
    handbook = engine.context("handbook", docs)
    engine.catalog.invalidate("handbook", "moved")
    with pytest.raises(StateError, match="moved"):
        handbook.ask("Which warranty?")
    assert "24 months" in engine.open("handbook").ask("Which warranty?").text


def test_opening_tells_what_goes_on(engine: Engine, docs: Path) -> None:
    *told, context = engine.opening(str(docs))
    assert isinstance(context, Context) and context.version == 1
    counts = [news for news in told if isinstance(news, tuple)]
    assert counts and counts[-1][0] == counts[-1][1] == context.tokens
    (docs / "a.md").write_text("warranty: 36 months\n")
    notes = [news for news in engine.opening(str(docs)) if isinstance(news, str)]
    assert any("rebuilt" in text for text in notes)
    with pytest.raises(UnknownName):
        list(engine.opening("nobody"))


def test_vectors_are_made_once_and_opened_with_the_same_embedder(
    engine: Engine, docs: Path
) -> None:
    class Length:
        name = "length"
        calls = 0

        def __call__(self, texts: Sequence[str]) -> list[list[float]]:
            self.calls += 1
            return [[float(len(text)), 1.0] for text in texts]

    embedder = Length()
    handbook = engine.context("handbook", docs, embedder=embedder)
    assert embedder.calls == 1 and handbook.opened.record.embedding is not None
    assert engine.context("handbook", embedder=embedder).ask("Which colour?").text == "blue"


def test_choose_wants_labels(engine: Engine, docs: Path) -> None:
    handbook = engine.context("handbook", docs)
    with pytest.raises(RequestError):
        handbook.choose("Which?", [])
    choice = handbook.choose("Which?", ["yes", "no"])
    assert set(choice.probabilities) == {"yes", "no"}
    assert len(handbook.choose(["a?", "b?"], ["yes", "no"])) == 2


def test_it_works_where_a_loop_runs_already(engine: Engine, docs: Path) -> None:
    async def notebook() -> str:
        return engine.context("handbook", docs).ask("Which warranty?").text

    assert "24 months" in asyncio.run(notebook())


def test_close_is_idempotent(engine: Engine) -> None:
    engine.close()
    engine.close()


def test_a_closed_engine_says_so(engine: Engine, docs: Path) -> None:
    handbook = engine.context("handbook", docs)
    stream = handbook.stream("Which warranty?")
    next(stream)
    engine.close()
    calls = (lambda: handbook.ask("Who?"), lambda: engine.context("handbook"), lambda: next(stream))
    for call in calls:
        with pytest.raises(EngineError, match=r"closed.*preread\.open"):
            call()


def test_what_would_be_misread_is_refused(engine: Engine, docs: Path) -> None:
    handbook = engine.context("handbook", docs)
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("max_tokens", lambda: handbook.ask("Who?", maxtokens=3)),  # type: ignore[call-arg]
        ("questions", lambda: handbook.ask_many("Who?")),
        (r"questions\[0\]", lambda: handbook.ask(None)),  # type: ignore[arg-type]
        ("labels", lambda: handbook.choose("Who?", "yes")),
        (r"labels\[1\]", lambda: handbook.choose("Who?", ["1", 2])),  # type: ignore[list-item]
        (r"prompts\[1\]", lambda: engine.generate([[1], [1.7]])),  # type: ignore[arg-type]
        (r"prompts\[0\]", lambda: engine.generate([[2**40]])),
        ("mixes", lambda: engine.generate([[1], 2])),  # type: ignore[arg-type]
    ]
    for words, call in wrong:
        with pytest.raises(RequestError, match=words):
            call()


def test_an_iterator_of_prompts_is_a_list(engine: Engine) -> None:
    prompts = (text for text in ("one", "two"))
    assert len(engine.generate(prompts, max_tokens=3)) == 2  # type: ignore[call-overload]


def test_one_stop_string_is_not_its_letters() -> None:
    assert generate_work({"stop": "end"}, 8).stop == ("end",)
