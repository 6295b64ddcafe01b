"""What may have been billed for requests that were sent and not answered (see ResultBatch.unsure),
kept in the journal: a later session must not spend it again."""

from __future__ import annotations

import json
from collections.abc import Sequence

from preread.batch.journal import Journal


def keep(journal: Journal, model: bytes, tokens: Sequence[tuple[int, int]]) -> None:
    """Add (computed, output) of a model's requests; model: its digest."""
    sums = [sum(n) for n in zip(kept(journal, model), *tokens, strict=True)]
    journal.put(_key(model), json.dumps(sums))


def kept(journal: Journal, model: bytes) -> tuple[int, int]:
    """Computed and output tokens of a model."""
    computed, output = json.loads(journal.get(_key(model)) or "[0, 0]")
    return computed, output


def in_all(journal: Journal) -> int:
    """Tokens of all models."""
    told = journal.read("SELECT value FROM meta WHERE key LIKE 'unsure %'")
    return sum(sum(json.loads(value)) for (value,) in told)


def _key(model: bytes) -> str:
    return f"unsure {model.hex()}"
