"""Many texts between the same two ends, encoded in parallel batches of the library's own.

Where no added token can begin in foreign text or look at its neighbours, the ends are cut the same
way whatever stands between them: that is worked out once, and each text is one run. Else, and for
texts that the batch refuses, each is encoded by itself: `Tokenizer.encode` is the slow twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from preread.models.tokenizer import At, Span, Tokenizer

PROBE = "x"


class _Ends(NamedTuple):
    """What is the same for all texts: ids of the pieces before and after the run in which a text
    stands, and what belongs to that run on either side; at: where it begins."""

    first: list[int]
    left: str
    right: str
    last: list[int]
    at: At


def encode_many(
    tokenizer: Tokenizer,
    before: Sequence[Span],
    texts: Sequence[str],
    after: Sequence[Span],
    at: At = At.START,
) -> list[list[int]]:
    """tokenizer.encode([*before, Span(text), *after], at) of each text. Raises RequestError for a
    text that is not valid Unicode."""
    if tokenizer.cuts_alone and len(texts) > 1 and all(texts):
        ends = _ends(tokenizer, before, after, at)
        runs = tokenizer.encode_runs([f"{ends.left}{t}{ends.right}" for t in texts], ends.at)
        if runs is not None:
            return [[*ends.first, *ids, *ends.last] for ids in runs]
    return [tokenizer.encode([*before, Span(text), *after], at) for text in texts]


def _ends(tokenizer: Tokenizer, before: Sequence[Span], after: Sequence[Span], at: At) -> _Ends:
    spans = [*before, Span(PROBE), *after]
    text, place = "".join(s.text for s in spans), sum(len(s.text) for s in before)
    pieces = tokenizer.split(spans)
    run = next(p for p in pieces if p.start <= place < p.end)

    def ids(lo: int, hi: int) -> list[int]:
        found: list[int] = []
        for piece in pieces:
            if lo <= piece.start and piece.end <= hi:
                part = [Span(text[piece.start : piece.end])]
                where = at if piece.start == 0 else At.INNER
                found += [piece.token] if piece.token is not None else tokenizer.encode(part, where)
        return found

    return _Ends(
        ids(0, run.start),
        text[run.start : place],
        text[place + len(PROBE) : run.end],
        ids(run.end, len(text)),
        at if run.start == 0 else At.INNER,
    )
