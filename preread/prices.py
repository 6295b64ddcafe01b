"""What backends ask for tokens, where they ask for money. Imports nothing of the package."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prices:
    """What a backend asks for a million tokens of each kind, in one currency.

    written: of computed tokens that the backend keeps for later requests and bills apart (a cache
    write); equal to `computed` where it makes no difference. as_of: the day the table was read.
    """

    computed: float
    cached: float
    written: float
    output: float
    currency: str = "USD"
    as_of: str = ""

    def of(self, computed: int, cached: int, output: int, written: int = 0) -> float:
        """The money for so many tokens; `written` are part of `computed`."""
        at_once = (computed - written) * self.computed + written * self.written
        return (at_once + cached * self.cached + output * self.output) / 1e6

    def most(self, tokens: int, output: int) -> float:
        """The money for so many at most: none cached, all written."""
        return (tokens * max(self.computed, self.written) + output * self.output) / 1e6
