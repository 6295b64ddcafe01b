"""A transformers model as something that reads tokens."""

from __future__ import annotations

import inspect
from bisect import bisect_left
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from preread.foreign.cache import Caches
from preread.foreign.layout import KVLayout

if TYPE_CHECKING:
    from preread.types import Int32Array


class Ability(Enum):
    """What a model's cache can be trusted with; see examine.py."""

    KEEP = "its KV is kept, cut, stored and restored"
    STEP = "its state is read once per prompt and grows by a token at a time"
    WHOLE = "every token is computed from the whole text before it"


class Net:
    """One sequence at a time. ability, why: what its cache can do and why no more; layout: of its
    KV where that is kept. Owned by one thread."""

    def __init__(self, module: Any, limit: int) -> None:
        """module: a causal language model in evaluation mode; limit: most positions."""
        self._module = module
        self._keeps_logits = "logits_to_keep" in inspect.signature(module.forward).parameters
        config = module.config.get_text_config(decoder=True)
        self._switches = _switches(config)
        self.limit = limit
        self.caches = Caches(config)
        self.ability, self.why = Ability.WHOLE, ""
        self.layout: KVLayout | None = None
        self.device: torch.device = next(module.parameters()).device
        head = module.get_output_embeddings()
        self.vocab_size = int(config.vocab_size if head is None else head.weight.shape[0])
        self.parameters = sum(p.numel() for p in module.parameters())

    @property
    def regimes(self) -> int:
        """In how many ways the same token can be read, see `regime`."""
        return len(self._switches) + 1

    def regime(self, tokens: int) -> int:
        """RoPE of type longrope turns all positions by other angles once a text is longer than the
        model was first trained for; so the KV of a short text is none of the beginning of a long
        one, and each length has its regime (0: the shortest)."""
        return bisect_left(self._switches, tokens)

    def reach(self, regime: int) -> int:
        """A pass computes in this regime when it reads up to this many tokens at least."""
        return self._switches[regime - 1] + 1 if regime else 0

    @torch.inference_mode()
    def forward(self, tokens: Int32Array, cache: Any = None, *, past: int = 0, keep: int = 1,
                ) -> torch.Tensor:  # fmt: skip
        """Read tokens after the `past` ones that the cache holds (it grows); None: without any.
        -> logits of the last `keep` tokens [keep, V], float32 (float64 of a float64 model)."""
        ids = torch.from_numpy(np.asarray(tokens, np.int64))[None].to(self.device)
        options: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            options = {"use_cache": True, "past_key_values": cache}
        if self._keeps_logits:
            options["logits_to_keep"] = keep
        mask = torch.ones(1, past + len(tokens), dtype=torch.int64, device=self.device)
        said = self._module(input_ids=ids, attention_mask=mask, **options)
        logits: torch.Tensor = said.logits[0, -keep:]
        return logits if logits.dtype == torch.float64 else logits.float()


def _switches(config: Any) -> list[int]:
    """Lengths beyond which RoPE changes for all positions, rising."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = rope.values() if rope and all(isinstance(r, dict) for r in rope.values()) else [rope]
    return sorted({original(config, kind) for kind in kinds if kind.get("rope_type") == "longrope"})


def original(config: Any, rope: dict[str, Any]) -> int:
    """Tokens that a model was first trained for."""
    given = rope.get("original_max_position_embeddings")
    given = given or getattr(config, "original_max_position_embeddings", None)
    return int(given or config.max_position_embeddings)
