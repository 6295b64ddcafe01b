"""The formula, by hand and against the limits that were worked out beside the measured anchors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from preread.capacity.roofline import Load, Roofline, Spent
from tests.capacity.made import LLAMA_8B, QWEN_05B, TINY

ANCHOR = 794e12  # FLOP/s of a large product on the H100 of the anchors


@pytest.mark.parametrize(("shape", "limit"), [(LLAMA_8B, 1055), (QWEN_05B, 17_700)])
def test_one_token_out_reaches_the_limit_of_the_anchors(shape, limit) -> None:
    roof = Roofline(shape, "bfloat16", ANCHOR, 3e12, batch_tokens=16_384)
    rate = roof.rate(Load(2000, 1, 50, 1), sequences=320)
    assert rate.requests_per_s == pytest.approx(limit, rel=0.01)
    assert rate.bound == "compute"


def test_decoding_reaches_the_limit_of_the_anchors() -> None:
    roof = Roofline(LLAMA_8B, "bfloat16", ANCHOR, 3e12, batch_tokens=8192)
    rate = roof.rate(Load(8192, 1, 32, 64), sequences=256)
    assert rate.tokens_per_s == pytest.approx(25_800, rel=0.05)


def test_a_step_by_hand() -> None:
    """2 layers, 4 query heads and 1 KV head of 8; 1 FLOP/s and 1 byte/s, so seconds are counts."""
    load = Load(context=100, contexts=1, question=10, output=2)
    weights = 2 * (TINY.active * 3 + TINY.head * 3)
    context = 4 * 2 * 4 * 8 * 3 * 100
    own = 4 * 2 * 4 * 8 * 3 * 11
    products = Roofline(TINY, "float32", 1.0, 1e9, 64).step(load, tokens=3, rows=3, own=11)
    assert products == Spent(products=weights + context + own)
    kv = 2 * 2 * 1 * 8 * 4
    read = 4 * (TINY.matrices + TINY.head) + 100 * kv + (3 * 11 + 3) * kv
    assert Roofline(TINY, "float32", 1e9, 1.0, 64).step(load, 3, 3, 11) == Spent(bytes=read)


def test_each_operation_waits_for_what_is_slower_for_it() -> None:
    """Few tokens: the weights are read; all of them against a long context: products."""
    roof = Roofline(TINY, "float32", flops=10.0, bandwidth=1.0, batch_tokens=64)
    spent = roof.step(Load(context=10_000), tokens=1, rows=1, own=0)
    assert spent.bytes > 4 * (TINY.matrices + TINY.head) and spent.products == 0
    spent = roof.step(Load(context=10_000), tokens=50, rows=50, own=0)
    assert spent.products > 0


def test_a_context_that_nobody_shares_is_read_for_each() -> None:
    roof = Roofline(TINY, "float32", 1e12, 1.0, 64)
    one = roof.step(Load(context=100, contexts=1), 8, 8, 0)
    eight = roof.step(Load(context=100, contexts=8), 8, 8, 0)
    more = roof.step(Load(context=100, contexts=99), 8, 8, 0)
    assert eight.bytes - one.bytes == 7 * 100 * TINY.kv_token_bytes("float32")
    assert more == eight


def test_questions_that_exceed_a_step_take_several() -> None:
    load = Load(context=0, question=10, output=1)
    roof = Roofline(TINY, "float32", 1e15, 1.0, batch_tokens=100)
    assert roof.rate(load, 40).first.bytes > 3.9 * roof.rate(load, 10).first.bytes
    wide = replace(roof, batch_tokens=400)
    assert wide.rate(load, 40).first.bytes < 2 * roof.rate(load, 10).first.bytes


def test_rates_add_up() -> None:
    roof = Roofline(LLAMA_8B, "bfloat16", ANCHOR, 3e12, 8192)
    rate = roof.rate(Load(output=16), 64)
    assert rate.tokens_per_s == 16 * rate.requests_per_s
    assert rate.requests_per_s == 64 / rate.spent.seconds
    assert 0 < rate.first.seconds < rate.spent.seconds


def test_reading_a_context_takes_its_products() -> None:
    roof = Roofline(LLAMA_8B, "bfloat16", ANCHOR, 3e12, 8192)
    tokens = 4000
    least = 2 * LLAMA_8B.active * tokens / ANCHOR
    assert least < roof.reading(tokens).seconds < 1.2 * least
