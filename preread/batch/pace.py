"""How many rows run at once, found while running."""

from __future__ import annotations

FIRST, LEAST, MOST = 256, 64, 8192  # rows of a block
BLOCKS = 3  # full blocks in flight, so that there is no gap between them
TASKS = 64  # blocks in flight, however small
BLOCK_S = 1.5  # that a block takes on its own: a stop waits for so many blocks
CHARACTERS = 1 << 25  # of the texts of a block


class Pace:
    """rows: how many a full block holds. It grows while blocks come back early and shrinks when
    they take long."""

    def __init__(self) -> None:
        self.rows = FIRST

    @property
    def ahead(self) -> int:
        """Rows in flight from which no more are sent."""
        return BLOCKS * self.rows

    def ended(self, rows: int, seconds: float) -> None:
        """A block of so many rows came back, after the others that were in flight."""
        aim = BLOCKS * BLOCK_S
        if rows >= self.rows and seconds < aim / 2:
            self.rows = min(self.rows * 2, MOST)
        elif seconds > 2 * aim:
            self.rows = max(self.rows // 2, LEAST)
