from __future__ import annotations

import sys
import threading

import pytest
import torch

from preread.app.storing import room_for
from preread.store.room import KEPT, KEPT_BYTES, Recycled
from preread.store.tiers.base import fresh


class Counted:
    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, nbytes: int) -> memoryview:
        self.made.append(nbytes)
        return fresh(nbytes)


def test_memory_that_nobody_holds_is_given_again() -> None:
    room = Recycled(made := Counted())
    for n in (1000, 900, 1000, 600):
        view = room(n)
        assert len(view) == n and not view.readonly and view.format == "B"
        view[:] = bytes(n)
        del view
    assert made.made == [1000]
    room(400)  # less than half: too small for it
    assert made.made == [1000, 400]


def test_memory_that_somebody_holds_is_never_given_again() -> None:
    """As a view, a slice of a slice, a tensor on a slice, or a reshaped one."""
    room = Recycled(made := Counted())
    held: list[object] = []
    for n, keep in enumerate(
        (
            lambda view: view,
            lambda view: view[8:16][2:4],
            lambda view: torch.frombuffer(view[256:512], dtype=torch.float32),
            lambda view: torch.frombuffer(view, dtype=torch.uint8).view(2, 512)[1],
            lambda view: memoryview(view).cast("H"),
        ),
        1,
    ):
        view = room(1024)
        view[:] = bytes([n]) * 1024
        held.append(keep(view))
        del view
    for _ in range(3 * KEPT):
        room(1024)[:] = bytes(1024)
    values = [bytes(memoryview(h.numpy() if isinstance(h, torch.Tensor) else h)) for h in held]  # type: ignore[call-overload]
    assert [set(value) for value in values] == [{n} for n in range(1, 6)]
    assert len(made.made) == 6
    held.clear()
    for _ in range(10):
        room(1024)
    assert len(made.made) == 6


@pytest.mark.parametrize("other", [-1, 1])
def test_a_python_that_counts_otherwise_gives_no_held_memory(
    monkeypatch: pytest.MonkeyPatch, other: int
) -> None:
    """Since 3.14 a call borrows its argument: one reference less than before."""
    count = sys.getrefcount

    def counted(buffer: object) -> int:
        return count(buffer) - 1 + other

    monkeypatch.setattr(sys, "getrefcount", counted)
    room = Recycled(made := Counted())
    held = room(100)
    held[:] = b"x" * 100
    for _ in range(3):
        room(100)[:] = bytes(100)
    assert bytes(held) == b"x" * 100 and len(made.made) == 2


def test_without_a_lock_around_the_interpreter_nothing_is_given_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    room = Recycled(made := Counted())
    for _ in range(3):
        room(100)
    assert len(made.made) == 3


def test_the_room_of_a_cpu_is_ordinary_memory() -> None:
    view = room_for("cpu")(100)
    view[:] = bytes(100)
    assert len(view) == 100


def test_no_more_is_remembered_than_said() -> None:
    room = Recycled(made := Counted(), kept=3)
    held = [room(100) for _ in range(10)]
    assert len(made.made) == 10
    held.clear()
    held = [room(100) for _ in range(10)]
    assert len(made.made) == 17


def test_large_values_are_not_remembered_without_bound() -> None:
    room = Recycled()
    for nbytes in (1 << 20, 200 << 20, 99 << 20, 1 << 30, 1 << 20):
        assert len(room(nbytes)) == nbytes
        assert room._nbytes() <= KEPT_BYTES
    assert room._nbytes() == 1 << 20


def test_threads_never_share() -> None:
    room, wrong = Recycled(), []

    def work(n: int) -> None:
        for _ in range(300):
            view = room(512)
            view[:] = bytes([n]) * 512
            if bytes(view) != bytes([n]) * 512:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
