"""Sampling: the vectorised draw equals its twin; numbers depend on seed and step alone."""

import numpy as np
import torch

from preread.kernels.sample import draw, draw_reference, uniform


def test_draw_equals_the_twin():
    make = np.random.default_rng(0)
    rows, vocab = 400, 23
    logits = make.normal(size=(rows, vocab)).astype(np.float32) * 3
    temperature = make.choice([0.0, 0.3, 1.0, 2.5], rows)
    top_k = make.choice([0, 1, 3, 50], rows)
    top_p = make.choice([1.0, 0.0, 0.2, 0.9], rows)
    numbers = make.random(rows)
    columns = (torch.from_numpy(x) for x in (temperature, top_k, top_p, numbers))
    got = draw(torch.from_numpy(logits), *columns).tolist()
    want = [
        draw_reference(logits[i].astype(np.float64), temperature[i], top_k[i], top_p[i], numbers[i])
        for i in range(rows)
    ]
    assert got == want


def test_frequencies_follow_the_softmax():
    n = 20_000
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0]).repeat(n, 1)
    numbers = torch.from_numpy(uniform(np.full(n, 7, np.uint64), np.arange(n)))
    flat = torch.ones(n)
    tokens = draw(logits, flat, torch.zeros(n, dtype=torch.int64), flat, numbers)
    share = torch.bincount(tokens, minlength=4) / n
    torch.testing.assert_close(share, logits[0].softmax(-1), atol=0.015, rtol=0)


def test_numbers_depend_on_seed_and_step_alone():
    seeds, steps = np.array([3, 3, 9, 0], np.uint64), np.array([0, 1, 0, 0])
    both = uniform(seeds, steps)
    assert len(set(both.tolist())) == 4
    assert [uniform(seeds[i : i + 1], steps[i : i + 1])[0] for i in range(4)] == both.tolist()
    many = uniform(np.arange(10_000, dtype=np.uint64), np.zeros(10_000, np.int64))
    assert 0 <= many.min() and many.max() < 1 and abs(many.mean() - 0.5) < 0.02
