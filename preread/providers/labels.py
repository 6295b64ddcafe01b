"""Labels from the most likely first tokens, where a server names those and no others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from preread.backend import Choose, LogLikelihood, Work


def ambiguous(labels: Sequence[str]) -> str:
    """Why first tokens cannot tell these labels apart; "" if they may."""
    for a in labels:
        for b in labels:
            if a != b and b.startswith(a):
                return f"label {a!r} is the beginning of {b!r}; the first token cannot tell them"
    return ""


def beyond_first_tokens(work: Work) -> str:
    """Why a server that names the likely first tokens alone cannot do this; "" if it may."""
    if isinstance(work, LogLikelihood):
        return "it does not score given continuations; use `choose`"
    if isinstance(work, Choose):
        return ambiguous(work.labels)
    return "it cannot be told to go on after the end" if work.ignore_eos else ""


def by_first_token(labels: Sequence[str], tops: Iterable[tuple[str, float]]) -> list[float] | str:
    """log P(label) from (token text, log-probability) of the most likely first tokens, or why not.

    A token speaks for a label if it is the label or how the label alone begins; a leading space is
    the tokenizer's, not the answer's. A label that is not among them keeps -inf: the mass shows
    how much of the probability the named ones hold.
    """
    found = [-math.inf] * len(labels)
    for token, log in tops:
        if math.isnan(log):
            return f"The server gives {token!r} no probability."
        text = token.strip()
        if not text:
            continue
        fits = [i for i, label in enumerate(labels) if label.strip().startswith(text)]
        exact = [i for i in fits if labels[i].strip() == text]
        fits = exact or fits
        if len(fits) > 1:
            named = " and ".join(repr(labels[i]) for i in fits[:2])
            return f"Labels {named} begin with the same token {text!r}. Give labels that differ."
        for i in fits:
            found[i] = _add(found[i], log)
    if all(log == -math.inf for log in found):
        return "None of the labels is among the most likely first tokens the server names."
    return found


def _add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
