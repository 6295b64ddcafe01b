"""The decoder on CUDA: against itself on the CPU, and loading straight onto the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from preread.models.load import load_model
from preread.testing.models import forward, greedy, load_decoder, write_tiny_model

pytestmark = pytest.mark.gpu
PROMPTS = [[7, 300, 12, 99], [3], list(range(1, 120))]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_fp32_agrees_with_the_cpu(family: str, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, family)  # type: ignore[arg-type]
    ours, theirs = load_decoder(folder, device="cuda"), load_decoder(folder)
    for a, b in zip(forward(ours, PROMPTS), forward(theirs, PROMPTS), strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-4, rtol=0)
    assert greedy(ours, PROMPTS, 32) == greedy(theirs, PROMPTS, 32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_half_precision_is_as_near_to_fp32_as_on_the_cpu(
    family: str, dtype: str, tmp_path: Path
) -> None:
    folder = write_tiny_model(tmp_path, family, dtype=dtype)  # type: ignore[arg-type]
    truth = torch.cat(forward(load_decoder(folder), PROMPTS))
    ours = torch.cat(forward(load_decoder(folder, dtype, "cuda"), PROMPTS)).cpu()
    theirs = torch.cat(forward(load_decoder(folder, dtype), PROMPTS))
    assert (ours - truth).norm() <= 1.25 * (theirs - truth).norm()


def test_a_model_loads_onto_the_device_in_its_published_dtype(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, dtype="float16")
    loaded = load_model(str(folder))
    assert loaded.decoder.device.type == "cuda"
    assert loaded.decoder.dtype is torch.float16
    random = load_model(str(folder), weights="random", device="cuda")
    [logits] = forward(random.decoder, [[1, 2, 3]])
    assert logits.isfinite().all()
