"""The thread that owns the engine and its device. Everybody else sends it work between steps."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from preread.engine.engine import Engine
from preread.engine.layers import Layers
from preread.errors import Cancelled, EngineError, GroupLost
from preread.tokens.batch import News, TokenBatch

T = TypeVar("T")
Listener = Callable[[News | Exception], None]  # called from the engine thread; must not block

log = logging.getLogger("preread.engine")


class EngineThread:
    """Runs an engine. All methods may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._listeners: dict[int, Listener] = {}
        self._stopping = False
        self._lock = threading.Lock()  # nothing is put into the inbox after its last reading
        self._end: Exception | None = None
        self._layers: Layers | None = None  # what the engine waits for in a step
        self._thread = threading.Thread(target=self._run, name="preread-engine", daemon=True)
        self._thread.start()

    def send(self, work: Callable[[Engine], T]) -> Future[T]:
        """Run `work` on the engine thread between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._end is not None:
                    raise self._end
                future.set_result(work(self._engine))
            except Exception as exc:
                future.set_exception(exc)

        with self._lock:
            if self._end is None:
                self._inbox.put(run)
            else:
                future.set_exception(self._end)
        self._disturb()
        return future

    def stream(self, layers: Layers, work: Callable[[Engine], T]) -> Future[T]:
        """`send`, of work that waits for these layers: not any longer once something else is
        sent."""

        def run(engine: Engine) -> T:
            self._layers = layers
            try:
                if not self._inbox.empty():  # sent before it could disturb
                    layers.quit()
                return work(engine)
            finally:
                self._layers = None

        return self.send(run)

    def call(self, work: Callable[[Engine], T]) -> T:
        """`send`, and wait."""
        return self.send(work).result()

    def listen(
        self, engine: Engine, batch: TokenBatch, listener: Listener, *, prepared: bool = False
    ) -> int:
        """Submit a batch, from within `send`; its news go to the listener until `forget`. prepared:
        see Engine.submit."""
        job = engine.submit(batch, prepared=prepared)
        self.hear(job, listener)
        return job

    def hear(self, job: int, listener: Listener) -> None:
        """The same of a job that was submitted before, and of which no news was told."""
        self._listeners[job] = listener

    def forget(self, job: int) -> None:
        """Cancel what still runs of a job; its listener is not called again."""

        def work(engine: Engine) -> None:
            self._listeners.pop(job, None)
            engine.cancel(job)

        self.send(work)

    def stop(self) -> None:
        """End the thread; listeners get Cancelled. Idempotent."""
        self._stopping = True
        self._inbox.put(lambda: None)
        self._disturb()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take_mail()
                if not self._engine.idle or self._engine.has_news:
                    for job, news in self._engine.step().items():
                        self._tell(job, news)
            end: Exception = Cancelled("The engine was closed.", hint="Open another one.")
        except GroupLost as exc:
            end = exc
        except Exception as exc:  # a bug: say so to everybody instead of hanging
            log.exception("the engine thread failed")
            end = EngineError(f"The engine failed: {exc!r}.", hint="Open another one.")
        with self._lock:
            self._end = end
        self._engine.end(end)
        for listener in tuple(self._listeners.values()):
            with contextlib.suppress(RuntimeError):  # its event loop is closed
                listener(end)
        self._drain()

    def _disturb(self) -> None:
        """Something was sent: nobody else's load is waited for."""
        if (layers := self._layers) is not None:
            layers.quit()

    def _tell(self, job: int, news: News) -> None:
        if (listener := self._listeners.get(job)) is None:
            return
        try:
            listener(news)
        except Exception:  # its event loop is gone: nobody reads this job any more
            log.warning("nobody takes the results of job %d: cancelled", job, exc_info=True)
            del self._listeners[job]
            self._engine.cancel(job)

    def _take_mail(self) -> None:
        """Do what was sent; wait for it when there is nothing else to do."""
        engine = self._engine
        if engine.stalled or (engine.idle and not engine.has_news):
            self._wait(engine.wait_s)
        self._drain()

    def _wait(self, most_s: float | None) -> None:
        """For the next thing that was sent, at most so long, and do it."""
        try:
            work = self._inbox.get() if most_s is None else self._inbox.get(timeout=most_s)
        except queue.Empty:
            return
        work()

    def _drain(self) -> None:
        while True:
            try:
                self._inbox.get_nowait()()
            except queue.Empty:
                return
