"""How a request is to be answered: everything of it but its text. Rows with equal orders may run in
one batch; an order is identified by its content, so that two runs mean the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

from preread.backend import Choose, Generate
from preread.types import Sampling

# What a request means to us. Raised when the same input would be laid out otherwise, so that
# results of an older release are not taken for those of this one.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Order:
    """raw: prompts are whole, no chat template. form: what a result line looks like: chat,
    completion (OpenAI's two) or row (a line of a table). key: 16 bytes, made from the rest."""

    model: str
    work: Generate | Choose
    raw: bool = False
    form: str = "row"
    key: bytes = field(init=False, compare=False)

    def __post_init__(self) -> None:
        digest = blake2b(self.to_json().encode(), digest_size=16)
        object.__setattr__(self, "key", digest.digest())

    @property
    def repeatable(self) -> bool:
        """The same request has the same answer, so one answer may serve its twins."""
        sampling = self.work.sampling if isinstance(self.work, Generate) else None
        return sampling is None or sampling.temperature == 0 or sampling.seed is not None

    @property
    def most_output(self) -> int:
        """Tokens."""
        return self.work.max_tokens if isinstance(self.work, Generate) else 0

    def to_json(self) -> str:
        """Canonical: equal orders, equal text."""
        kind = "generate" if isinstance(self.work, Generate) else "choose"
        value = {"version": VERSION, "model": self.model, "raw": self.raw, "form": self.form}
        return json.dumps(value | {kind: asdict(self.work)}, sort_keys=True, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Order:
        value = json.loads(text)
        return Order(value["model"], _work(value), value["raw"], value["form"])


def _work(value: dict[str, Any]) -> Generate | Choose:
    if "choose" in value:
        return Choose(tuple(value["choose"]["labels"]))
    given = value["generate"]
    given |= {"sampling": Sampling(**given["sampling"]), "stop": tuple(given["stop"])}
    return Generate(**given)
