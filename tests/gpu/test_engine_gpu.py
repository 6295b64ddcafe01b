"""The engine on CUDA: kernels against float64, law 1 in every precision, memory running out."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from preread.app.storing import room_for
from preread.backend import Choose, LogLikelihood, RequestBatch
from preread.config import EngineSection
from preread.contexts.rows import collect
from preread.engine.engine import Engine
from preread.engine.local import LocalBackend
from preread.engine.parity import judge, observe, parity
from preread.kernels.attention import (
    _flash_works,
    attend_causal,
    attend_decode,
    attend_dense,
    attend_reference,
)
from preread.kernels.merge import fold, merge_reference
from preread.kernels.sample import draw
from preread.models.load import load_model
from preread.store.tiers.memory import MemoryTier
from preread.testing.models import load_decoder, write_tiny_model
from preread.testing.questions import BOOK, QUESTIONS, SHORT
from tests.engine.helpers import Flaky, batch, greedy
from tests.parity.conftest import FAMILIES, WIDER
from tests.parity.tools import store_of

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
BOUND = {torch.float32: 5e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
HEADS = [(14, 2), (6, 2), (16, 8), (4, 4)]
CONFIG = EngineSection(
    prefix_memory_mb=64,
    suffix_memory_mb=32,
    extent_tokens=64,
    page_tokens=16,
    max_sequences=64,
    batch_tokens=1024,
    prefill_chunk=256,
    truth_check=True,
)


def rand(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(CUDA, dtype)


def close(got, want, dtype: torch.dtype) -> None:
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w, atol=BOUND[dtype], rtol=BOUND[dtype])


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("size", [16, 64, 80, 128])
@pytest.mark.parametrize(("heads", "groups"), HEADS)
def test_dense_causal_and_decode_agree_with_float64(heads, groups, size, dtype):
    scale = size**-0.5
    arena = rand(2, groups, 1500, size, dtype=dtype, seed=0)
    for rows in (1, 7, 300):
        q = rand(rows, heads, size, dtype=dtype, seed=1)
        k, v = arena[0, :, 33:1240], arena[1, :, 33:1240]
        every = torch.ones(rows, k.shape[1], dtype=torch.bool, device=CUDA)
        close(attend_dense(q, k, v, scale), attend_reference(q, k, v, scale, every), dtype)
    q = rand(3, 70, heads, size, dtype=dtype, seed=2)
    k, v = (rand(3, 70, groups, size, dtype=dtype, seed=s) for s in (3, 4))
    past = torch.ones(70, 70, dtype=torch.bool, device=CUDA).tril()
    for mask in (None, past.expand(3, 70, 70)):
        out, lse = attend_causal(q, k, v, scale, mask)
        for b in range(3):
            want = attend_reference(q[b], k[b].transpose(0, 1), v[b].transpose(0, 1), scale, past)
            close((out[b], lse[b]), want, dtype)
    lengths = torch.tensor([70, 0, 13], device=CUDA)
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    out, lse = attend_decode(q[:, 0], keys, values, lengths, scale)
    for b, n in enumerate(lengths.tolist()):
        seen = (torch.arange(70, device=CUDA) < n)[None]
        want = attend_reference(q[b, :1], keys[b], values[b], scale, seen)
        close((out[b : b + 1], lse[b : b + 1]), want, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [64, 128])
def test_the_fused_road_is_taken_where_it_counts(dtype, size):
    assert _flash_works("cuda", dtype, size)


@pytest.mark.parametrize("dtype", BOUND, ids=str)
def test_a_cascade_of_parts_is_the_whole(dtype):
    q = rand(64, 16, 128, dtype=dtype, seed=0)
    k, v = rand(2, 8, 2000, 128, dtype=dtype, seed=1)
    parts = [attend_dense(q, k[:, a:b], v[:, a:b], 0.1) for a, b in ((0, 1), (1, 900), (900, 2000))]
    out = torch.zeros(q.shape, device=CUDA)
    lse = torch.full(q.shape[:2], -torch.inf, device=CUDA)
    for part in parts:
        fold(out, lse, *part)
    every = torch.ones(64, 2000, dtype=torch.bool, device=CUDA)
    want = attend_reference(q, k, v, 0.1, every)
    close((out, lse), want, dtype)
    close(merge_reference(parts), want, dtype)


def test_sampling_is_the_same_on_both_devices():
    make = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 999, generator=make) * 4
    heat, numbers = torch.rand(2, 200, generator=make)
    columns = (heat, torch.arange(200) % 7, 0.5 + heat / 2, numbers)
    there = draw(logits.to(CUDA), *(c.to(CUDA) for c in columns)).cpu()
    assert (there == draw(logits, *columns)).float().mean() > 0.99


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        name: write_tiny_model(
            root / name, family, seed=i, **{"layers": 4, "head_dim": 64, **options}
        )
        for i, (name, (family, options)) in enumerate(FAMILIES.items())
    }


@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("family", FAMILIES)
def test_law_1(folders, family, dtype):
    decoder = load_decoder(folders[family], dtype, CUDA)
    reference = load_decoder(folders[family], WIDER[dtype], CUDA)
    report = parity(Engine(decoder, CONFIG), reference, prompts=40, prefix=600, steps=16)
    print(f"{family} {dtype}: {report}")
    assert report.ok, report


@pytest.mark.parametrize("dtype", WIDER)
def test_mixed_contexts_preemption_and_lost_memory(folders, dtype):
    decoder = load_decoder(folders["qwen3"], dtype, CUDA)
    reference = load_decoder(folders["qwen3"], WIDER[dtype], CUDA)
    make = np.random.default_rng(0)

    def text(n: int) -> list[int]:
        return make.integers(0, decoder.vocab_size, n).tolist()

    flaky = Flaky(decoder, most=700)
    plain = replace(CONFIG, graphs=False)  # a bucket may be larger than what the decoder stands
    engine = Engine(flaky, plain, plan=replace(Engine(decoder, CONFIG).plan, pages=90))
    book = text(700)
    books = [book, book[:300] + text(200), text(90), book[:300]]
    own = [text(int(n)) for n in make.integers(1, 60, 40)]
    which = [i % 5 - 1 for i in range(40)]
    seen = observe(engine, batch(own, greedy(24), prefixes=books, prefix_of=which))
    assert flaky.failures > 0
    assert engine.metrics.snapshot()["engine.preempted"] > 0
    seen += observe(engine, batch(own, greedy(4), prefixes=books, prefix_of=which))
    report = judge(seen, reference, decoder)
    print(f"mixed {dtype}: {report}")
    assert report.ok, report


def test_real_memory_running_out_lowers_and_goes_on(folders):
    """A step that asks for more than the device has fails, and smaller ones follow."""

    class Greedy(Flaky):
        def hidden(self, tokens, positions, attend):
            if len(tokens) > 100:
                self.failures += 1
                torch.empty(1 << 42, dtype=torch.uint8, device=CUDA)
            return self._decoder.hidden(tokens, positions, attend)

    greedy_decoder = Greedy(load_decoder(folders["llama2"], "bfloat16", CUDA))
    engine = Engine(greedy_decoder, CONFIG)
    seen = observe(engine, batch([[1, 2, 3]] * 30, greedy(8), prefixes=[list(range(200))]))
    assert greedy_decoder.failures > 0 and len(seen) == 30


def test_values_are_read_to_pinned_memory_that_is_used_again():
    room = room_for("cuda")
    places = set()
    for n in range(1, 9):
        view = room(1 << 20)
        view[:] = bytes([n]) * len(view)
        host = torch.frombuffer(view[256:-256], dtype=torch.bfloat16)
        assert host.is_pinned()
        there = torch.zeros(8, len(host), dtype=torch.bfloat16, device="cuda")
        there[n - 1].copy_(host)
        places.add(host.data_ptr())
        del view, host
        assert set(there[n - 1].view(torch.uint8).cpu().numpy().tolist()) == {n}
    assert len(places) == 1


def test_a_backend_saves_from_and_loads_into_the_device(folders):
    model = load_model(str(folders["qwen3"]), dtype="bfloat16", device="cuda")
    tier = MemoryTier()

    async def ask(backend: LocalBackend) -> list[list[float]]:
        rows = await collect(backend, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
        scores = [list(map(float, row.tokens)) for row in rows]
        for work in (Choose(("yes", "no", "not stated")), LogLikelihood(["On floor 4."] * 3)):
            rows = await collect(backend, RequestBatch(work, list(QUESTIONS), (BOOK,)))
            scores += [[*row.label_probs, *row.logprobs] for row in rows]
        return scores

    async def both() -> tuple[list[list[float]], list[list[float]]]:
        room = room_for("cuda")
        first = LocalBackend(model, store_of(model, tier), CONFIG)
        built = await first.build(BOOK)
        assert built.stored and built.computed_tokens == built.tokens
        here = await ask(first)
        await first.close()
        second = LocalBackend(model, store_of(model, tier, room=room), CONFIG)
        again = await second.build(BOOK)
        assert again.loaded_tokens == again.tokens
        there = await ask(second)
        await second.close()
        return here, there

    here, there = asyncio.run(both())
    for a, b in zip(here, there, strict=True):
        assert a == pytest.approx(b, rel=0.05, abs=0.05)
