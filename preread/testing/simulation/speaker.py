"""What the simulated provider wants of a dialect, and where the dialects put a key."""

from __future__ import annotations

from typing import Any, Protocol

from preread.testing.simulation.job import Job, Outcome


class Speaker(Protocol):
    """One dialect. pattern: its limit headers; stamps: their resets are times of day."""

    pattern: str
    stamps: bool

    def job(self, body: dict[str, Any], now: float) -> Job: ...

    def learned(self, out: Outcome, now: float) -> None:
        """It was answered."""
        ...

    def reply(self, out: Outcome) -> dict[str, Any]: ...

    def error(self, status: int, code: str, message: str) -> dict[str, Any]: ...

    def amounts(self, job: Job, cached: int) -> dict[str, int]:
        """What a request takes from the limits when it comes in."""
        ...

    def unused(self, out: Outcome) -> dict[str, int]:
        """What of that is given back when it is answered."""
        ...


def key_of(headers: Any, query: Any) -> str:
    """The key of a request, in any dialect's place; "" if there is none."""
    bearer = headers.get("Authorization", "").removeprefix("Bearer ")
    return str(
        bearer or headers.get("x-api-key") or headers.get("x-goog-api-key") or query.get("key", "")
    )
