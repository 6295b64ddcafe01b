"""Model folders: where a model lies and which files it consists of. Text side only, no torch."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from preread.errors import BadCheckpoint, ModelNotFound

AGAIN = "Download the model again."
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def resolve(name: str, *, weights: bool = True) -> Path:
    """The folder of a model. name: "reader" (bundled), a local folder, or a hub id `owner/model`.

    weights False fetches only the text side and the config of a hub id. What is complete in the
    hub's local cache is used as it is, without the network. Raises ModelNotFound.
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
    if name and folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(name) or folder.exists():
        raise ModelNotFound(
            f"{name!r} is neither a folder nor a hub id.",
            hint="Give 'reader', a folder with config.json, or an id such as Qwen/Qwen3-0.6B.",
        )
    return _download(name, weights)


def _download(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    fetch = partial(
        snapshot_download,
        name,
        allow_patterns=["*.json", "*.jinja", *(["*.safetensors"] if weights else [])],
        ignore_patterns=["*/*", "consolidated*"],  # the same weights, in another format
    )
    with suppress(Exception):  # not in the cache, or not all of it
        folder = Path(fetch(local_files_only=True))
        if (folder / "tokenizer.json").is_file() and (not weights or weight_files(folder)):
            return folder
    try:
        return Path(fetch())
    except Exception as exc:  # the client and its HTTP library raise a dozen unrelated kinds
        said = " ".join(str(exc).split())  # some of them write several paragraphs
        raise ModelNotFound(
            f"{name!r} could not be fetched from the hub ({type(exc).__name__}: {said}).",
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
            raise BadCheckpoint(f"{index}: no weight_map.", hint=AGAIN)
        files = sorted({folder / str(name) for name in names.values()})
    else:
        single = folder / "model.safetensors"
        files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    for file in files:
        if not file.is_file():
            raise BadCheckpoint(f"{index} names {file.name}, which is missing.", hint=AGAIN)
    if not files:
        _refuse_pickles(folder)
        raise BadCheckpoint(f"{folder}: no *.safetensors file.", hint=AGAIN)
    return files


def _refuse_pickles(folder: Path) -> None:
    for pattern in _PICKLES:
        for found in folder.glob(pattern):
            raise BadCheckpoint(
                f"{found}: a pickle checkpoint is refused, because reading it runs code from it.",
                hint="Convert it to safetensors (transformers: save_pretrained), or choose a "
                "model published as safetensors.",
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises ModelNotFound, BadCheckpoint naming file, line and
    column."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFound(
            f"{path.parent} has no {path.name}.", hint="Give a model folder or a hub id."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as exc:
        raise BadCheckpoint(f"{path}: not readable as JSON: {exc}.", hint=AGAIN) from exc
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{path}: expected a JSON object.", hint=AGAIN)
    return value


def stamp(file: Path) -> str:
    """What a file is without reading it: device, inode, size, mtime and ctime, never its name."""
    s = os.stat(file)
    return f"{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}"
