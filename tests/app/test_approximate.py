"""Contexts joined approximately, on a real engine: measured, remembered, told apart, let go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import preread
from preread.app.approximate import check_approximate, probes
from preread.cli.verifying import lines
from preread.errors import StateError, UsageError

SETTINGS = {"PREREAD_CONTEXT_MAX_TOKENS": "8", "PREREAD_CONTEXT_ANSWER_ROOM": "64"}


@pytest.fixture
def shop(engine: preread.Engine, tmp_path: Path) -> preread.Engine:
    for name, text in (
        ("leave", "# Leave\n\nStaff get 25 days of leave.\nAsk Ann before you go.\n" * 6),
        ("travel", "# Travel\n\nTrains before planes.\n\n## Trains\n\nSecond class.\n" * 6),
    ):
        (tmp_path / f"{name}.md").write_text(text)
        engine.build(name, tmp_path / f"{name}.md")
    return engine


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)


def test_it_is_measured_and_remembered(shop: preread.Engine, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    asked = [{"question": "How many days?", "answer": "25"}, {"question": "Who?"}]
    questions.write_text("\n".join(map(json.dumps, asked)))
    report = check_approximate(shop, "leave+travel", questions)
    agreed = report.approximate.agreed
    assert agreed is not None and (agreed.questions, agreed.graded) == (2, 1)
    assert agreed.tokens > 10 and 0 < agreed.equal <= 1 and agreed.divergence > 0
    answer = shop.open("leave+travel", approximate=True).ask("Who?", max_tokens=2)
    assert answer.approximate == report.approximate and str(agreed) in answer.notes[0]
    assert report.to_json()["agreement"]["tokens"] == agreed.tokens
    assert str(agreed) in lines(report)
    assert shop.metrics["engine.blended_tokens"] > 0


def test_all_computed_again_agrees_wholly(
    folder: Path, shop: preread.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And less does not: the measure can tell."""
    found = []
    for share in ("1.0", "0.0"):
        monkeypatch.setenv("PREREAD_CONTEXT_BLEND_SHARE", share)
        with preread.open(str(folder), dtype="float32") as engine:
            found.append(check_approximate(engine, "leave+travel").approximate.agreed)
    whole, none = found
    assert whole is not None and none is not None
    assert whole.same == whole.questions and whole.equal == 1.0 and whole.divergence < 1e-6
    assert none.divergence > 100 * max(whole.divergence, 1e-9)


def test_the_headings_are_asked_about(shop: preread.Engine) -> None:
    record = shop.open("leave+travel", approximate=True).opened.record
    said = [question.text for question in probes(record)]
    assert said == [f"What do the documents say about {h}?" for h in ("Leave", "Travel", "Trains")]
    assert len(probes(record, most=2)) <= 2


def test_exact_and_approximate_live_side_by_side(shop: preread.Engine) -> None:
    blended, exact = shop.open("leave+travel", approximate=True), shop.open("leave+travel")
    again = shop.open("leave+travel", approximate=True)
    assert again.opened is blended.opened
    assert exact.ask("Who?", max_tokens=4).approximate is None
    assert blended.ask("Who?", max_tokens=4).approximate is not None
    streamed = list(blended.stream("Who?", max_tokens=4))[-1]
    assert streamed.approximate is not None
    assert blended.choose("Who?", ["Ann", "Bo"]).approximate is not None
    with pytest.raises(UsageError, match="exact composition"):
        blended.session("talk")


def test_an_invalidated_part_leaves_memory_and_answers_no_more(shop: preread.Engine) -> None:
    from threading import Event

    gone = Event()
    blended = shop.open("leave+travel", approximate=True)
    blended.ask("Who?", max_tokens=2)
    shop.subscribe(lambda change: gone.set())
    before = shop.metrics.get("engine.forgotten_tokens", 0)
    shop.catalog.invalidate("travel", "recall")
    assert gone.wait(10)
    with pytest.raises(StateError, match=r"travel.*recall"):
        blended.ask("Who?")
    # Its own prefix, from where it parts from the other, and that of the blend.
    own = shop.catalog.get("travel")
    assert own is not None
    forgotten = shop.metrics["engine.forgotten_tokens"] - before
    assert forgotten > own.tokens


def test_async(shop: preread.Engine) -> None:
    import asyncio

    async def both() -> list[preread.Completion]:
        context = await shop.aio.open("leave+travel", approximate=True)
        return await asyncio.gather(*(context.ask(q, max_tokens=2) for q in ("Who?", "What?")))

    assert all(answer.approximate for answer in asyncio.run(both()))
