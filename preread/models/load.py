"""A name -> everything a backend needs of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from preread.errors import ConfigError
from preread.kernels.fp8 import fp8, fp8_works, rounded_fp8
from preread.kernels.int8 import int8, rounded
from preread.kernels.kv import PRECISIONS as KV_PRECISIONS
from preread.kernels.linear import MakeLinear, PlainLinear, pack
from preread.kernels.w8a8 import MIXED
from preread.models.chat import ChatTemplate
from preread.models.config import DTYPES, ModelConfig, read_config
from preread.models.decoder import PackedDecoder
from preread.models.digest import model_fingerprint_parts, weights_digest
from preread.models.folder import read_json, resolve
from preread.models.shard import WHOLE, Shard
from preread.models.text import Text, load_text
from preread.models.tokenizer import Tokenizer
from preread.models.weights import Checkpoint, random_tensors

# Of the weights in matrix products: full: as in dtype; int8 (CPU): eight bits, a scale for every
# row; w8a8 (CPU): the same weights, most activations one byte, too; fp8 (CUDA, from Ada on):
# eight-bit floats on both sides of the product.
PRECISIONS = ("full", "int8", "w8a8", "fp8")
# Tokens that models were measured to read well, by RULER's criterion (Hsieh et al. 2024 and its
# public table; Qwen3's technical report). Sought in the given name.
_EFFECTIVE = (
    (re.compile(r"llama-?3\.1-8b", re.IGNORECASE), 32_768),
    (re.compile(r"llama-?3\.1-70b", re.IGNORECASE), 65_536),
    (re.compile(r"mistral-7b-(instruct-)?v0\.[23]", re.IGNORECASE), 16_384),
    (re.compile(r"mistral-nemo", re.IGNORECASE), 16_384),
    (re.compile(r"qwen3-8b", re.IGNORECASE), 65_536),
)


MakeDecoder = Callable[[ModelConfig, MutableMapping[str, torch.Tensor], MakeLinear], PackedDecoder]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """fingerprint_parts: for `store.keys.fingerprint`; effective_context: tokens that the model is
    known to read well, None if nobody measured; dtype: of the computation and so of the KV;
    stop_ids: tokens that end an answer; weights_precision: one of PRECISIONS; kv_precision: one of
    kernels.kv.PRECISIONS."""

    decoder: PackedDecoder
    tokenizer: Tokenizer
    chat: ChatTemplate
    config: ModelConfig
    folder: Path
    fingerprint_parts: dict[str, str | int]
    effective_context: int | None
    dtype: str
    stop_ids: frozenset[int]
    weights_precision: str = "full"
    kv_precision: str = "full"

    @property
    def text(self) -> Text:
        return Text(self.tokenizer, self.chat, None)


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    weights: str = "load",
    weights_precision: str = "full",
    kv_precision: str = "full",
    home: Path | None = None,
    seed: int = 0,
    shard: Shard = WHOLE,
    make: MakeDecoder = PackedDecoder,
) -> LoadedModel:
    """Load "reader", a folder or a hub id.

    dtype: "auto" or a name, see `choose_dtype`; device: "auto", "cpu", "cuda" or "cuda:1"; weights:
    "load" or "random" (right shapes, drawn from `seed`, for benchmarks; only the text side is then
    fetched); weights_precision: one of PRECISIONS, "full" or products in eight bits;
    kv_precision: "full", or "int8" or "fp8" for keys and values in eight bits; home: where the
    digest of the weights is remembered, None: nowhere; shard, make: which part of the model is
    wanted, and what computes it.

    Raises ModelNotFound, UnsupportedModel, BadCheckpoint, ConfigError.
    """
    check_kv_precision(kv_precision)
    place = choose_device(device)
    linear = choose_linear(weights_precision, place)
    read = read_weights(
        name, dtype=dtype, place=place, weights=weights, seed=seed, shard=shard,
        digest=lambda folder: weights_digest(folder, home),
    )  # fmt: skip
    config, folder = read.config, read.folder
    tokenizer, chat, eos = load_text(folder)
    return LoadedModel(
        decoder=make(read.own, read.tensors, linear),
        tokenizer=tokenizer,
        chat=chat,
        config=config,
        folder=folder,
        fingerprint_parts=model_fingerprint_parts(
            config, read.digest, read.dtype, weights_precision, kv_precision
        ),
        effective_context=effective_context(name, folder, config.max_positions),
        dtype=read.dtype,
        stop_ids=frozenset(config.eos_ids) | ({eos} if eos is not None else frozenset()),
        weights_precision=weights_precision,
        kv_precision=kv_precision,
    )


class Weights(NamedTuple):
    """config: of the model; own: of what is here of it, see Shard."""

    config: ModelConfig
    own: ModelConfig
    folder: Path
    dtype: str
    tensors: dict[str, torch.Tensor]
    digest: str


def read_weights(
    name: str, *, dtype: str, place: torch.device, weights: str, seed: int = 0,
    shard: Shard = WHOLE, digest: Callable[[Path], str] = lambda folder: "",
) -> Weights:  # fmt: skip
    """The tensors of a model, or a shard's; see `load_model`. digest: of the files of a folder,
    asked for between the moment they are checked and the moment they are known to be unchanged."""
    if weights not in ("load", "random"):
        raise ConfigError(f"weights = {weights!r}.", hint='Give "load" or "random".')
    folder = resolve(name, weights=False)
    config = read_config(folder)  # refuse before anything large is fetched
    own = shard.config(config)
    if weights == "random":
        computed = choose_dtype(dtype, config.dtype or "float32", place)
        tensors = random_tensors(config, seed, getattr(torch, computed), place, shard)
        # All are drawn in a row, so what comes later depends on the sizes of what came before.
        shape = f"{config.vocab_size}:{config.tied}"
        drawn = f"random:{seed}:{shape}:{place.type}:{torch.__version__}"
        return Weights(config, own, folder, computed, tensors, drawn)
    folder = resolve(name)
    config = read_config(folder)
    checkpoint = Checkpoint(folder, config)
    computed = choose_dtype(dtype, checkpoint.dtype, place)
    known = digest(folder)
    tensors = checkpoint.load(getattr(torch, computed), place, shard)
    return Weights(config, shard.config(config), folder, computed, tensors, known)


def check_kv_precision(precision: str) -> None:
    """Raises ConfigError for one that there is not."""
    if precision not in KV_PRECISIONS:
        raise ConfigError(
            f"kv_precision = {precision!r}.", hint=f"Give one of {', '.join(KV_PRECISIONS)}."
        )


def choose_linear(precision: str, device: torch.device) -> MakeLinear:
    """How products keep their weights. Raises ConfigError."""
    if precision not in PRECISIONS:
        raise ConfigError(
            f"weights_precision = {precision!r}.", hint=f"Give one of {', '.join(PRECISIONS)}."
        )
    if precision == "full":
        return pack if device.type == "cpu" else PlainLinear
    if precision == "fp8" and not fp8_works(device):
        raise ConfigError(
            f'weights_precision = "fp8" is for CUDA from Ada on (8.9), not for {device.type} here.',
            hint='Use "full", or "int8" on a CPU.',
        )
    if precision in ("int8", "w8a8") and device.type != "cpu":
        raise ConfigError(
            f'weights_precision = "{precision}" is for the CPU, not for {device.type}.',
            hint='Use --device cpu, or "full".',
        )
    forms: dict[str, MakeLinear] = {"int8": int8, "w8a8": MIXED, "fp8": fp8}
    return forms[precision]


def rounded_linear(precision: str) -> MakeLinear:
    """Plain products, of any width, over what a precision makes of weights: for references."""
    forms: dict[str, MakeLinear] = {
        "full": PlainLinear, "int8": rounded, "w8a8": rounded, "fp8": rounded_fp8,
    }  # fmt: skip
    return forms[precision]


def choose_device(name: str) -> torch.device:
    """`auto`: a CUDA device if there is one, else the CPU. Raises ConfigError."""
    cuda = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if cuda else "cpu") if name == "auto" else name)
    except RuntimeError as exc:
        raise ConfigError(f"device = {name!r}.", hint='Give "auto", "cpu" or "cuda".') from exc
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not cuda):
        raise ConfigError(
            f"device = {name!r} is not available.",
            hint="Run `preread doctor`, or use --device cpu.",
        )
    return device


def choose_dtype(wanted: str, published: str, device: torch.device) -> str:
    """A given name stays as it is. "auto" is the published one on CUDA; on the CPU float32, except
    that bfloat16 stays where the CPU multiplies it natively (float16 it never does well, and
    bfloat16 in its place would lose digits). Raises ConfigError."""
    if wanted != "auto":
        if wanted not in DTYPES:
            raise ConfigError(
                f"dtype = {wanted!r}.", hint=f"Give one of auto, {', '.join(DTYPES)}."
            )
        return wanted
    if device.type != "cpu" or (published == "bfloat16" and cpu_has_bfloat16()):
        return published
    return "float32"


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU has instructions for bfloat16 products (AVX-512 BF16, AMX, Arm BF16)."""
    try:
        words = set(cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        return False
    return not words.isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))


def effective_context(name: str, folder: Path, limit: int) -> int | None:
    """Tokens that a model is known to read well, at most `limit`: `effective_context` of a
    preread.json in its folder, else what was published for models of this name, else None."""
    own = folder / "preread.json"
    if own.is_file():
        value = read_json(own).get("effective_context")
        if isinstance(value, int) and value > 0:
            return min(value, limit)
    return next((min(n, limit) for pattern, n in _EFFECTIVE if pattern.search(name)), None)
