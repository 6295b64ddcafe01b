"""Codecs that lose something: how much at most, against slow twins; what becomes of oddities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.errors import ConfigError, EngineError
from preread.store.codec import Codec, Fp8Codec, Int8Codec, RawCodec, Shape, codec_of
from preread.store.keys import CODECS, DTYPES, Geometry
from preread.store.layout import Layout
from tests.attacks.tools import FINGERPRINT

SHAPE = (2, 2, 3, 5, 4)
LOSSY = [Fp8Codec(), Int8Codec()]
# Half a unit in the last place of what comes back, as a share of it.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
LEAST = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 0.0}  # half the least subnormal


def drawn(seed: int, shape: Shape, dtype: str, spread: float) -> torch.Tensor:
    """KV with channels of keys that are far larger than others, as real ones have."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * spread
    x[:, 0] *= 10.0 ** torch.randint(-3, 3, (shape[-1],), generator=generator)
    return x.clamp(-6e4, 6e4).to(getattr(torch, dtype))


def back(codec: Codec, x: torch.Tensor, dtype: str) -> torch.Tensor:
    shape: Shape = tuple(x.shape)  # type: ignore[assignment]
    payload = codec.encode(x, shape, dtype)
    assert payload.nbytes == codec.nbytes(shape, dtype)
    again = codec.decode(memoryview(bytearray(payload)), shape, dtype)
    assert again.dtype == x.dtype and again.shape == x.shape
    return again


def int8_slow(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition, one group at a time in float64: (what comes back, half a step)."""
    out, half = np.empty_like(x), np.empty_like(x)
    layers, _, heads, tokens, dim = x.shape
    groups = [
        *((i, 0, h, slice(None), c) for i in range(layers) for h in range(heads)
          for c in range(dim)),
        *((i, 1, h, t, slice(None)) for i in range(layers) for h in range(heads)
          for t in range(tokens)),
    ]  # fmt: skip
    for group in groups:
        low, high = x[group].min(), x[group].max()
        step = (high - low) / 255
        steps = np.rint((x[group] - low) / step) if step else np.zeros_like(x[group])
        out[group], half[group] = low + step * steps, step / 2
    return out, half


def fp8_slow(value: float, largest: float) -> float:
    """The nearest of the numbers that e4m3 can say, times the scale."""
    scale = largest / 448
    if value == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(value / scale))), -6)
    grain = 2.0 ** (exponent - 3)
    return min(round(abs(value) / scale / grain) * grain, 448.0) * scale * math.copysign(1, value)


@given(st.integers(0, 2**31), st.sampled_from(list(DTYPES)), st.sampled_from([1e-3, 1.0, 50.0]))
@settings(max_examples=60, deadline=None)
def test_int8_is_off_by_half_a_step(seed: int, dtype: str, spread: float) -> None:
    x = drawn(seed, SHAPE, dtype, spread)
    wide = x.double().numpy()
    slow, half = int8_slow(wide)
    again = back(Int8Codec(), x, dtype).double().numpy()
    slack = np.abs(wide).max() * 2.0**-21  # of float32 arithmetic, where the definition has float64
    rounding = np.abs(slow) * ROUNDING[dtype] + LEAST[dtype]
    assert (np.abs(again - wide) <= half + rounding + slack).all()
    # The twin may round to the other neighbour where the element lies half-way, and only there.
    assert (np.abs(again - slow) <= 2 * half + 2 * rounding + slack).all()
    assert (np.abs(again - slow) <= 2 * rounding + slack).mean() > 0.9


@given(st.integers(0, 2**31), st.sampled_from(list(DTYPES)), st.sampled_from([1e-3, 1.0, 50.0]))
@settings(max_examples=60, deadline=None)
def test_fp8_is_off_by_a_sixteenth(seed: int, dtype: str, spread: float) -> None:
    x = drawn(seed, SHAPE, dtype, spread)
    wide = x.double().numpy()
    again = back(Fp8Codec(), x, dtype).double().numpy()
    largest = np.abs(wide).max(-1, keepdims=True)
    bound = np.maximum(np.abs(wide) / 16, largest / 458_752) * (1 + 2.0**-20)
    bound += np.abs(wide) * 2 * ROUNDING[dtype] + LEAST[dtype]
    assert (np.abs(again - wide) <= bound).all()
    twin = np.vectorize(fp8_slow)(wide, np.broadcast_to(largest, wide.shape))
    near = np.abs(again - twin) <= np.abs(twin) * 4 * ROUNDING[dtype] + largest * 2.0**-20
    near |= np.abs(again - twin) <= LEAST[dtype]
    assert near.mean() > 0.9  # the rest lies half-way between two numbers


@pytest.mark.parametrize("codec", LOSSY, ids=lambda codec: codec.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_exact(codec: Codec, dtype: str) -> None:
    """Zeros, and groups whose elements are all the same."""
    assert not back(codec, torch.zeros(SHAPE, dtype=getattr(torch, dtype)), dtype).any()
    same = torch.full(SHAPE, -1.75, dtype=getattr(torch, dtype))
    assert torch.equal(back(codec, same, dtype), same)


@pytest.mark.parametrize("codec", LOSSY, ids=lambda codec: codec.name)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_does_not_hide(codec: Codec, bad: float) -> None:
    """Never a likely-looking number in place of one that the model did not compute."""
    x = drawn(1, SHAPE, "float32", 1.0)
    x[1, 0, 2, 3, 1] = bad
    x[0, 1, 1, 4, 0] = bad
    again = back(codec, x, "float32")
    assert again[1, 0, 2, 3, 1].isnan() and again[0, 1, 1, 4, 0].isnan()
    assert again[0, 0].isfinite().all() and again[1, 1].isfinite().all()  # other groups are well


@pytest.mark.parametrize("codec", LOSSY, ids=lambda codec: codec.name)
def test_half_the_size(codec: Codec) -> None:
    for shape in ((12, 2, 2, 256, 64), (4, 2, 8, 256, 128)):
        raw = RawCodec().nbytes(shape, "bfloat16")
        assert 0.5 < codec.nbytes(shape, "bfloat16") / raw < 0.57


@pytest.mark.parametrize("codec", LOSSY, ids=lambda codec: codec.name)
def test_another_dtype_or_shape_is_never_stored(codec: Codec) -> None:
    for tensor in (torch.zeros(SHAPE, dtype=torch.bfloat16), torch.zeros(2, 2, 3, 4, 5)):
        with pytest.raises(EngineError, match="float16"):
            codec.encode(tensor, SHAPE, "float16")


def test_every_codec_has_its_name_and_code() -> None:
    for name, code in CODECS.items():
        assert (codec_of(name).name, codec_of(name).code) == (name, code)
    with pytest.raises(ConfigError, match=r"store\.codec = 'zip'.*raw, fp8, int8"):
        codec_of("zip")


def test_chunks_of_codecs_never_meet() -> None:
    geometry = Geometry(3, 2, 64, "float32", 8, 1 << 20)
    layouts = [Layout(geometry, FINGERPRINT, "default", codec_of(name)) for name in CODECS]
    keys = [
        key for layout in layouts for span in layout.spans(range(16)) for key in layout.keys(span)
    ]
    assert len(set(keys)) == len(keys) == 2 * len(CODECS)


def test_a_codec_whose_tables_do_not_fit_is_refused() -> None:
    """Of very small heads the tables are larger than what they save."""
    with pytest.raises(ConfigError, match="codec int8"):
        Layout(Geometry(3, 2, 4, "bfloat16", 8, 540), FINGERPRINT, "t", Int8Codec())
