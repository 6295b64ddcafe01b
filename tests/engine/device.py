"""A device that works by itself, and as late as it may: what is copied to it is copied when
somebody waits for it. The streams of torch.cuda stand in for CUDA's; its memory is the CPU's."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch

from preread.engine.arena import Arena
from preread.engine.kv import ALL, KV, EightBitKV
from preread.engine.parts import Parts
from preread.engine.uploads import Uploads

CUDA = torch.device("cuda")


class Event:
    """Done when all is done that its stream was given before."""

    def __init__(self, stream: Stream) -> None:
        self.done = False
        self._stream = stream

    def synchronize(self) -> None:
        self._stream.run(lambda: self.done)


class Stream:
    """Does what it was given, in order, when that is waited for; eager: at once."""

    _lock: ClassVar = threading.RLock()  # one for all, as streams wait for each other

    def __init__(self, device: object = None, *, priority: int = 0, eager: bool = False) -> None:
        self._eager = eager
        self._todo: deque[Callable[[], object]] = deque()

    def give(self, work: Callable[[], object]) -> None:
        with self._lock:
            self._todo.append(work)
        if self._eager:
            self.synchronize()

    def run(self, until: Callable[[], bool]) -> None:
        with self._lock:
            while self._todo and not until():
                self._todo.popleft()()
            assert until()

    def record_event(self) -> Event:
        event = Event(self)
        self.give(lambda: setattr(event, "done", True))
        return event

    def wait_event(self, event: Event) -> None:
        self.give(event.synchronize)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        self.run(lambda: not self._todo)


class Device:
    """wrong: what must not have happened, as found in any thread. copies: given to it so far."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.wrong: list[str] = []
        self.copies = 0
        self.steps = Stream(eager=True)  # a CPU's
        self.before: Callable[[], object] = lambda: None  # each copy, in the thread that gives it
        self._here = threading.local()
        self._filled = KV.fill
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "default_stream", lambda device: self.steps)
        patch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        patch.setattr(torch.cuda, "set_stream", self._set)
        patch.setattr(torch.cuda, "current_device", lambda: getattr(self._here, "device", 0))
        patch.setattr(torch.cuda, "set_device", lambda n: setattr(self._here, "device", n))
        patch.setattr(Parts, "uploads", lambda parts, device: Watched(self))
        patch.setattr(Arena, "slots", lambda arena, runs, cell: None)
        patch.setattr(KV, "fill", lambda kv, *args, **options: self._fill(kv, *args, **options))
        patch.setattr(KV, "select", self._alone(KV.select))
        for name in ("fill", "select"):
            patch.setattr(EightBitKV, name, self._after(getattr(EightBitKV, name)))

    @property
    def current(self) -> Stream:
        return getattr(self._here, "stream", self.steps)

    def _set(self, stream: Stream) -> None:
        self._here.stream, self._here.device = stream, 1  # where it is

    def copies_from(self, source: torch.Tensor) -> None:
        """What this thread gives it next."""
        self._here.source = weakref.ref(source)

    def check(self) -> None:
        assert not self.wrong, self.wrong

    def _fill(
        self, kv: KV, at: slice, x: torch.Tensor, layers: slice = ALL, heads: slice = ALL,
        *, wait: bool = True,
    ) -> None:  # fmt: skip
        there = kv.values[layers, :, heads, at]
        if wait:
            self.current.synchronize()
            there.copy_(x)
            return
        then, source, part = x.clone(), self._here.source, (x.shape, x.stride(), x.storage_offset())

        def copy() -> None:  # holds nothing of what it is copied from: so does a device
            if (held := source()) is None:
                self.wrong.append("memory was let go of before it was copied")
            elif not torch.equal(as_bytes(held.as_strided(*part)), as_bytes(then)):
                self.wrong.append("memory was used again before it was copied")
            there.copy_(then)

        self.before()
        self.copies += 1
        self.current.give(copy)

    def _after(self, call: Callable[..., object]) -> Callable[..., object]:
        """Waits for what its stream was given."""

        def waits(*args: object, **options: object) -> object:
            self.before()
            self.copies += 1
            self.current.synchronize()
            return call(*args, **options)

        return waits

    def _alone(self, call: Callable[..., object]) -> Callable[..., object]:
        def reads(*args: object, **options: object) -> object:
            if self.current is not self.steps:
                self.wrong.append("KV is read on the stream that copies")
            return call(*args, **options)

        return reads


class Watched(Uploads):
    """Sees to it that nothing is copied outside a load."""

    def __init__(self, device: Device) -> None:
        super().__init__(CUDA)
        self._watch = device
        self._loads = False

    def begin(self) -> None:
        self._loads = True
        super().begin()

    def copy(self, write: Callable[[], None], source: torch.Tensor) -> None:
        self._watch.copies_from(source)
        super().copy(write, source)
        if not self._loads:
            self._watch.wrong.append("something was copied when the load was over")

    def settle(self) -> None:
        super().settle()
        self._loads = False
        if self._under_way or self._given:
            self._watch.wrong.append("it has settled, and something is under way")
        if self._watch.current is self._stream:
            self._watch.wrong.append("who settled has not its own stream")


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)
