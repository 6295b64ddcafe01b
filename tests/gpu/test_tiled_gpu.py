"""The Triton kernels against the stock calls, on every step of a mixed workload; graphs against
single launches; running ahead against waiting."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from preread.config import EngineSection
from preread.engine import fast
from preread.engine.attend import StepAttention
from preread.engine.engine import Engine
from preread.engine.parity import parity, wider
from preread.kernels.fp8 import LARGEST, fp8, fp8_linear_slow, fp8_works, quantise_slow
from preread.kernels.kv import FORMATS, PRECISIONS, rounded
from preread.kernels.mlp import swiglu_slow
from preread.kernels.norm import rms_norm_slow
from preread.kernels.rope import rotate
from preread.kernels.rows import row_stats, row_stats_slow
from preread.models.load import load_model
from preread.testing.models import load_decoder, write_tiny_model
from preread.tokens.batch import GenerateSpec
from preread.types import Sampling
from tests.engine.helpers import batch, drain, greedy
from tests.engine.test_tiles import mixed

pytest.importorskip("triton")

from preread.engine.tiled import TiledAttention
from preread.kernels.cuda import attention as kernels
from preread.kernels.cuda.elementwise import (
    add_rms_norm,
    quantise_rows,
    rotate_inplace,
    swiglu,
)
from preread.kernels.cuda.probe import attention_works

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
CONFIG = EngineSection(
    prefix_memory_mb=64,
    suffix_memory_mb=64,
    extent_tokens=16,
    page_tokens=16,
    max_sequences=64,
    batch_tokens=96,
    prefill_chunk=48,
    truth_check=True,
)
HEADS = [(14, 2, 64), (8, 8, 128), (4, 2, 16), (12, 2, 80), (16, 2, 128), (4, 1, 256)]


def decoder_of(tmp_path, heads: int, kv_heads: int, head_dim: int, dtype: str = "bfloat16"):
    folder = write_tiny_model(
        tmp_path / "m", "qwen3", heads=heads, kv_heads=kv_heads, head_dim=head_dim
    )
    return load_decoder(folder, dtype, CUDA)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
def test_tiles_parts_and_tails_agree_with_the_stock_calls(
    tmp_path, monkeypatch, heads, kv_heads, head_dim, dtype, precision
):
    if precision == "fp8" and not fp8_works(CUDA):
        pytest.skip("no eight-bit floats")
    decoder = decoder_of(tmp_path, heads, kv_heads, head_dim, dtype)
    engine = Engine(decoder, replace(CONFIG, graphs=False), kv_precision=precision)
    steps, kinds = [], set()
    lists_of, attend = fast.FastSteps.lists, TiledAttention.__call__

    def lists(self, step):
        steps.append(step)
        made = lists_of(self, step)
        assert made is not None, "every step is covered"
        kinds.add((made.tiles is not None, made.tail is not None))
        return made

    def both(self, layer, q, k, v):
        got = attend(self, layer, q, k, v)
        wrote = [kept.clone() for kept in held(engine)]
        want = StepAttention(steps[-1], engine.arena, engine.pages)(layer, q, k, v)
        torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)
        assert all(map(torch.equal, wrote, held(engine))), "both write the same bits"
        return got

    monkeypatch.setattr(fast.FastSteps, "lists", lists)
    monkeypatch.setattr(TiledAttention, "__call__", both)
    mixed(engine)
    assert "engine.steps_failed" not in engine.metrics.snapshot()
    assert kinds == {(True, True), (True, False), (False, True)}


def held(engine: Engine) -> list[torch.Tensor]:
    """All KV and scales, bit by bit."""
    pools = engine.arena.kv, engine.pages.kv
    return [x.view(torch.uint8) for kv in pools for x in kv.tensors(0) + kv.tensors(1)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
def test_the_programs_are_taken_where_they_run(heads, kv_heads, head_dim, precision):
    works = attention_works(CUDA, torch.bfloat16, head_dim, heads // kv_heads, precision)
    assert works or (precision == "fp8" and not fp8_works(CUDA))


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_kv_is_rounded_as_defined(dtype, precision):
    if precision == "fp8" and not fp8_works(CUDA):
        pytest.skip("no eight-bit floats")
    make = torch.Generator(device=CUDA).manual_seed(0)
    for groups, size in ((8, 128), (2, 64), (3, 80), (1, 256)):
        x = torch.randn(300, groups, size, generator=make, device=CUDA)
        x *= torch.exp2(4 * torch.randn(300, groups, 1, generator=make, device=CUDA))
        x = x.clamp(-6e4, 6e4).to(dtype)
        x[0] = 0
        x[1, 0, 3], x[2, 0, 5] = torch.nan, torch.inf
        got, want = kernels.rounded(x, precision), rounded(x.cpu(), precision)
        assert torch.equal(got.cpu().nan_to_num(7.0), want.nan_to_num(7.0))


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("road", ["auto", "stock"])
def test_law_1_holds_for_kv_in_eight_bits(tmp_path, precision, road):
    folder = write_tiny_model(tmp_path / "m", "qwen3", heads=8, kv_heads=2, head_dim=64)
    model = load_model(str(folder), dtype="bfloat16", device="cuda", kv_precision=precision)
    engine = Engine(model.decoder, replace(CONFIG, kernels=road), kv_precision=precision)
    report = parity(engine, wider(model), prompts=12)
    assert report.ok, report


def test_a_broken_row_is_its_own_affair(tmp_path):
    """Rows of one tile: a value that is no number times a weight of 0 is none, either."""
    decoder = decoder_of(tmp_path, 8, 2, 64)
    decoder._embed[300] = torch.nan
    engine = Engine(decoder, CONFIG)
    (got,) = drain(engine, engine.submit(batch([[1, 2, 3], [4, 300, 5], [6, 7, 8]], greedy(4))))
    assert set(got.errors) == {1} and all(len(got.tokens[row]) == 4 for row in (0, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_small_kernels_agree_with_their_slow_twins(dtype):
    make = torch.Generator(device=CUDA).manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=make, device=CUDA).to(dtype)

    close = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for size in (96, 896, 4096, 5000):
        x, delta, weight = rand(33, size), rand(33, size), rand(size)
        y = x.clone()
        got = add_rms_norm(y, delta, weight, 1e-5)
        torch.testing.assert_close(y, x + delta, atol=0, rtol=0)
        torch.testing.assert_close(got, rms_norm_slow(y, weight, 1e-5), atol=close, rtol=close)
        wide = rand(33, 2 * size)
        torch.testing.assert_close(swiglu(wide), swiglu_slow(wide), atol=close, rtol=close)
    for heads, groups, size in ((14, 2, 64), (32, 8, 128), (3, 1, 80)):
        packed, (cos, sin) = rand(21, heads + 2 * groups, size), rand(2, 21, 1, size // 2)
        weight, count = rand(heads + groups, size), heads + groups
        for norm in (None, weight):
            got, qk = packed.clone(), packed[:, :count]
            rotate_inplace(got, count, norm, 1e-6, cos, sin)
            if norm is not None:
                qk = F.rms_norm(qk, (size,), None, 1e-6) * norm
            torch.testing.assert_close(got[:, :count], rotate(qk, cos, sin), atol=close, rtol=close)
            assert torch.equal(got[:, count:], packed[:, count:])


@pytest.mark.skipif(
    not torch.cuda.is_available() or not fp8_works(CUDA), reason="no eight-bit products"
)
@pytest.mark.parametrize(("rows", "size"), [(1, 96), (33, 4096), (300, 14336)])
def test_products_in_eight_bits_are_the_definition(rows, size):
    make = torch.Generator(device=CUDA).manual_seed(0)
    x, weight = (torch.randn(n, size, generator=make, device=CUDA).bfloat16() for n in (rows, 160))
    x[0] = 0
    for got, want in zip(quantise_rows(x, LARGEST), quantise_slow(x), strict=True):
        torch.testing.assert_close(got.float(), want.float(), rtol=0.13, atol=0.002)
    want = fp8_linear_slow(x, *quantise_slow(weight))
    torch.testing.assert_close(fp8(weight)(x), want, atol=0.02 * size**0.5, rtol=2e-2)
    x[0, 3] = torch.nan
    assert not fp8(weight)(x)[0].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_row_statistics(dtype):
    logits = torch.randn(70, 151_936, device=CUDA).to(dtype)
    logits[3, 77:] = -torch.inf
    logits[4] = -torch.inf
    logits[5, 1234], logits[6, 99] = torch.nan, torch.inf
    got, want = row_stats(logits), row_stats_slow(logits)
    fine = torch.ones(70, dtype=torch.bool, device=CUDA)
    fine[[4, 5, 6]] = False
    assert torch.equal(got.best[fine], want.best[fine]) and torch.equal(
        got.top[fine], want.top[fine]
    )
    torch.testing.assert_close(got.lse[fine], want.lse[fine], atol=1e-4, rtol=1e-5)
    assert not got.lse[[5, 6]].isfinite().any() and not got.top[4].isfinite()


@pytest.mark.parametrize("precision", ["full", "int8"])
@pytest.mark.parametrize("changes", [{"graphs": False}, {"kernels": "stock"}], ids=str)
def test_graphs_and_kernels_change_no_answer(tmp_path, changes, precision):
    """Rounding may turn a near tie in some long answer, and a throw of the dice more often: among
    the 50 likely tokens of random weights many are nearly as likely. (Two ways of computing on a
    CPU write 43 and 30 of the 45 alike in float16, 36 and 4 in bfloat16.)"""
    decoder = decoder_of(tmp_path, 8, 2, 64, "float16")
    own = [
        [int(t) for t in np.random.default_rng(i).integers(1, 250, 3 + i % 9)] for i in range(45)
    ]
    hot = GenerateSpec(12, Sampling(0.8, 0.9, 50), logprobs=True)
    made = []
    for section in (CONFIG, replace(CONFIG, **changes)):
        engine = Engine(decoder, section, ahead=section is CONFIG, kv_precision=precision)
        jobs = [engine.submit(batch(own, greedy(12), prefixes=[list(range(2, 90))]))]
        jobs.append(engine.submit(batch(own, hot, prefixes=[list(range(2, 90))], seeds=range(45))))
        made.append(drain(engine, *jobs))
    for one, two, least in zip(*made, (36, 20), strict=True):
        same = sum(one.tokens[row] == two.tokens[row] for row in range(45))
        assert same >= least, same
        assert one.finish == two.finish and one.usage == two.usage
    sampled = [job[1] for job in made]
    for row in range(45):
        alike = [a == b for a, b in zip(*(job.tokens[row] for job in sampled), strict=True)]
        upto = alike.index(False) if False in alike else len(alike)
        one, two = (job.logprobs[row][:upto] for job in sampled)
        np.testing.assert_allclose(one, two, atol=0.05)


def compiled() -> Counter[str]:
    """Programs by name: one for each way in which a kernel's arguments divide."""
    things = (thing for thing in gc.get_objects() if type(thing).__name__ == "CompiledKernel")
    return Counter(thing.name for thing in things)


