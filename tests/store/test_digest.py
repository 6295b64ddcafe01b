from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from preread.store import digest as module
from preread.store.digest import LARGE, digest, unlocked


@pytest.mark.parametrize(
    "n", [0, 1, 16, 17, 128, 129, 240, 241, 1024, 1025, LARGE - 1, LARGE, 10**6]
)
@pytest.mark.parametrize("offset", [0, 1, 7])
def test_it_is_the_packages_own(n: int, offset: int) -> None:
    value = memoryview(os.urandom(n + offset))[offset:]
    assert digest(value) == xxhash.xxh3_128_digest(value)
    if (fast := unlocked()) is not None:
        assert fast(value) == xxhash.xxh3_128_digest(value)


@given(st.binary(max_size=2000))
def test_of_anything(value: bytes) -> None:
    fast = unlocked() or digest
    assert fast(memoryview(value)) == xxhash.xxh3_128_digest(value)


def test_read_only_and_writable_memory_alike() -> None:
    value = os.urandom(LARGE + 5)
    assert digest(memoryview(value)) == digest(memoryview(bytearray(value)))


def test_many_threads_at_once() -> None:
    values = [os.urandom(LARGE * (n + 1)) for n in range(6)]
    got: dict[int, bytes] = {}

    def work(n: int) -> None:
        for _ in range(20):
            got[n] = digest(memoryview(values[n]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {n: xxhash.xxh3_128_digest(value) for n, value in enumerate(values)}


@pytest.mark.parametrize("broken", ["no library", "no function", "another function"])
def test_where_there_is_none_the_package_is_asked(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def wrong(at: int, n: int) -> object:
        return SimpleNamespace(low=n, high=0)

    def library(path: str) -> object:
        if broken == "no library":
            raise OSError("not to be opened")
        functions = {"XXH3_128bits_dispatch": wrong} if broken == "another function" else {}
        return SimpleNamespace(_name=path, **functions)

    value = memoryview(os.urandom(2 * LARGE))
    monkeypatch.setattr(module.ctypes, "CDLL", library)
    unlocked.cache_clear()
    try:
        assert unlocked() is None
        assert digest(value) == xxhash.xxh3_128_digest(value)
    finally:
        unlocked.cache_clear()
