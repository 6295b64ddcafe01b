"""Does it fit? Said before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from preread.backend import BackendInfo
from preread.config import ContextSection
from preread.errors import ContextTooLong


@dataclass(frozen=True, slots=True)
class Fit:
    """All in tokens. tokens: all documents as one prompt; limit: of the model; effective: how far
    it is known to read well; needed: kept free for question and answer; fullest: the largest
    shard."""

    tokens: int
    limit: int
    effective: int
    effective_known: bool
    needed: int
    shards: int
    fullest: int

    @property
    def room(self) -> int:
        """Left for question and answer in the fullest shard."""
        return self.effective - self.fullest

    def describe(self) -> str:
        """One line for people."""
        known = "" if self.effective_known else ", not measured"
        line = (
            f"{self.tokens:,} tokens; limit {self.limit:,}, effective {self.effective:,}{known}; "
        )
        if self.shards == 1:
            return line + f"room for question and answer {self.room:,}"
        return line + (
            f"does not fit: {self.shards} shards of at most {self.fullest:,} tokens, each "
            "question goes to the best of them"
        )


def capacity(info: BackendInfo, config: ContextSection) -> int:
    """Most tokens of one prefix. Raises ContextTooLong when the reserve alone exceeds the model."""
    room = min(info.effective_limit, info.limit)
    free = room - needed(config)
    if free <= 0:
        raise ContextTooLong(
            f"{info.model} reads {room:,} tokens, and {needed(config):,} are kept for question and "
            "answer: nothing is left for documents.",
            hint="Lower context.answer_room or context.max_tokens in config.toml.",
        )
    return free


def needed(config: ContextSection) -> int:
    """Tokens kept free for question and answer."""
    return config.answer_room + config.max_tokens
