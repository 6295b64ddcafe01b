"""Labels as a trie of tokens, so that one forward scores them all.

Node 0 is the end of the prompt; every other node is a label's token that some label continues. Only
these inner nodes are computed; an edge is one (row, target token) pair whose log-probability is
read off that row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from preread.errors import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from preread.types import Float32Array, Int32Array, Int64Array

MOST_TOKENS = 1 << 16  # of all labels: each of its beginnings is held
MOST_NODES = 1 << 12  # every node may see every other


@dataclass(frozen=True, slots=True)
class LabelTrie:
    """tokens, depth: [m] of the inner nodes below the root (depth 1 is a label's first token).
    mask: [m, m], True where node i sees node j (itself and its ancestors). edge_node, edge_token:
    [e], the node an edge leaves (0 is the root) and its token. paths: per label, its edges.
    longer: per label, the labels that begin with it, without those that begin with another such
    one."""

    tokens: Int32Array
    depth: Int64Array
    mask: NDArray[np.bool_]
    edge_node: Int64Array
    edge_token: Int64Array
    paths: tuple[tuple[int, ...], ...]
    longer: tuple[tuple[int, ...], ...]

    def score(self, edges: Float32Array) -> Float32Array:
        """Log-probability of each label, [n, labels], from those of the edges, [n, e].

        P(label) is the product over its tokens; nothing need follow. Where one label begins with
        another ("no", "not stated"), the shorter keeps only the probability that none of the
        longer ones follows, P(short) - sum P(longer), so that the labels exclude one another and
        the mass never exceeds 1. Tokens decide, not letters: labels whose texts share a beginning
        but not their tokens are apart already.
        """
        whole = np.stack([edges[:, list(p)].sum(1, dtype=np.float64) for p in self.paths], axis=1)
        out = whole.copy()
        for label, longer in enumerate(self.longer):
            if longer:
                with np.errstate(invalid="ignore", divide="ignore"):
                    taken = np.exp(whole[:, list(longer)] - whole[:, label, None]).sum(1)
                    out[:, label] += np.log(np.maximum(1.0 - taken, 0.0))
        scores: Float32Array = np.nan_to_num(out, nan=-np.inf, neginf=-np.inf).astype(np.float32)
        return scores


def label_trie(labels: Sequence[Sequence[int]]) -> LabelTrie:
    """Raises RequestError for an empty label, two labels of the same tokens, and more than
    MOST_TOKENS or MOST_NODES."""
    keys = [tuple(int(t) for t in label) for label in labels]
    _check(keys)
    inner = sorted({key[:n] for key in keys for n in range(1, len(key))}, key=lambda k: (len(k), k))
    number = {(): 0, **{key: i + 1 for i, key in enumerate(inner)}}
    edges = sorted({key[:n] for key in keys for n in range(1, len(key) + 1)})
    edge_number = {key: i for i, key in enumerate(edges)}
    mask = np.eye(len(inner), dtype=bool)
    for i, key in enumerate(inner):
        if len(key) > 1:
            mask[i] |= mask[number[key[:-1]] - 1]  # parents come first
    return LabelTrie(
        tokens=np.array([key[-1] for key in inner], np.int32),
        depth=np.array([len(key) for key in inner], np.int64),
        mask=mask,
        edge_node=np.array([number[key[:-1]] for key in edges], np.int64),
        edge_token=np.array([key[-1] for key in edges], np.int64),
        paths=tuple(tuple(edge_number[k[:n]] for n in range(1, len(k) + 1)) for k in keys),
        longer=_longer(keys),
    )


def _check(keys: Sequence[tuple[int, ...]]) -> None:
    first: dict[tuple[int, ...], int] = {}
    for i, key in enumerate(keys):
        if not key or first.setdefault(key, i) != i:
            what = "is empty" if not key else f"has the same tokens as label {first[key]}"
            raise RequestError(f"labels: label {i} {what}.", hint="Give labels that differ.")
    tokens, nodes = sum(map(len, keys)), dict[tuple[int, int], int]()
    for key in keys if tokens <= MOST_TOKENS else ():
        node = 0
        for token in key[:-1]:
            node = nodes.setdefault((node, token), len(nodes) + 1)
    if tokens > MOST_TOKENS or len(nodes) > MOST_NODES:
        raise RequestError(
            f"labels: {tokens:,} tokens in all.",
            hint=f"Give fewer or shorter ones: at most {MOST_TOKENS:,}, and {MOST_NODES:,} that "
            "others follow.",
        )


def _longer(keys: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Sorted, what begins with a label stands right behind it."""
    longer: list[list[int]] = [[] for _ in keys]
    begun: list[int] = []  # labels of which each begins with the one before it
    for i in sorted(range(len(keys)), key=keys.__getitem__):
        while begun and keys[i][: len(keys[begun[-1]])] != keys[begun[-1]]:
            begun.pop()
        if begun:
            longer[begun[-1]].append(i)
        begun.append(i)
    return tuple(tuple(sorted(some)) for some in longer)
