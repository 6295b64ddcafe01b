"""A real foreign server: llama.cpp's, from the xllamacpp wheel, on the bundled reader's weights.

pip install xllamacpp gguf      # neither is a dependency: without them this file skips
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import preread
from preread.backend import Backend, Choose, Generate, RequestBatch
from preread.contexts.rows import collect
from preread.providers.opening import connect
from preread.testing.conformance_backend import BackendConformance
from preread.types import Prefix
from tests.providers.llama import write_reader

pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")

CANNOT = {
    "test_what_is_forgotten_is_not_in_memory": "no provider lets a client make it forget",
    "test_choose_gives_a_distribution": "its labels share a beginning; see the test below",
    "test_raw_prompts_as_text_and_as_tokens": "it names token ids beside log-probabilities only",
    "test_loglikelihood_of_a_continuation": "llama-server does not score given continuations",
}
FACTS = Prefix(
    "Answer from the documents below.\n\n[house.md]\n"
    + "\n".join(f"Room {n} is on floor {n % 7}; its key hangs on hook {n * 3}." for n in range(30))
)
ASKED = ["Which floor is room 4 on?", "Which hook has the key of room 11?", "Who built the house?"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "reader.gguf"
    write_reader(path)
    return path


@contextmanager
def served(weights: Path, slots: int = 2) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.providers.llama", str(weights), str(slots)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class TestLlamaServer(BackendConformance):
    @pytest.fixture(autouse=True)
    def _server(self, request: pytest.FixtureRequest, weights: Path) -> Iterator[None]:
        if why := CANNOT.get(request.node.originalname):
            pytest.skip(why)
        with served(weights, slots=1) as self.url:
            yield

    async def open(self) -> Backend:
        return await connect(f"openai:{self.url}", env={})


async def test_the_same_weights_answer_alike(weights, tmp_path):
    """Greedy answers of llama.cpp and of our engine: both read the same words."""
    work, longest = Generate(max_tokens=12), [FACTS] * len(ASKED)
    with preread.open(home=tmp_path, dtype="float32") as engine:
        ours = engine.run(collect(engine.backend, RequestBatch(work, ASKED, (FACTS,))))
        counts = engine.run(engine.backend.count(longest, ASKED))
    with served(weights) as url:
        backend = await connect(f"openai:{url}", env={})
        theirs = await collect(backend, RequestBatch(work, ASKED, (FACTS,)))
        assert await backend.count(longest, ASKED) == counts
        await backend.close()
    assert [row.text for row in theirs] == [row.text for row in ours]


async def test_one_goes_first_and_a_slot_keeps_what_it_read(weights):
    floors = Choose(tuple(str(n) for n in range(7)))
    asked = [f"Which floor is room {n} on?" for n in range(8)]
    with served(weights, slots=1) as url:
        backend = await connect(f"openai:{url}", env={})
        rows = await collect(backend, RequestBatch(floors, asked, (FACTS,)))
        (head,) = await backend.count([FACTS])
        await backend.close()
    cold, *warm = sorted(rows, key=lambda row: row.usage.cached_tokens)
    assert cold.usage.cached_tokens == 0
    assert all(row.usage.cached_tokens >= head - 8 for row in warm)
    for row in rows:
        assert not row.error and sum(row.label_probs) == pytest.approx(1, abs=1e-4)
        assert 0 < row.mass <= 1.001


async def test_as_many_are_under_way_as_it_has_slots_and_each_reads_a_beginning_once(weights):
    """Two groups on two slots, which share nothing; what waits, waits here, where no time-out
    runs."""
    other = Prefix("Shelves.\n" + "\n".join(f"Shelf {n} holds book {n * 7}." for n in range(40)))
    asked = [f"Which floor is room {n} on?" for n in range(24)]
    with served(weights, slots=2) as url:
        backend = await connect(f"openai:{url}", env={})
        batch = RequestBatch(Generate(max_tokens=2), asked, (FACTS, other), [0, 1] * 12)
        rows = await collect(backend, batch)
        assert backend._sender.gate.most == 2
        await backend.close()
    assert not any(row.error for row in rows)
    assert 2 <= sum(row.usage.cached_tokens < 100 for row in rows) <= 4
