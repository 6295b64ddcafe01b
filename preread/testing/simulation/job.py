"""One request as every dialect hands it to the simulated server, and its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from preread.testing.simulation.text import Wish, Written
from preread.types import Message


@dataclass(slots=True)
class Job:
    """ids: the prompt; salt: what its cache entries are apart by; reads, keeps: whether it uses and
    fills the prefix cache by itself; cached, written: set by a dialect that knows better (marked or
    named caches), -1: as the cache says; messages: what the ids say, where it is known."""

    ids: list[int]
    wish: Wish
    salt: str = ""
    reads: bool = True
    keeps: bool = True
    cached: int = -1
    written: int = 0
    messages: list[Message] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def amounts(self) -> dict[str, int]:
        """What it takes of each limit, where a provider counts the whole prompt."""
        read, most = len(self.ids), self.wish.max_tokens
        sizes = {"tokens": read + most, "input-tokens": read, "output-tokens": most}
        return {"requests": 1, **sizes}


@dataclass(slots=True)
class Outcome:
    """answer: the whole text the model would write; written: what it did write."""

    job: Job
    answer: str
    begun: list[int]
    written: Written
    cached: int

    @property
    def prompt(self) -> int:
        return len(self.job.ids)

    @property
    def output(self) -> int:
        return len(self.written.pieces)


class BadRequest(Exception):
    """status, code and message of a refusal."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code
