"""Prefixes in memory: found by their tokens, forgotten by last use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preread.foreign.cache import KV
from preread.foreign.memory import LEAST, Memory


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def text(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, n).astype(np.int32)


def kv_of(tokens: np.ndarray) -> KV:
    """KV that says which tokens it is of."""
    values = torch.from_numpy(tokens.astype(np.float32))[None, None, :, None]
    return KV(((values, values + 0.5),), len(tokens))


def put(memory: Memory, tokens: np.ndarray, *, regime: int = 0, lease_s: float = 0.0) -> bool:
    return memory.put(tokens, regime, kv_of(tokens), lease_s)


def found(memory: Memory, tokens: np.ndarray, regime: int = 0) -> int:
    """How many tokens were found; they are those asked for."""
    if (kv := memory.longest(tokens, regime)) is None:
        return 0
    assert kv.layers[0][0].flatten().tolist() == tokens[: kv.tokens].tolist()
    return kv.tokens


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> Memory:
    return Memory(1000, 1, clock)


def test_the_longest_beginning_of_any(memory: Memory):
    book = text(300)
    other = np.concatenate((book[:200], text(50, 1)))
    assert found(memory, book) == 0
    put(memory, book)
    put(memory, other)
    assert found(memory, book) == 300
    assert found(memory, other[:230]) == 230
    assert found(memory, np.concatenate((book[:250], text(50, 2)))) == 250
    assert found(memory, text(50, 3)) == 0


def test_a_short_find_is_not_worth_it(memory: Memory):
    book = text(100)
    put(memory, book)
    assert found(memory, np.concatenate((book[: LEAST - 1], text(50, 1)))) == 0
    assert found(memory, np.concatenate((book[:LEAST], text(50, 1)))) == LEAST
    assert found(memory, book[:3]) == 3  # all there is


def test_regimes_are_apart(memory: Memory):
    book = text(100)
    put(memory, book, regime=1)
    assert found(memory, book, 0) == 0 and found(memory, book, 1) == 100


def test_what_another_begins_with_lies_once(memory: Memory):
    book = text(300)
    for n in (100, 300, 200):
        put(memory, book[:n])
    assert memory.nbytes == 300 and found(memory, book) == 300


def test_the_oldest_goes_first(memory: Memory, clock: Clock):
    books = [text(400, seed) for seed in range(3)]
    for book in books[:2]:
        put(memory, book)
        clock.now += 1
    assert found(memory, books[0]) == 400  # a use
    clock.now += 1
    put(memory, books[2])
    assert [found(memory, book) for book in books] == [400, 0, 400]
    assert memory.nbytes == 800


def test_a_lease_holds_as_long_as_it_says(memory: Memory, clock: Clock):
    books = [text(400, seed) for seed in range(4)]
    put(memory, books[0], lease_s=10)
    clock.now = 1
    put(memory, books[1])
    put(memory, books[2])
    assert [found(memory, book) for book in books[:2]] == [400, 0]
    clock.now = 20  # used at 1: the lease has run out
    assert found(memory, books[2]) == 400
    put(memory, books[3])
    assert [found(memory, book) for book in books] == [0, 0, 400, 400]


def test_the_budget_is_above_leases(memory: Memory):
    books = [text(400, seed) for seed in range(3)]
    for book in books:
        put(memory, book, lease_s=1000)
    assert memory.nbytes <= memory.budget


def test_what_is_larger_than_all_is_not_kept(memory: Memory):
    assert not memory.fits(1001) and not put(memory, text(1001))
    assert memory.nbytes == 0


def test_clearing_leaves_what_is_leased(memory: Memory):
    leased, free = text(100), text(100, 1)
    put(memory, leased, lease_s=5)
    put(memory, free)
    memory.clear()
    assert (found(memory, leased), found(memory, free)) == (100, 0)
