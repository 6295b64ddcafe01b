"""Several GPUs that behave as one: answers, KV, graphs. Needs two."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from preread.engine.engine import Engine
from preread.engine.group.open import Wanted, open_group
from preread.models.load import load_model
from preread.testing.models import write_tiny_model
from preread.tokens.batch import LikelihoodSpec
from tests.engine.helpers import batch, drain, greedy
from tests.gpu.test_tiled_gpu import CONFIG

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = str(
        write_tiny_model(
            tmp_path_factory.mktemp("pair") / "m", "qwen3", heads=16, kv_heads=4, head_dim=64,
            hidden=256, layers=3,
        )
    )  # fmt: skip
    loaded, parts = open_group(Wanted(folder, 2, dtype="float32", device="cuda"))
    yield load_model(folder, dtype="float32", device="cuda"), loaded, parts
    parts.close()


@pytest.mark.parametrize("changes", [{}, {"graphs": False}, {"kernels": "stock"}], ids=str)
def test_two_gpus_answer_as_one(pair, changes):
    one, two, parts = pair
    section = replace(CONFIG, **changes)
    prefixes = [list(range(2, 90)), list(range(30, 70))]
    own = [np.random.default_rng(i).integers(1, 250, 3 + i % 9).tolist() for i in range(40)]
    made = []
    for decoder, among in ((one.decoder, None), (two.decoder, parts)):
        engine = Engine(decoder, section, parts=among)
        jobs = [
            engine.submit(batch(own, greedy(24), prefixes=prefixes, prefix_of=[0, 1] * 20)),
            engine.submit(batch(own[:9], LikelihoodSpec(np.full(9, 2, np.int32)))),
        ]
        made.append(drain(engine, *jobs))
        # Again, with all graphs made.
        made[-1] += drain(engine, engine.submit(batch(own, greedy(24), prefixes=prefixes[:1])))
    for alone, together in zip(*made, strict=True):
        same = sum(alone.tokens[row] == together.tokens[row] for row in alone.tokens)
        assert same >= 0.9 * len(alone.tokens), same  # sums in another order
        assert alone.finish == together.finish and alone.usage == together.usage
        for row, scores in alone.scores.items():
            np.testing.assert_allclose(scores, together.scores[row], atol=2e-3)


def test_what_is_written_is_read(pair):
    _, two, parts = pair
    engine = Engine(two.decoder, CONFIG, parts=parts)
    c = two.config
    kv = torch.randn(c.layers, 2, c.kv_heads, 50, c.head_dim)
    engine.arena.write([(5, 30), (100, 20)], kv)
    assert torch.equal(engine.arena.read([(5, 30), (100, 20)]), kv)
    assert torch.equal(engine.arena.read([(5, 30)], (1, 2, 1, 3)), kv[1:2, :, 1:3, :30])
