"""Shards of a model: together they are the model."""

from __future__ import annotations

import pytest
import torch

from preread.errors import ConfigError
from preread.models.config import read_config
from preread.models.decoder import PackedDecoder
from preread.models.layers import layout
from preread.models.shard import Shard, ShardDecoder
from preread.models.weights import Checkpoint, random_tensors
from preread.testing.models import write_tiny_model

CPU = torch.device("cpu")
SHAPES = [(2, 2, {}), (3, 4, {}), (4, 4, {"tie_word_embeddings": True})]


class Alone:
    """The parts of one sum, in the order of the ranks: a group without processes."""

    def __init__(self, sums: list[list[torch.Tensor]]) -> None:
        self.sums, self.at = sums, 0

    def share(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.sums) <= self.at:
            self.sums.append([])
        self.sums[self.at].append(x.clone())
        self.at += 1
        return x


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("size", "kv_heads", "more"), SHAPES)
def test_a_checkpoint_is_cut_as_its_tensors_are(tmp_path, family, size, kv_heads, more):
    folder = write_tiny_model(
        tmp_path / "m", family, heads=2 * kv_heads, kv_heads=kv_heads, attention_bias=True, **more
    )
    config = read_config(folder)
    whole = Checkpoint(folder, config).load(torch.float32, CPU)
    slots = layout(config)
    for rank in range(size):
        shard = Shard(rank, size)
        part = Checkpoint(folder, config).load(torch.float32, CPU, shard)
        assert part.keys() == shard.layout(config).keys()
        assert ("head" in part) == (rank == 0 and not config.tied)
        for key, tensor in part.items():
            assert tensor.shape == shard.layout(config)[key].shape
            assert torch.equal(tensor, shard.of(config, key, slots[key], whole[key])), key


@pytest.mark.parametrize(("size", "kv_heads", "more"), SHAPES)
def test_products_of_the_shards_add_up(tmp_path, size, kv_heads, more):
    """The first sum of the first layer is what the whole model's attention gives, biases once."""
    folder = write_tiny_model(
        tmp_path / "m", "llama", heads=2 * kv_heads, kv_heads=kv_heads, attention_bias=True, **more
    )
    config = read_config(folder)
    tokens, positions = torch.arange(5), torch.arange(5)

    def attend(layer, q, k, v):
        return q + v.repeat_interleave(q.shape[1] // v.shape[1], 1)

    sums: list[list[torch.Tensor]] = []
    for rank in range(size):
        shard = Shard(rank, size)
        tensors = random_tensors(config, 3, torch.float32, CPU, shard)
        for key in tensors:
            if key.endswith("bias"):
                full = torch.randn(layout(config)[key].shape, generator=torch.manual_seed(1))
                tensors[key] = shard.of(config, key, layout(config)[key], full)
        plain = ShardDecoder(shard.config(config), tensors, _linear, Alone(sums))
        plain.hidden(tokens, positions, attend)
    assert len(sums) == 2 * config.layers and {len(parts) for parts in sums} == {size}
    tensors = random_tensors(config, 3, torch.float32, CPU)
    for key in tensors:
        if key.endswith("bias"):
            shape = layout(config)[key].shape
            tensors[key] = torch.randn(shape, generator=torch.manual_seed(1))
    seen: list[torch.Tensor] = []

    def spied(product):
        def call(x):
            seen.append(product(x))
            return seen[-1]

        return call

    PackedDecoder(config, tensors, _linear, summed=spied).hidden(tokens, positions, attend)
    torch.testing.assert_close(sum(sums[0]), seen[0], atol=1e-6, rtol=1e-5)


def test_more_ranks_than_kv_heads_are_refused(tmp_path):
    config = read_config(write_tiny_model(tmp_path / "m"))
    with pytest.raises(ConfigError, match=r"gpus = 3.*2 KV heads.*Set model\.gpus to 2"):
        Shard(0, 3).config(config)


def _linear(weight, bias=None):
    return lambda x: torch.nn.functional.linear(x, weight, bias)
