"""The suite of all backends over `openai:URL`, against our own server on a tiny model; and that two
machines in a row say what one says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import preread
from preread.backend import Backend, Choose, Generate, LogLikelihood, RequestBatch
from preread.contexts.rows import collect
from preread.providers.opening import connect
from preread.testing.conformance_backend import BackendConformance
from preread.testing.questions import BOOK, QUESTIONS
from preread.types import Prefix

from .conftest import Served, serving

CANNOT = {"test_what_is_forgotten_is_not_in_memory": "no server lets a client make it forget"}


class TestOwnServer(BackendConformance):
    @pytest.fixture(autouse=True)
    def _server(self, request: pytest.FixtureRequest, engine: preread.Engine) -> Iterator[None]:
        if why := CANNOT.get(request.node.originalname):
            pytest.skip(why)
        with serving(engine) as self.served:
            yield

    async def open(self) -> Backend:
        return await connect(f"openai:{self.served.url}", env={})


WORKS = {
    "greedy": Generate(max_tokens=12, ignore_eos=True, logprobs=True),
    "labels": Choose(("yes", "yes it is", "no")),
    "likelihood": LogLikelihood(["On floor 4.", "Nobody knows.", "No."]),
}


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("reuse", [True, False])
async def test_what_comes_over_http_is_what_the_engine_says(
    served: Served, work: str, reuse: bool
) -> None:
    """Law 1: tokens equal, probabilities as near as two runs of the engine are."""
    batch = RequestBatch(WORKS[work], list(QUESTIONS), (BOOK,), reuse=reuse)
    want = served.engine.run(collect(served.engine.backend, batch))
    backend = await connect(f"openai:{served.url}", env={})
    got = await collect(backend, batch)
    await backend.close()
    for one, other in zip(got, want, strict=True):
        assert not one.error and not other.error
        assert (one.text, one.tokens, one.finish) == (other.text, other.tokens, other.finish)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        assert one.label_probs == pytest.approx(other.label_probs, abs=1e-4)
        assert one.mass == pytest.approx(other.mass, rel=1e-3)
        assert one.is_greedy == other.is_greedy


async def test_a_context_is_a_model_to_others(served: Served, handbook: preread.Context) -> None:
    backend = await connect(f"openai:{served.url}", "handbook", env={})
    (row,) = await collect(backend, RequestBatch(Generate(max_tokens=6), ["How much leave?"]))
    await backend.close()
    assert row.text == handbook.ask("How much leave?", max_tokens=6).text
    assert row.usage.cached_tokens >= handbook.tokens - 8


def test_preread_asks_preread(served: Served, docs: Path, tmp_path: Path) -> None:
    """A context named here, read there."""
    with preread.open(backend=f"openai:{served.url}", home=tmp_path / "other") as there:
        assert there.info.model == "tiny" and there.info.device == "preread"
        far = there.context("handbook", docs).ask("How much leave?", max_tokens=6)
    near = served.engine.context("own", docs).ask("How much leave?", max_tokens=6)
    assert (far.text, far.citations) == (near.text, near.citations)
    assert far.usage == near.usage


async def test_a_short_beginning_is_reused_and_not_said_to_be_read_again(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    backend = await connect(f"openai:{served.url}", env={})
    with caplog.at_level(logging.WARNING, "preread"):
        rows = await collect(
            backend, RequestBatch(WORKS["greedy"], list(QUESTIONS), (Prefix("Hi."),))
        )
    await backend.close()
    assert not caplog.records
    assert [row.usage.cached_tokens > 0 for row in rows] == [False, *[True] * (len(rows) - 1)]
