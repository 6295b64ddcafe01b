from __future__ import annotations

import torch

from preread.config import EngineSection
from preread.engine.kv import KVShape
from preread.engine.plan import MIB, free_memory, plan_memory

CPU = torch.device("cpu")
SHAPE = KVShape(28, 8, 128, torch.bfloat16, CPU)


def test_shares_of_the_free_memory_from_real_gqa_sizes():
    plan = plan_memory(SHAPE, EngineSection(), free_bytes=8 << 30)
    assert plan.token_bytes == 28 * 2 * 8 * 128 * 2
    assert plan.prefix_tokens * plan.token_bytes <= 2 << 30
    assert plan.prefix_tokens * plan.token_bytes > 0.95 * (2 << 30)
    assert plan.suffix_tokens * plan.token_bytes <= 1 << 30


def test_sizes_that_are_asked_for():
    plan = plan_memory(SHAPE, EngineSection(prefix_memory_mb=512, suffix_memory_mb=64), 1 << 20)
    assert plan.extents == 512 * MIB // plan.token_bytes // 256
    assert plan.pages == 64 * MIB // plan.token_bytes // 16
    assert "512 MiB" not in plan.describe() or plan.extents * 256 * plan.token_bytes == 512 * MIB


def test_a_small_model_does_not_take_what_it_cannot_use():
    tiny = KVShape(2, 1, 16, torch.float32, CPU)
    plan = plan_memory(tiny, EngineSection(), free_bytes=64 << 30)
    assert plan.prefix_tokens <= 1 << 20


def test_there_is_always_something():
    plan = plan_memory(SHAPE, EngineSection(), free_bytes=0)
    assert plan.extents == plan.pages == 1


def test_the_free_memory_of_this_machine_is_plausible():
    assert 1 << 20 < free_memory(CPU) < 1 << 44