def test_steps_of_any_sizes_need_no_new_programs(tmp_path):
    """A program takes seconds to compile, in the middle of somebody's request."""
    decoder = decoder_of(tmp_path, 6, 2, 48)  # of no other test
    before = compiled()
    engine = Engine(decoder, replace(CONFIG, graphs=False))
    for seed in range(12):
        draw = np.random.default_rng(seed)
        prefixes = [draw.integers(1, 250, int(n)).tolist() for n in draw.integers(5, 90, 3)]
        own = [draw.integers(1, 250, int(n)).tolist() for n in draw.integers(1, 40, 1 + seed)]
        of = draw.integers(-1, 3, len(own)).tolist()
        drain(engine, engine.submit(batch(own, greedy(5), prefixes=prefixes, prefix_of=of)))
    made = compiled() - before
    assert made["tiles_program"] == made["tail_program"] == 1
    assert 1 <= made["parts_program"] <= 3, "one for each size of block"
    assert made["write_program"] <= 2


def test_a_decoder_that_cannot_be_captured_runs_without_graphs(tmp_path):
    decoder = decoder_of(tmp_path, 4, 2, 64)

    class Looks:
        """It reads from the device in the middle of a step."""

        def __getattr__(self, name: str):
            return getattr(decoder, name)

        def hidden(self, tokens, positions, attend):
            assert int(tokens.max()) < 320
            return decoder.hidden(tokens, positions, attend)

    engine = Engine(Looks(), CONFIG)
    (got,) = drain(engine, engine.submit(batch([[1, 2], [3, 4, 5]], greedy(9))))
    plain = Engine(decoder, CONFIG)
    (want,) = drain(plain, plain.submit(batch([[1, 2], [3, 4, 5]], greedy(9))))
    assert got.tokens == want.tokens
