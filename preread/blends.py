"""The vocabulary of approximate prefixes: how one is put together, and what every answer on one
says. Imports nothing of the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

BlendBy = Literal["first", "deviation"]


@dataclass(frozen=True, slots=True)
class Blend:
    """That KV of a leading message is put together from parts that were read alone: approximate,
    and never to be mistaken for exact KV of the same tokens.

    parts: leading messages as each is read alone; the whole begins as one of them does. share: of
    the tokens taken from the others, how many are computed again with everything before them in
    view; by: which: the "first" of each stretch (EPIC, arXiv 2410.15332), or those whose KV differs
    most at the second layer ("deviation": CacheBlend, arXiv 2405.16444)."""

    parts: tuple[str, ...]
    share: float
    by: BlendBy = "first"

    def __str__(self) -> str:
        which = "first of each part" if self.by == "first" else "most deviating"
        return f"{self.share:.0%} computed again ({which})".replace("%", " %")


class Agreed(NamedTuple):
    """How far answers on a blend agree with those on exact KV, as measured. tokens: compared, of
    questions and exact answers; equal: the share at which both would write the same; divergence:
    mean Kullback-Leibler divergence from the exact model in nats; same: answers equal token by
    token, of `questions`; right_exact, right: answers that are right, of the `graded`."""

    tokens: int
    equal: float
    divergence: float
    questions: int
    same: int
    graded: int = 0
    right_exact: int = 0
    right: int = 0

    def __str__(self) -> str:
        said = (
            f"of {self.questions} questions {self.same} answered the same, greedy token equal at "
            f"{self.equal:.1%} of {self.tokens:,}, mean KL {self.divergence:.2e} nats"
        ).replace("%", " %")
        if self.graded:
            said += f"; right: {self.right} of {self.graded}, exact {self.right_exact}"
        return said


@dataclass(frozen=True, slots=True)
class Approximate:
    """That an answer stands on a blend. target: the names that were joined; agreed: with the exact
    composition, None where nobody measured it for these documents, this model and this blend."""

    target: str
    blend: Blend
    agreed: Agreed | None = None

    def __str__(self) -> str:
        measured = f"agreement with the exact composition: {self.agreed}"
        if self.agreed is None:
            measured = f"agreement not measured: preread verify --approximate {self.target}"
        return f"approximate, {self.blend}; {measured}"

    def to_json(self) -> dict[str, Any]:
        """As `ask --json` and `verify --json` say it."""
        agreed = None if self.agreed is None else self.agreed._asdict()
        return {"share": self.blend.share, "by": self.blend.by, "agreement": agreed}
