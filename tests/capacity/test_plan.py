from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from preread.capacity.machine import Machine, named
from preread.capacity.plan import PAYS, Plan, doubled, make_plan, memory_of
from preread.capacity.roofline import Load, Roofline
from preread.capacity.shape import KV_PRECISIONS
from preread.config import EngineSection
from preread.engine.kv import KVShape
from preread.engine.plan import plan_memory
from preread.errors import ConfigError, ContextTooLong
from preread.kernels.kv import PRECISIONS
from tests.capacity.made import LLAMA_8B, TINY

ENGINE = EngineSection()
H100 = named("h100")


def planned(load: Load, machine: Machine = H100, engine: EngineSection = ENGINE) -> Plan:
    return make_plan(LLAMA_8B, machine, "bfloat16", load, engine)


def test_what_fits_fits_and_one_more_does_not() -> None:
    plan = planned(Load(2000, 3, 50, 128))
    memory, each = plan.memory, plan.memory.sequence + plan.memory.logits
    taken = memory.reserve + memory.weights + memory.workspace + memory.contexts
    assert taken + plan.sequences * each <= memory.total < taken + (plan.sequences + 1) * each
    assert memory.weights == 2 * LLAMA_8B.parameters
    assert memory.contexts == 3 * 2048 * 131_072  # whole extents of 256 tokens
    assert memory.sequence == 192 * 131_072  # whole pages of 16


def test_memory_limits_where_more_sequences_would_pay() -> None:
    plan = planned(Load(2000, 1, 50, 512), replace(H100, memory=22 * 10**9))
    assert plan.limited_by == "memory" and 0 < plan.sequences < 100
    roof = Roofline(LLAMA_8B, "bfloat16", H100.rate("bfloat16"), H100.bandwidth, 8192)
    more = roof.rate(plan.load, 2 * plan.sequences).requests_per_s
    assert more >= PAYS * plan.rates[-1].requests_per_s


def test_compute_limits_short_answers_and_bandwidth_long_histories() -> None:
    assert planned(Load(2000, 1, 50, 16)).limited_by == "compute"
    slow = replace(H100, bandwidth=H100.bandwidth / 20)
    assert planned(Load(0, 0, 4000, 4000), replace(slow, memory=10**13)).limited_by == "bandwidth"


def test_an_answer_of_one_token_keeps_no_kv_and_is_limited_by_a_step() -> None:
    plan = planned(Load(2000, 1, 50, 1))
    assert plan.memory.sequence == 0
    assert plan.sequences == 32768 // 50
    assert plan.limited_by == "compute"
    assert "suffix_memory_mb" not in plan.settings


def test_nothing_fits() -> None:
    plan = planned(Load(), replace(H100, memory=10 * 10**9))
    assert (plan.sequences, plan.limited_by, plan.rates) == (0, "memory", ())
    value = plan.to_json()
    assert value["sequences"] == 0 and value["requests_per_s"] == 0 and value["settings"] == {}


def test_the_fewest_sequences_that_nearly_reach_the_full_rate() -> None:
    plan = planned(Load(2000, 1, 50, 16))
    rates = {r.sequences: r.requests_per_s for r in plan.rates}
    full = rates[plan.sequences]
    assert rates[plan.enough] >= 0.9 * full > rates[plan.enough // 2]


def test_an_engine_with_these_settings_holds_the_plan() -> None:
    plan = make_plan(TINY, H100, "float32", Load(1000, 2, 50, 100), ENGINE)
    engine = EngineSection(**plan.settings)
    shape = KVShape(TINY.layers, TINY.kv_heads, TINY.head_dim, torch.float32, torch.device("cpu"))
    pools = plan_memory(shape, engine, free_bytes=0)
    assert pools.prefix_tokens >= 2 * 1000
    assert pools.pages >= plan.enough * -(-150 // engine.page_tokens)
    assert engine.limited("cuda").max_sequences == plan.enough


def test_a_prompt_that_the_model_cannot_read_is_refused() -> None:
    with pytest.raises(ContextTooLong, match=r"4,000 \+ 50 \+ 128 .* limit of 4,096"):
        make_plan(TINY, H100, "float32", Load(4000), ENGINE)


def test_unknown_rates_are_refused_with_the_options_that_give_them() -> None:
    with pytest.raises(ConfigError, match="--flops and --bandwidth"):
        planned(Load(), Machine("box", 10**12, {}, 0.0, ""))


def test_larger_steps_need_a_larger_workspace() -> None:
    small, large = (
        memory_of(LLAMA_8B, 80 * 10**9, "bfloat16", Load(), EngineSection(batch_tokens=n))
        for n in (1024, 8192)
    )
    assert large.workspace == 8 * small.workspace > 0


@pytest.mark.parametrize(
    ("most", "numbers"), [(0, []), (1, [1]), (4, [1, 2, 4]), (5, [1, 2, 4, 5])]
)
def test_doubling_ends_with_the_most(most: int, numbers: list[int]) -> None:
    assert list(doubled(most)) == numbers


def test_smaller_weights_take_less_room_and_time() -> None:
    load = Load(2000, 1, 50, 16)
    full, small, half, fast = (
        make_plan(LLAMA_8B, H100, "bfloat16", load, EngineSection(), precision)
        for precision in ("full", "int8", "w8a8", "fp8")
    )
    embeddings = 2 * LLAMA_8B.head
    assert full.memory.weights == 2 * LLAMA_8B.parameters
    assert small.memory.weights == half.memory.weights == fast.memory.weights
    speeds = [plan.rates[-1].requests_per_s for plan in (small, half, fast)]
    assert speeds == sorted(set(speeds))
    assert 0 < fast.memory.weights - (embeddings + LLAMA_8B.matrices + LLAMA_8B.head) < 10**6
    assert fast.sequences > full.sequences
    one, two = full.rates[-1].requests_per_s, fast.rates[-1].requests_per_s
    assert 1.5 * one < two < 2 * one, "attention is no faster"
    assert fast.to_json()["weights_precision"] == "fp8"


def test_smaller_kv_lets_more_sequences_fit() -> None:
    load = Load(8000, 1, 50, 200)
    full, eight = (
        make_plan(LLAMA_8B, H100, "bfloat16", load, EngineSection(), "full", precision)
        for precision in ("full", "int8")
    )
    kv = KVShape(32, 8, 128, torch.bfloat16, torch.device("cpu"), "int8")
    assert eight.to_json()["kv_bytes_per_token"] == kv.token_bytes == 2 * 32 * 8 * (128 + 4)
    assert eight.to_json()["kv_precision"] == "int8"
    assert eight.memory.sequence < 0.52 * full.memory.sequence
    assert eight.sequences > 1.9 * full.sequences
    one, two = (p.rates[5].requests_per_s for p in (full, eight))
    assert two > one, "a step reads fewer bytes"
    assert KV_PRECISIONS == PRECISIONS
    with pytest.raises(ConfigError, match="int4"):
        make_plan(LLAMA_8B, H100, "bfloat16", load, EngineSection(), "full", "int4")


def test_a_tied_head_of_smaller_weights_is_a_copy() -> None:
    tied = replace(LLAMA_8B, parameters=LLAMA_8B.parameters - LLAMA_8B.head)
    assert tied.weights_size("bfloat16", "fp8") == LLAMA_8B.weights_size("bfloat16", "fp8")
    assert tied.weights_size("bfloat16", "full") == 2 * tied.parameters
