"""Which blocks of the bank speak of the same thing, so that no document states two of them."""

import re
from collections.abc import Sequence

import numpy as np

from training.bank import Block

THRESHOLD = 0.2
"""Cosine of the word weights above which two policies are taken for one topic."""
_SUFFIX = re.compile(r"(?:ing|ed|es|s|ly)$")


def words(block: Block) -> list[str]:
    """Rough stems of all words of a block; those of questions and of the name count more."""
    asked = " ".join(q.text.source for q in block.questions)
    stated = " ".join(t.source for t in block.statements)
    name = " ".join([block.name.replace("_", " ")] * 3)
    text = re.sub(r"\{\w+\}", " ", f"{asked} {asked} {stated} {name}".lower())
    return [_SUFFIX.sub("", word) for word in re.findall(r"[a-z]{3,}", text)]


def alike(blocks: Sequence[Block], threshold: float = THRESHOLD) -> dict[str, frozenset[str]]:
    """For each block the names of the others on the same topic."""
    bags = [words(block) for block in blocks]
    index = {
        word: place for place, word in enumerate(sorted({word for bag in bags for word in bag}))
    }
    counts = np.zeros((len(blocks), len(index)), np.float32)
    for row, bag in enumerate(bags):
        for word in bag:
            counts[row, index[word]] += 1
    rarity = np.log(len(blocks) / (1 + (counts > 0).sum(0)))
    weights = np.log1p(counts) * np.maximum(rarity, 0)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True) + 1e-6
    close = weights @ weights.T > threshold
    names = [block.name for block in blocks]
    found: dict[str, set[str]] = {name: set() for name in names}
    for row, other in zip(*np.nonzero(close), strict=True):
        if row != other:
            found[names[row]].add(names[other])
    return {name: frozenset(others) for name, others in found.items()}
