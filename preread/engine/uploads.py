"""The way of loaded KV to the device: a stream of its own, so that no box waits for a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import torch

EACH = 4  # boxes behind one event
KEPT = 2  # events, with all before them, under way after `ease`: memory is held for as many boxes

Behind: TypeAlias = Callable[[], None]


class Uploads:
    """Copies to one device. What is copied from stays as it is until it was copied: whoever holds
    memory that is used again (store.room) need not know. One thread at a time, perhaps a caller's
    own, whose current stream and device are these from the first copy until `settle`: to change
    them for each costs as much as a copy.
    """

    def __init__(self, device: torch.device) -> None:
        """A device that works by itself gets a stream; elsewhere a copy is made at once."""
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            # Of the streams that torch gives in turn, one that no step is captured on.
            self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._under_way: deque[tuple[torch.cuda.Event, list[torch.Tensor]]] = deque()
        self._given: list[torch.Tensor] = []  # sources behind which no event is yet
        self._before: tuple[int, torch.cuda.Stream] | None = None  # current in that thread

    @property
    def waits(self) -> bool:
        """Whether `copy` returns only when it was copied."""
        return self._stream is None

    def begin(self) -> None:
        """What steps that were launched before do to the places comes before what follows."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.default_stream(self._device))

    def copy(self, write: Callable[[], None], source: torch.Tensor) -> None:
        """`write` copies from `source`, without waiting for the device."""
        if self._stream is None:
            write()
            return
        if self._before is None:
            here = torch.cuda.current_device(), torch.cuda.current_stream(self._device)
            torch.cuda.set_stream(self._stream)
            self._before = here
        self._given.append(source)  # before: what failed half-way may be under way, too
        write()
        if len(self._given) == EACH:
            self._under_way.append((self._stream.record_event(), self._given))
            self._given = []

    def ease(self) -> None:
        """Wait until no more than a few boxes are under way."""
        while len(self._under_way) > KEPT:
            self._under_way[0][0].synchronize()
            self._under_way.popleft()  # not before: memory that nobody holds is read to again

    def behind(self) -> Behind:
        """Call what this returns, in any thread: what its current stream does from then on comes
        after all that was given to `copy` until now."""
        if self._stream is None:
            return _at_once
        event, device = self._stream.record_event(), self._device
        return lambda: torch.cuda.current_stream(device).wait_event(event)

    def settle(self) -> None:
        """Wait until all of it was copied, and nothing more is written."""
        if self._stream is None:
            return
        if self._before is not None:
            device, stream = self._before
            torch.cuda.set_stream(stream)
            torch.cuda.set_device(device)
            self._before = None
        self._stream.synchronize()
        self._under_way.clear()
        self._given = []


def _at_once() -> None:
    pass


class InTurn(Uploads):
    """Copies that take their turn among the steps, in whatever way the memory has: of a group of
    devices, each of which copies its part."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
