"""The public facade and the composition root.

import preread
engine = preread.open()
handbook = engine.context("handbook", "docs/")
print(handbook.ask("When does the warranty end?").text)
"""

from __future__ import annotations

from pathlib import Path

from preread.app.aio import AsyncContext, AsyncEngine
from preread.app.answers import Answers
from preread.app.compose import Weights, open_parts
from preread.app.context import Context, Session
from preread.app.engine import Engine
from preread.app.options import AnswerOptions

__all__ = [
    "AnswerOptions",
    "Answers",
    "AsyncContext",
    "AsyncEngine",
    "Context",
    "Engine",
    "Session",
    "open",
]


def open(
    model: str = "",
    *,
    dtype: str = "",
    device: str = "",
    weights: Weights = "load",
    home: str | Path | None = None,
    sequences: int = 0,
    codec: str = "",
    backend: str = "",
    responses: bool = False,
) -> Engine:
    """An engine on a model. model: "reader" (bundled), a local folder or a hub id; "": as
    configured. dtype: auto, float32, bfloat16 or float16. device: auto, cpu or cuda. weights
    "random" initialises the model's shape, for timings. home: where contexts and KV are kept.
    sequences: most that run at once; 0: as configured, else as `preread tune` found, else 256
    (CUDA: 1,024). codec: in which KV is kept, raw, fp8 or int8; "": as configured. backend: auto,
    native or transformers, or somebody else's server (docs/backends.md): "openai",
    "openai:http://localhost:8000", "anthropic" …; "": as configured. responses: what was
    answered before comes from the response cache (docs/caches.md); False: as configured.

    Raises ModelNotFound, UnsupportedModel, BadCheckpoint, ConfigError, HomeError."""
    parts = open_parts(
        model,
        dtype=dtype,
        device=device,
        weights=weights,
        home=home,
        sequences=sequences,
        codec=codec,
        backend=backend,
    )
    return Engine(parts, responses=responses)
