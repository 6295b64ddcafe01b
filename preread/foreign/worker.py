"""The thread that owns the model. Work comes as generators, which it moves on in turn, one step
each, so that a question does not wait for the end of a long reading or a large batch."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any, TypeVar

from preread.errors import Cancelled
from preread.foreign.reader import Steps

T = TypeVar("T")
AT_ONCE = 4  # pieces of work that hold a cache take turns; the others wait until one lets go


class _Task:
    def __init__(self, steps: Steps[Any], gone: threading.Event) -> None:
        self.steps = steps
        self.gone = gone
        self.future: Future[Any] = Future()

    def move(self) -> bool | None:
        """One step -> whether it holds a cache; None when that was the last."""
        try:
            if self.gone.is_set():
                raise Cancelled("Nobody waits for this any more.", hint="Ask again.")
            return next(self.steps)
        except StopIteration as end:
            self.future.set_result(end.value)
        except Exception as exc:
            self.end(exc)
        return None

    def end(self, exc: Exception) -> None:
        self.steps.close()
        self.future.set_exception(exc)


class ModelThread:
    """All methods may be called from any thread."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._waiting: deque[_Task] = deque()
        self._running: deque[_Task] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="preread-model", daemon=True)
        self._thread.start()

    def run(self, steps: Steps[T], gone: threading.Event) -> Future[T]:
        """Run work to its end; with `gone` set it is given up (Cancelled)."""
        task = _Task(steps, gone)
        with self._wake:
            if self._stopping:
                task.end(_closed())
            else:
                self._waiting.append(task)
                self._wake.notify()
        return task.future

    def stop(self) -> None:
        """End the thread; what it has not finished is Cancelled. Idempotent."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        while self._admit():
            task = self._running.popleft()
            if (holds := task.move()) is not None:
                (self._running if holds else self._waiting).append(task)
        for task in (*self._running, *self._waiting):
            task.end(_closed())

    def _admit(self) -> bool:
        """Have something to run; False when it is over."""
        with self._wake:
            while not (self._waiting or self._running or self._stopping):
                self._wake.wait()
            while self._waiting and len(self._running) < AT_ONCE:
                self._running.append(self._waiting.popleft())
            return not self._stopping


def _closed() -> Cancelled:
    return Cancelled("The engine was closed.", hint="Open another one.")
