"""The way of loaded KV to the device: a stream of its own, so that no box waits for a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import torch

KEPT = 8  # boxes under way after `ease`: as much memory is held for them

Behind: TypeAlias = Callable[[], None]


class Uploads:
    """Copies to one device. What is copied from stays as it is until it was copied: whoever holds
    memory that is used again (store.room) need not know. One thread at a time."""

    def __init__(self, device: torch.device) -> None:
        """A device that works by itself gets a stream; elsewhere a copy is made at once."""
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._under_way: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()

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
        with torch.cuda.stream(self._stream):
            write()
            event = self._stream.record_event()
        self._under_way.append((event, source))

    def ease(self) -> None:
        """Wait until no more than a few boxes are under way."""
        while len(self._under_way) > KEPT:
            self._under_way.popleft()[0].synchronize()

    def behind(self) -> Behind:
        """Call what this returns, in any thread: what its current stream does from then on comes
        after all that was given to `copy` until now."""
        if self._stream is None:
            return _at_once
        event, device = self._stream.record_event(), self._device
        return lambda: torch.cuda.current_stream(device).wait_event(event)

    def settle(self) -> None:
        """Wait until all of it was copied, and nothing more is written."""
        if self._stream is not None:
            self._stream.synchronize()
        self._under_way.clear()


def _at_once() -> None:
    pass


class InTurn(Uploads):
    """Copies that take their turn among the steps, in whatever way the memory has: of a group of
    devices, each of which copies its part."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
