"""The way of loaded KV to the device: a stream of its own, so that no box waits for a step."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch

EACH = 4  # boxes behind one event
KEPT = 2  # events, with all before them, under way after `ease`: memory is held for as many boxes

Behind: TypeAlias = Callable[[], None]


class Uploads:
    """Copies to one device. What is copied from stays as it is until it was copied: whoever holds
    memory that is used again (store.room) need not know. Any number of threads copy; this stream is
    their current one from their first copy on, as to change it for each costs as much as a copy:
    of the thread that calls `settle`, which may be a caller's own, until then; of the others, which
    only read, for good.
    """

    def __init__(self, device: torch.device) -> None:
        """A device that works by itself gets a stream; elsewhere a copy is made at once."""
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._under_way: deque[tuple[torch.cuda.Event, list[torch.Tensor]]] = deque()
        self._given: list[torch.Tensor] = []  # sources behind which no event is yet
        self._own = threading.local()  # before: device and stream that were current in this thread

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
        here = torch.cuda.current_stream(self._device)
        if here != self._stream:
            self._own.before = torch.cuda.current_device(), here
            torch.cuda.set_stream(self._stream)
        try:
            write()
        finally:  # what failed half-way may be under way, too
            with self._lock:  # after: an event covers what was given before it
                self._given.append(source)
                if len(self._given) >= EACH:
                    self._under_way.append((self._stream.record_event(), self._given))
                    self._given = []

    def ease(self) -> None:
        """Wait until no more than a few boxes are under way."""
        while True:
            with self._lock:
                if len(self._under_way) <= KEPT:
                    return
                event, held = self._under_way.popleft()
            event.synchronize()
            del held  # not before

    def behind(self) -> Behind:
        """Call what this returns, in any thread: what its current stream does from then on comes
        after all that was given to `copy` until now."""
        if self._stream is None:
            return _at_once
        event, device = self._stream.record_event(), self._device
        return lambda: torch.cuda.current_stream(device).wait_event(event)

    def settle(self) -> None:
        """Wait until all of it was copied. Nobody copies meanwhile, and nothing more is written."""
        if self._stream is None:
            return
        if (before := self._own.__dict__.pop("before", None)) is not None:
            device, stream = before
            torch.cuda.set_stream(stream)
            torch.cuda.set_device(device)
        self._stream.synchronize()
        with self._lock:
            self._under_way.clear()
            self._given = []


@dataclass(frozen=True, slots=True)
class Away:
    """Slots of one box on the device, for threads that read and verify: see store.arriving.Slots.
    write: what takes its KV there; shape, dtype: of that."""

    uploads: Uploads
    write: Callable[[torch.Tensor], None]
    shape: tuple[int, ...]
    dtype: torch.dtype
    away: ClassVar[bool] = True

    def pieces(self) -> tuple[memoryview, ...]:
        raise AssertionError("a device's memory is nobody's to read to")

    def fill(self, payload: memoryview) -> None:
        kv = torch.frombuffer(payload, dtype=self.dtype).view(self.shape)
        self.uploads.copy(lambda: self.write(kv), kv)

    def ease(self) -> None:
        self.uploads.ease()


def _at_once() -> None:
    pass


class InTurn(Uploads):
    """Copies that take their turn among the steps, in whatever way the memory has: of a group of
    devices, each of which copies its part."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
