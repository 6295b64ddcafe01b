"""Model folders and their weights: safetensors only, every tensor accounted for.

A tensor is copied from the mapped file straight into its resident place (fused, in the wanted
dtype, on the device): there is never a second copy of the model, and nothing stays mapped that
somebody could change under our feet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from preread.errors import BadCheckpoint, ModelNotFound, UnsupportedModel
from preread.models.config import ModelConfig, read_json
from preread.models.layers import Slot, layout

_AGAIN = "Download the model again."
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Older checkpoints carry the RoPE frequencies; they follow from the config.
_HARMLESS = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def resolve(name: str, *, weights: bool = True, revision: str | None = None) -> Path:
    """The folder of a model. name: "reader" (bundled), a local folder, or a hub id `owner/model`.

    weights False fetches only the text side and the config of a hub id. A hub id that is in the
    local cache needs no network. Raises ModelNotFound.
    """
    if name == "reader":
        folder = Path(__file__).parent.parent / "assets" / "reader"
        if not (folder / "config.json").is_file():
            raise ModelNotFound(
                f"The bundled reader model is missing from {folder}.",
                hint="Reinstall preread, or give --model with a folder or a hub id.",
            )
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(name) or folder.exists():
        raise ModelNotFound(
            f"{name!r} is neither a folder nor a hub id.",
            hint="Give 'reader', a folder with config.json, or an id such as Qwen/Qwen3-0.6B.",
        )
    return _download(name, weights, revision)


def _download(name: str, weights: bool, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.jinja", *(["*.safetensors"] if weights else [])]
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=wanted,
                ignore_patterns=["*/*", "consolidated*"],  # the same weights, in another format
            )
        )
    except Exception as exc:  # the client and its HTTP library raise a dozen unrelated kinds
        raise ModelNotFound(
            f"{name!r} could not be fetched from the hub ({type(exc).__name__}: {exc}).",
            hint="Check the id and the network (a gated model needs `hf auth login`), "
            "or give a local folder.",
        ) from exc


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, sorted. Raises BadCheckpoint if there are none, if the
    index names one that is missing, or if there are only pickles."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise BadCheckpoint(f"{index}: no weight_map.", hint=_AGAIN)
        files = sorted({folder / str(name) for name in names.values()})
    else:
        single = folder / "model.safetensors"
        files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    for file in files:
        if not file.is_file():
            raise BadCheckpoint(f"{index} names {file.name}, which is missing.", hint=_AGAIN)
    if not files:
        _refuse_pickles(folder)
        raise BadCheckpoint(f"{folder}: no *.safetensors file.", hint=_AGAIN)
    return files


def _refuse_pickles(folder: Path) -> None:
    for pattern in _PICKLES:
        for found in folder.glob(pattern):
            raise BadCheckpoint(
                f"{found}: a pickle checkpoint is refused, because reading it runs code from it.",
                hint="Convert it to safetensors (transformers: save_pretrained), or choose a "
                "model published as safetensors.",
            )


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt", device="cpu") as handle:
            yield handle
    except (SafetensorError, OSError) as exc:
        raise BadCheckpoint(f"{file}: damaged or half-written: {exc}.", hint=_AGAIN) from exc


class Checkpoint:
    """The stored tensors of a folder, checked against a config before anything is loaded."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        """Raises BadCheckpoint naming the file and the tensor, UnsupportedModel."""
        self.files = weight_files(folder)
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
                f"{folder}: tensor {missing[0]} is missing ({len(missing)} in all).", hint=_AGAIN
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
            raise BadCheckpoint(f"{file}: {name} is also in {other.name}.", hint=_AGAIN)
        _, slot, part = self._place[name]
        expected, shape = list(slot.published())[part][1], tuple(stored.get_shape())
        if shape != expected:
            raise BadCheckpoint(f"{file}: {name} is {shape}, not {expected}.", hint=_AGAIN)
        if stored.get_dtype() not in _STORED:
            raise UnsupportedModel(
                f"{file}: {name} is stored as {stored.get_dtype()}.",
                hint="Choose the same model in float32, bfloat16 or float16.",
            )
        self.dtype = self.dtype or _STORED[stored.get_dtype()]
        self._found[name] = file

    def load(self, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
        """All resident tensors. Raises BadCheckpoint also if a file changed while it was read."""
        before = [stamp(file) for file in self.files]
        resident = {
            key: torch.empty(slot.shape, dtype=dtype, device=device)
            for key, slot in self._slots.items()
        }
        for file in self.files:
            with _opened(file) as handle:
                for name in [n for n, home in self._found.items() if home == file]:
                    key, slot, part = self._place[name]
                    start = sum(rows for _, rows in slot.parts[:part])
                    rows = slot.parts[part][1]
                    resident[key][start : start + rows].copy_(handle.get_tensor(name))
        if before != [stamp(file) for file in self.files]:
            raise BadCheckpoint("The weights changed while they were read.", hint="Try again.")
        return resident


def stamp(file: Path) -> str:
    """What a file is without reading it: device, inode, size, mtime and ctime, never its name."""
    s = os.stat(file)
    return f"{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}"


def random_tensors(
    config: ModelConfig, seed: int, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """Weights of the right shapes for benchmarks: matrices normal(0, 0.02), norms 1, biases 0."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def one(key: str, slot: Slot) -> torch.Tensor:
        tensor = torch.empty(slot.shape, dtype=dtype, device=device)
        if slot.columns:
            return tensor.normal_(0.0, 0.02, generator=generator)
        return tensor.fill_(1.0 if key.endswith("norm") else 0.0)

    return {key: one(key, slot) for key, slot in layout(config).items()}
