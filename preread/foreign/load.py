"""A name -> everything the transformers backend needs of a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as chatter

from preread.errors import BadCheckpoint, UnsupportedModel, UsageError
from preread.foreign.examine import examine
from preread.foreign.net import Net, original
from preread.foreign.readable import readable
from preread.models.config import DTYPES
from preread.models.digest import weights_digest
from preread.models.folder import AGAIN, read_json, resolve, stamp, weight_files
from preread.models.load import choose_device, choose_dtype, effective_context
from preread.models.text import Text
from preread.models.weights import stored_dtype
from preread.store.keys import fingerprint
from preread.types import Fingerprint

# Book-keeping keys of config.json that say nothing of what is computed.
_NOT_KV = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype"})
_SOME_LIMIT = 8192  # of models that name none (ALiBi, state spaces): what their users can expect


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """identity: parts of `store.keys.fingerprint`; random: the weights were drawn; the rest as in
    `models.load.LoadedModel`."""

    net: Net
    text: Text
    folder: Path
    identity: dict[str, str | int]
    effective_context: int | None
    dtype: str
    stop_ids: frozenset[int]
    random: bool = False

    def fingerprint(self, regime: int = 0) -> Fingerprint:
        """Of the KV of texts of this regime, see Net.regime. It names this backend, so that a chunk
        of the native engine is never one of this, nor the other way round."""
        return fingerprint(self.identity | {"regime": regime})


def load_foreign(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    weights: str = "load",
    home: Path | None = None,
    seed: int = 0,
) -> ForeignModel:
    """As `models.load.load_model`, for every causal language model that transformers knows.

    Raises ModelNotFound, UnsupportedModel, BadCheckpoint, ConfigError."""
    place = choose_device(device)
    folder = resolve(name, weights=False)
    text, config = readable(folder), _config(folder)  # refuse before anything large is fetched
    if weights == "random":
        computed = choose_dtype(dtype, _published(folder) or "float32", place)
        digest = f"random:{seed}:{place.type}:{torch.__version__}"
        module = _random(config, computed, place, seed)
    else:
        folder = resolve(name)
        files = weight_files(folder)
        before = [stamp(file) for file in files]
        computed = choose_dtype(dtype, _published(folder) or stored_dtype(files[0]), place)
        digest = weights_digest(folder, home)
        module = _load(folder, config, getattr(torch, computed), place)
        if before != [stamp(file) for file in files]:
            raise BadCheckpoint("The weights changed while they were read.", hint="Try again.")
    with _quiet():
        net = Net(module, _limit(config, folder))
        examine(net, str(folder))
    ends = getattr(module.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return ForeignModel(
        net=net,
        text=text,
        folder=folder,
        identity=_identity(folder, digest, computed, net),
        effective_context=effective_context(name, folder, net.limit),
        dtype=computed,
        stop_ids=frozenset(i for i in (*listed, text.eos_id) if i is not None),
        random=weights == "random",
    )


def wider(model: ForeignModel) -> Net:
    """The same weights again, in float64 for a float32 model and in float32 for the others; what a
    model computes in float32 by itself, as most norms, stays so. Raises UsageError for random
    ones."""
    if model.random:
        raise UsageError(
            "Random weights cannot be read again in a wider type.", hint="Use real weights."
        )
    dtype = torch.float64 if model.dtype == "float32" else torch.float32
    module = _load(model.folder, _config(model.folder), dtype, model.net.device)
    return Net(module, model.net.limit)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers tells of a hundred things that nobody asked; errors still come."""
    level = chatter.get_verbosity()
    chatter.set_verbosity_error()
    bars = chatter.is_progress_bar_enabled()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()


def _config(folder: Path) -> Any:
    """The model's configuration. Raises UnsupportedModel naming file and key."""
    path = folder / "config.json"
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as exc:  # unknown types and wrong keys raise a dozen unrelated kinds
            raise UnsupportedModel(
                f"{path}: transformers {transformers.__version__} does not read it: "
                f"{_first_line(exc)}",
                hint="Install a newer transformers, or choose another model.",
            ) from exc
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UnsupportedModel(
            f"{path}: model_type {config.model_type!r} is no causal language model.",
            hint="Choose another model.",
        )
    return config


def _load(folder: Path, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The module in evaluation mode, every tensor accounted for."""
    # The fast products over experts know no float64.
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    with _quiet():
        try:
            module, told = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **experts,
            )
        except Exception as exc:  # damaged files raise whatever the file's reader raises
            raise BadCheckpoint(
                f"{folder}: transformers cannot load it: {_first_line(exc)}", hint=AGAIN
            ) from exc
    wrong = {
        "is missing": told["missing_keys"],
        "has another shape than config.json says": told["mismatched_keys"],
        "has no place in the model": told["unexpected_keys"],
    }
    for what, keys in wrong.items():
        if keys:
            first = sorted(key if isinstance(key, str) else key[0] for key in keys)[0]
            raise BadCheckpoint(
                f"{folder}: tensor {first} {what} ({len(keys)} in all).", hint=AGAIN
            )
    return module.to(device).eval()


def _random(config: Any, dtype: str, device: torch.device, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return module.to(device).eval()


def _published(folder: Path) -> str | None:
    """The type that config.json names for the text model."""
    raw = read_json(folder / "config.json")
    for level in (raw.get("text_config") or {}, raw):
        if (name := level.get("dtype") or level.get("torch_dtype")) in DTYPES:
            return str(name)
    return None


def _limit(config: Any, folder: Path) -> int:
    """Most positions. RoPE of type dynamic stays below the length from which on every further token
    would turn all earlier ones by other angles: nothing could be kept there."""
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    named = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    settings = folder / "tokenizer_config.json"
    told = read_json(settings).get("model_max_length") if settings.is_file() else None
    if not named:
        named = told if isinstance(told, int) and told < 1 << 24 else _SOME_LIMIT
    if "dynamic" in str(rope.get("rope_type", "")):
        named = min(int(named), original(text, rope))
    return int(named)


def _identity(folder: Path, weights: str, dtype: str, net: Net) -> dict[str, str | int]:
    raw = read_json(folder / "config.json")
    meant = {key: value for key, value in raw.items() if key not in _NOT_KV}
    canonical = json.dumps(meant, sort_keys=True).encode()
    return {
        "backend": "transformers",
        "transformers": str(transformers.__version__),
        "weights": weights,
        "dtype": dtype,
        "config": hashlib.sha256(canonical).hexdigest(),
        "kv": repr(net.layout.shapes) if net.layout else net.ability.name,
    }


def _first_line(exc: Exception) -> str:
    return f"{type(exc).__name__}: {(str(exc).strip().splitlines() or [''])[0]}"
