"""Write trained weights as an ordinary hub folder.

python -m training.export CHECKPOINT preread/assets/reader
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from training.model import Reader, Shape

EFFECTIVE_CONTEXT = 12_288


def hub_config(shape: Shape) -> dict[str, object]:
    """config.json of the same model in transformers."""
    sizes = asdict(shape)
    theta = sizes.pop("rope_theta")
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **sizes,
        "rope_theta": theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": shape.num_hidden_layers,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def hub_weights(model: Reader) -> dict[str, torch.Tensor]:
    """The weights under transformers' names, in bf16."""
    state = model.state_dict()
    return {
        f"model.{name}": tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in state.items()
    }


def write(model: Reader, folder: Path) -> None:
    """config.json, generation_config.json, preread.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, object]] = {
        "config.json": hub_config(model.shape),
        "generation_config.json": {"eos_token_id": [2], "pad_token_id": 0, "do_sample": False},
        "preread.json": {
            "name": "preread-reader-14m",
            "effective_context": EFFECTIVE_CONTEXT,
            "parameters": sum(p.numel() for p in model.parameters()),
            "unanswerable": "not stated",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(hub_weights(model), folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    saved = torch.load(options.checkpoint, map_location="cpu", weights_only=True)
    model = Reader(Shape(**saved["shape"]))
    model.load_state_dict(saved["model"])
    write(model, options.folder)


if __name__ == "__main__":
    main()
