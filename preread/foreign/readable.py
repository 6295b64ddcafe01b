"""What no backend of this package computes or reads, found without transformers."""

from __future__ import annotations

from pathlib import Path

from preread.errors import UnsupportedModel
from preread.models.folder import read_json
from preread.models.text import Text, load_text

_HINT = "Choose another model."


def readable(folder: Path) -> Text:
    """The text side of a model that transformers may be tried on. Raises ModelNotFound,
    BadCheckpoint, UnsupportedModel naming file and key."""
    path = folder / "config.json"
    raw = read_json(path)
    for key in ("quantization_config", "compression_config"):
        if raw.get(key):
            raise UnsupportedModel(f"{path}: {key}: its weights are quantised.", hint=_HINT)
    if (folder / "adapter_config.json").exists():
        raise UnsupportedModel(
            f"{folder}: adapter_config.json: an adapter lies beside the weights.",
            hint="Merge it into them, or remove it.",
        )
    if raw.get("is_encoder_decoder"):
        raise UnsupportedModel(f"{path}: it is an encoder and a decoder.", hint=_HINT)
    return load_text(folder)
