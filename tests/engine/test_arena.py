"""The arena: contiguity, sharing inside an extent, no slot twice, nothing lost."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from preread.engine.arena import Arena, clip, joined
from preread.engine.kv import KVShape

SHAPE = KVShape(1, 1, 8, torch.float32, torch.device("cpu"))


def arena(extents: int = 8) -> Arena:
    return Arena(SHAPE, extents, 16)


def test_shape_and_token_bytes():
    shape = KVShape(3, 2, 16, torch.bfloat16, torch.device("cpu"))
    assert shape.token_bytes == 3 * 2 * 2 * 16 * 2
    eight = replace(shape, precision="int8")
    assert eight.token_bytes == 3 * 2 * 2 * (16 + 4)  # and the scale of each head
    assert Arena(shape, 4, 8).kv.values.shape == (3, 2, 2, 32, 16)


def test_a_prefix_is_one_run_and_its_continuation_follows_it():
    a = arena()
    first = a.alloc(20)
    assert first == [(0, 20)]
    second = a.alloc(30, after=20)  # 12 slots are left in the extent, then the next one
    assert second == [(20, 30)]
    assert joined(first + second) == [(0, 50)]
    a.check([first, second])


def test_only_one_continuation_gets_the_rest_of_an_extent():
    a = arena()
    first = a.alloc(20)
    one, other = a.alloc(5, after=20), a.alloc(5, after=20)
    assert one == [(20, 5)]
    assert other == [(32, 5)]
    a.check([first, one, other])
    a.free(one)
    assert a.alloc(3, after=20) == [(20, 3)]  # given back, it may be taken again


def test_scattered_extents_still_serve():
    a = arena(6)
    parts = [a.alloc(16) for _ in range(6)]
    for i in (0, 2, 3, 5):
        a.free(parts[i])
    assert a.alloc(32) == [(32, 32)]  # the tightest row
    assert a.alloc(20) == [(0, 16), (80, 4)]
    assert a.alloc(17) is None


def test_a_cut_inside_an_extent_shares_it():
    a = arena()
    runs = a.alloc(40)
    head, tail = a.cut(runs, 20)
    assert (head, tail) == ([(0, 20)], [(20, 20)])
    a.check([head, tail])
    a.free(tail)
    a.check([head])
    assert a.free_tokens == 6 * 16
    a.free(head)
    a.check([])
    assert a.free_tokens == a.capacity


def test_clip():
    runs = [(0, 5), (20, 5)]
    assert clip(runs, 3, 8) == [(3, 2), (20, 3)]
    assert clip(runs, 5, 5) == []


@pytest.mark.parametrize("seed", range(5))
def test_any_history_leaves_it_whole(seed):
    make = np.random.default_rng(seed)
    a, held = arena(20), []
    for _ in range(300):
        move = make.random()
        if move < 0.5:
            after = sum(held[make.integers(len(held))][-1]) if held and make.random() < 0.7 else 0
            if (runs := a.alloc(int(make.integers(1, 60)), after)) is not None:
                held.append(runs)
        elif move < 0.7 and held:
            runs = held.pop(int(make.integers(len(held))))
            total = sum(n for _, n in runs)
            if total > 1:
                held.extend(a.cut(runs, int(make.integers(1, total))))
            else:
                held.append(runs)
        elif held:
            a.free(held.pop(int(make.integers(len(held)))))
        a.check(held)
    for runs in held:
        a.free(runs)
    assert a.free_tokens == a.capacity


def test_check_finds_a_slot_held_twice():
    a = arena()
    runs = a.alloc(10)
    with pytest.raises(AssertionError, match="two segments"):
        a.check([runs, runs])


@pytest.mark.parametrize("way", ["pieces", "fill"])
@pytest.mark.parametrize("seed", range(20))
def test_slots_are_what_is_written(seed, way):
    """Bytes in pieces, and copied at once, against the slow twin `write`."""
    draw = np.random.default_rng(seed)
    shape = KVShape(3, 4, 8, torch.bfloat16, torch.device("cpu"))
    one, two = Arena(shape, 8, 16), Arena(shape, 8, 16)
    parts = [one.alloc(int(n)) for n in draw.integers(1, 30, 4)]
    runs = joined(parts[0] + parts[2] + parts[1])
    tokens = sum(n for _, n in runs)
    i, j = sorted(draw.choice(4, 2, replace=False).tolist())
    g, h = sorted(draw.choice(5, 2, replace=False).tolist())
    kv = torch.randn(j - i, 2, h - g, tokens, 8).to(torch.bfloat16)
    for arena_ in (one, two):
        arena_.kv.values.fill_(7)
    one.write(runs, kv, (i, j, g, h))
    data, at = kv.view(torch.uint8).numpy().tobytes(), 0
    slots = two.slots(runs, (i, j, g, h))
    if way == "fill":
        slots.fill(memoryview(data))
    else:
        for piece in slots.pieces():
            piece[:] = data[at : at + len(piece)]
            at += len(piece)
        assert at == len(data)
    assert torch.equal(one.kv.values.view(torch.int16), two.kv.values.view(torch.int16))


def test_eight_bits_have_no_slots_of_bytes():
    a = Arena(replace(SHAPE, precision="int8"), 4, 16)
    assert a.slots(a.alloc(20), (0, 1, 0, 1)) is None
