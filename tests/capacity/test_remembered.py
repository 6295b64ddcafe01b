"""Only a memory: it never fails, and two writers lose nothing."""

from __future__ import annotations

import fcntl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from preread.capacity.remembered import MOST, Remembered


def test_what_is_kept_is_found_by_machine_and_model(home: Path) -> None:
    memory = Remembered(home)
    assert memory.limit("box", "aa") == 0 and memory.rates("box", "float32") is None
    memory.keep_limit("box", "aa", 8, {"date": "today"})
    memory.keep_limit("box", "aa", 16, {})
    memory.keep_rates("box", "float32", 1e12, 2e10)
    assert memory.limit("box", "aa") == 16
    assert memory.limit("box", "bb") == memory.limit("other", "aa") == 0
    assert Remembered(home).rates("box", "float32") == (1e12, 2e10)
    assert memory.rates("box", "bfloat16") is None


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        "{}",
        '{"rates": 1, "limits": {}}',
        '{"rates": {"box | x": []}, "limits": {"box | aa": {"sequences": -1}}}',
        '{"rates": {"box | x": {"flops": 0, "bandwidth": 1}}, "limits": {"box | aa": 3}}',
        '{"rates": {}, "limits": {"box | aa": {"sequences": "9"}}}',
    ],
)
def test_damage_is_forgotten(home: Path, damage: str) -> None:
    memory = Remembered(home)
    home.mkdir()
    memory.path.write_text(damage)
    assert memory.limit("box", "aa") == 0 and memory.rates("box", "x") is None
    memory.keep_limit("box", "aa", 4, {})
    assert memory.limit("box", "aa") == 4


def test_writers_at_once_lose_nothing(home: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: Remembered(home).keep_limit("box", f"m{i}", i + 1, {}), range(24)))
    assert [Remembered(home).limit("box", f"m{i}") for i in range(24)] == list(range(1, 25))
    assert not list(home.glob(".capacity-*"))


def test_the_oldest_are_forgotten(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST >= 100
    monkeypatch.setattr("preread.capacity.remembered.MOST", 2)
    for name in "abac":
        Remembered(home).keep_limit("box", name, 1, {})
    assert [Remembered(home).limit("box", name) for name in "abc"] == [1, 0, 1]


def test_a_home_that_cannot_be_written_costs_the_memory_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    Remembered(blocked).keep_limit("box", "aa", 4, {})
    assert Remembered(blocked).limit("box", "aa") == 0


def test_a_lock_that_nobody_gives_back_costs_the_memory_only(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that was stopped while it wrote; measurements are kept on the way of a request."""
    monkeypatch.setattr("preread.capacity.remembered.LOCK_S", 0.1)
    memory = Remembered(home)
    memory.keep_measured("tier disk", [[1.0]])
    with memory.path.with_suffix(".lock").open("a") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        memory.keep_measured("tier disk", [[2.0]])
        assert memory.measured("tier disk") == [[1.0]] and "another process" in caplog.text
    memory.keep_measured("tier disk", [[2.0]])
    assert memory.measured("tier disk") == [[2.0]]
