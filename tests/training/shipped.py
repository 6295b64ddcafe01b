"""The shipped bank, read once for all tests of a process: that takes seconds."""

from functools import lru_cache

from training.bank import Bank
from training.make_tokenizer import open_bank


@lru_cache
def bank() -> Bank:
    """The bank, notes and pages."""
    return open_bank()
