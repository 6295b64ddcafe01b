"""Which of the two ways computes a local model: our own decoder, or transformers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeVar

from preread.config import Config
from preread.errors import ConfigError, UnsupportedModel

T = TypeVar("T")
BACKENDS = ("auto", "native", "transformers")
INSTALL = "pip install 'preread[transformers]'"


def computed_by(config: Config, native: Callable[[], T], foreign: Callable[[str], T]) -> T:
    """The native way, or the transformers way for what that refuses; it is told why. Raises
    ConfigError, UnsupportedModel, and what the ways raise."""
    wanted, why = config.model.backend, "model.backend says so"
    if wanted not in BACKENDS:
        raise ConfigError(
            f"model.backend = {wanted!r}.",
            hint=f"Give one of {', '.join(BACKENDS)}, or another's server: docs/backends.md.",
        )
    if wanted != "transformers":
        try:
            return native()
        except UnsupportedModel as exc:
            if wanted == "native":
                raise
            why = exc.message
    if config.model.gpus > 1:
        raise ConfigError(
            f"model.gpus = {config.model.gpus} is for our own decoder, which does not compute this "
            f"model: {why.rstrip('.')}.",
            hint="Set model.gpus = 1.",
        )
    for knob in ("weights_precision", "kv_precision"):
        if (precision := getattr(config.model, knob)) != "full":
            raise ConfigError(
                f"{knob} = {precision!r} is for our own decoder, which does not compute this "
                f"model: {why.rstrip('.')}.",
                hint=f'Set model.{knob} = "full".',
            )
    if find_spec("transformers") is None:
        from preread.foreign.readable import readable
        from preread.models.folder import resolve

        readable(resolve(config.model.model, weights=False))  # else installing it would not help
        raise UnsupportedModel(
            f"{why.rstrip('.')}; transformers, which is not installed, may compute it, slower.",
            hint=INSTALL,
        )
    return foreign(why)
