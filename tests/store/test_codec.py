from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from preread.errors import EngineError
from preread.store.codec import RawCodec

SHAPE = (2, 2, 3, 5, 4)
BITS = {"float32": torch.int32, "float16": torch.int16, "bfloat16": torch.int16}


def every_pattern(dtype: str) -> torch.Tensor:
    """All sorts of bits: NaNs with payloads, infinities, -0, subnormals."""
    generator = torch.Generator().manual_seed(1)
    info = torch.iinfo(BITS[dtype])
    bits = torch.randint(info.min, info.max, SHAPE, generator=generator, dtype=BITS[dtype])
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    bits[0, 0, 0, 0] = special.to(getattr(torch, dtype)).view(BITS[dtype])
    return bits.view(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", BITS)
def test_bits_come_back_exactly(dtype: str) -> None:
    codec, tensor = RawCodec(), every_pattern(dtype)
    payload = codec.encode(tensor, SHAPE, dtype)
    assert payload.nbytes == codec.nbytes(SHAPE, dtype)
    again = codec.decode(memoryview(bytearray(payload)), SHAPE, dtype)
    assert again.dtype == tensor.dtype and again.shape == tensor.shape
    assert torch.equal(again.view(BITS[dtype]), tensor.view(BITS[dtype]))


def test_layout_is_c_order_little_endian() -> None:
    tensor = torch.arange(8, dtype=torch.float32).reshape(1, 2, 1, 2, 2)
    payload = RawCodec().encode(tensor, (1, 2, 1, 2, 2), "float32")
    assert payload.cast("f").tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert bytes(payload[4:8]) == b"\x00\x00\x80\x3f"


def test_any_view_is_stored_as_what_it_shows() -> None:
    tensor = every_pattern("float32").permute(4, 1, 0, 3, 2)
    shape = tuple(tensor.shape)
    payload = RawCodec().encode(tensor, shape, "float32")  # type: ignore[arg-type]
    assert bytes(payload) == tensor.contiguous().numpy().tobytes()


def test_contiguous_tensors_are_not_copied() -> None:
    tensor = torch.zeros(SHAPE)
    payload = RawCodec().encode(tensor, SHAPE, "float32")
    tensor[0, 0, 0, 0, 0] = 1
    assert payload.cast("f")[0] == 1
    buffer = bytearray(payload)
    RawCodec().decode(memoryview(buffer), SHAPE, "float32")[0, 0, 0, 0, 1] = 1
    assert memoryview(buffer).cast("f")[1] == 1


@pytest.mark.parametrize(
    "tensor", [torch.zeros(SHAPE, dtype=torch.bfloat16), torch.zeros(2, 2, 3, 4, 5)]
)
def test_another_dtype_or_shape_is_never_stored(tensor: torch.Tensor) -> None:
    with pytest.raises(EngineError, match="float16"):
        RawCodec().encode(tensor, SHAPE, "float16")


def test_the_store_starts_without_torch_and_numpy() -> None:
    code = (
        "import sys, preread.store.store, preread.store.tiers.disk, preread.store.tiers.memory;"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
