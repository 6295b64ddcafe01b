"""The weights of a model folder: safetensors only, every tensor accounted for.

A tensor is copied from the mapped file straight into its resident place (fused, in the wanted
dtype, on the device): there is never a second copy of the model, and nothing stays mapped that
somebody could change under our feet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from preread.errors import BadCheckpoint, UnsupportedModel
from preread.models.config import ModelConfig
from preread.models.folder import AGAIN, stamp, weight_files
from preread.models.layers import Slot, layout
from preread.models.shard import WHOLE, Shard

_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Older checkpoints carry the RoPE frequencies; they follow from the config.
_HARMLESS = re.compile(r"(.*\.)?rotary_emb\.inv_freq")


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt", device="cpu") as handle:
            yield handle
    except (SafetensorError, OSError) as exc:
        raise BadCheckpoint(f"{file}: damaged or half-written: {exc}.", hint=AGAIN) from exc


def stored_dtype(file: Path) -> str:
    """The type of the first tensor of a file, where no config names one. Raises BadCheckpoint."""
    with _opened(file) as handle:
        names = list(handle.keys())
        kind = handle.get_slice(names[0]).get_dtype() if names else "F32"
    return _STORED.get(kind, "float32")


class Checkpoint:
    """The stored tensors of a folder, checked against a config before anything is loaded."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        """Raises BadCheckpoint naming the file and the tensor, UnsupportedModel."""
        self.files = weight_files(folder)
        self._stamps = [stamp(file) for file in self.files]
        self._config = config
        self._slots = layout(config)
        self._place = {
            name: (key, slot, part)
            for key, slot in self._slots.items()
            for part, (name, _) in enumerate(slot.published())
        }
        self._found: dict[str, Path] = {}
        self.dtype = config.dtype or ""
        for file in self.files:
            with _opened(file) as handle:
                for name in handle.keys():
                    self._check(file, name, handle.get_slice(name), config)
        if missing := sorted(self._place.keys() - self._found.keys()):
            raise BadCheckpoint(
                f"{folder}: tensor {missing[0]} is missing ({len(missing)} in all).", hint=AGAIN
            )

    def _check(self, file: Path, name: str, stored: Any, config: ModelConfig) -> None:
        if _HARMLESS.fullmatch(name) or (config.tied and name == "lm_head.weight"):
            return
        if name not in self._place:
            raise UnsupportedModel(
                f"{file}: tensor {name} has no place in a {config.family} decoder.",
                hint="Its config.json does not describe it: choose another model.",
            )
        if other := self._found.get(name):
            raise BadCheckpoint(f"{file}: {name} is also in {other.name}.", hint=AGAIN)
        _, slot, part = self._place[name]
        expected, shape = list(slot.published())[part][1], tuple(stored.get_shape())
        if shape != expected:
            raise BadCheckpoint(f"{file}: {name} is {shape}, not {expected}.", hint=AGAIN)
        if stored.get_dtype() not in _STORED:
            raise UnsupportedModel(
                f"{file}: {name} is stored as {stored.get_dtype()}.",
                hint="Choose the same model in float32, bfloat16 or float16.",
            )
        self.dtype = self.dtype or _STORED[stored.get_dtype()]
        self._found[name] = file

    def load(
        self, dtype: torch.dtype, device: torch.device, shard: Shard = WHOLE
    ) -> dict[str, torch.Tensor]:
        """All resident tensors, or a shard's part of them. Raises BadCheckpoint also if a file
        changed since this object was made: what was checked and digested in between would not be
        what is loaded."""
        slots = shard.layout(self._config)
        resident = {
            key: torch.empty(slot.shape, dtype=dtype, device=device) for key, slot in slots.items()
        }
        for file in self.files:
            with _opened(file) as handle:
                for name in [n for n, home in self._found.items() if home == file]:
                    key, _, part = self._place[name]
                    if key in slots:
                        piece = shard.cut(self._config, key, part, handle.get_tensor(name))
                        start = sum(rows for _, rows in slots[key].parts[:part])
                        resident[key][start : start + len(piece)].copy_(piece)
        if self._stamps != [stamp(file) for file in self.files]:
            raise BadCheckpoint("The weights changed while they were read.", hint="Try again.")
        return resident


def random_tensors(
    config: ModelConfig, seed: int, dtype: torch.dtype, device: torch.device, shard: Shard = WHOLE
) -> dict[str, torch.Tensor]:
    """Weights of the right shapes for benchmarks: matrices normal(0, 0.02), norms 1, biases 0.
    Shards get the parts of one model."""
    generator = torch.Generator(device=device).manual_seed(seed)
    kept = shard.layout(config)

    def one(key: str, slot: Slot) -> torch.Tensor:
        tensor = torch.empty(slot.shape, dtype=dtype, device=device)
        if slot.columns:
            return tensor.normal_(0.0, 0.02, generator=generator)
        return tensor.fill_(1.0 if key.endswith("norm") else 0.0)

    drawn = ((key, slot, one(key, slot)) for key, slot in layout(config).items())
    return {key: shard.of(config, key, slot, whole) for key, slot, whole in drawn if key in kept}
