"""The way to the device, where there is none: what is copied at once is waited for by nobody; and
with one that copies as late as it may."""

from __future__ import annotations

import ctypes

import torch

from preread.engine.uploads import EACH, KEPT, InTurn, Uploads
from preread.store.room import Recycled
from tests.engine.device import CUDA, Device, Event


def test_where_the_host_copies_it_is_done_when_it_returns():
    for uploads in (Uploads(torch.device("cpu")), InTurn()):
        source, there = torch.ones(3), torch.zeros(3)
        assert uploads.waits
        uploads.begin()
        uploads.copy(lambda: there.copy_(source), source)  # noqa: B023
        assert torch.equal(there, source)
        source.zero_()
        uploads.behind()()
        uploads.ease()
        uploads.settle()
        assert there.sum() == 3


def test_memory_is_not_given_again_while_a_copy_from_it_is_waited_for(monkeypatch):
    """Other threads read ahead meanwhile, to memory that nobody holds."""
    Device(monkeypatch)
    uploads, room, count = Uploads(CUDA), Recycled(), 8 * KEPT * EACH
    there = torch.zeros(count, 64, dtype=torch.uint8)
    done = Event.synchronize

    def wait(event: Event) -> None:
        ahead = [room(64) for _ in range(4)]  # of who reads meanwhile
        for view in ahead:
            view[:] = bytes([255]) * 64
        done(event)

    monkeypatch.setattr(Event, "synchronize", wait)

    def write(n: int, at: int) -> None:
        """As a device does: from an address, of which it holds nothing."""
        stream = torch.cuda.current_stream(CUDA)
        stream.give(lambda: ctypes.memmove(there[n].data_ptr(), at, 64))  # type: ignore[attr-defined]

    for n in range(count):
        source = torch.frombuffer(room(64), dtype=torch.uint8)
        source.fill_(n)
        uploads.copy(lambda n=n, at=source.data_ptr(): write(n, at), source)  # type: ignore[misc]
        del source
        uploads.ease()
        assert len(uploads._under_way) <= KEPT
    uploads.settle()
    assert torch.equal(there, torch.arange(count, dtype=torch.uint8)[:, None].expand(-1, 64))
