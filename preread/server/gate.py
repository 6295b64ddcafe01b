"""How many requests are under way, and no more than may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from preread.server.refusal import busy


class Gate:
    """Invariant: `inside` is the number of those that have entered and not left, at most `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.inside = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Raises Refusal where there is no room: who waits here would wait without end."""
        if self.inside >= self.most:
            raise busy(429, f"{self.most} requests are under way already. Ask again in a moment.")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
