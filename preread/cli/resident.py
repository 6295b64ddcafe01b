"""`preread up`: a process that keeps a model loaded and answers `ask` over a Unix socket at home.

The protocol is in client.py. The socket is 0600 and its folder belongs to the user; whoever can
open it may ask.
"""

from __future__ import annotations

import contextlib
import fcntl
import json as json_module
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from preread.cli.asking import AskRequest, answer_events
from preread.cli.client import SOCKET, address, call, settings_of, status
from preread.cli.events import Event
from preread.cli.output import emit, fail, note
from preread.cli.target import resolve
from preread.cli.warming import WarmRequest, warm_events
from preread.config import Config, load_config, local_model
from preread.errors import PrereadError
from preread.home import check_writable

if TYPE_CHECKING:
    from preread.app import Engine

LOCK, LOG = "resident.lock", "resident.log"


def up_command(model: str, *, idle: float, foreground: bool, json: bool) -> None:
    settings = load_config()
    model = local_model(model or settings.model.model)
    running = status(settings.home, 1.0)
    if running is None:
        if foreground:
            serve(model, idle or settings.resident.idle_s)
            return
        running = _spawn(settings, model, idle)
    if running["model"] != model:
        raise PrereadError(
            f"a resident process holds model {running['model']} already (pid {running['pid']}).",
            hint="Stop it first: preread down",
        )
    if json:
        emit(running)
    else:
        print(
            f"up: {running['model']} (pid {running['pid']}), "
            f"leaves after {running['idle_s']:.0f} s idle"
        )


def _spawn(settings: Config, model: str, idle: float) -> dict[str, Any]:
    check_writable(settings.home)
    command = [
        sys.executable,
        "-m",
        "preread.cli.resident",
        model,
        str(idle or settings.resident.idle_s),
    ]
    with (settings.home / LOG).open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    while child.poll() is None:
        if (running := status(settings.home, 1.0)) is not None:
            return running
        time.sleep(0.05)
    tail = (settings.home / LOG).read_text(errors="replace").strip().splitlines()[-1:]
    raise PrereadError(
        f"the resident process ended at once: {' '.join(tail)}", hint=f"See {settings.home / LOG}"
    )


def down_command(*, json: bool) -> None:
    settings = load_config()
    events = call(settings.home, {"op": "stop"}, 1.0)
    stopped = bool(list(events or ()))  # all of them: the home is free for the next `up`
    if json:
        emit({"stopped": stopped})
    else:
        print("down" if stopped else "no resident process was running")


class Resident(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """One engine, one thread per connection (the engine batches them itself)."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, engine: Engine, idle_s: float) -> None:
        home = engine.config.home
        self.engine, self.idle_s = engine, idle_s
        self.settings = settings_of(engine.config)
        self.model = engine.config.model.model
        self.started = self.last_used = time.monotonic()
        self.running = 0
        self.guard = threading.Lock()
        (home / SOCKET).unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            super().__init__(address(home), Handler)
        finally:
            os.umask(mask)

    def service_actions(self) -> None:
        """Called by serve_forever between polls: leave when idle."""
        with self.guard:
            idle = not self.running and time.monotonic() - self.last_used > self.idle_s
        if idle:
            threading.Thread(target=self.shutdown, daemon=True).start()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        with self.guard:
            self.running += 1
        try:
            yield
        finally:
            with self.guard:
                self.running -= 1
                self.last_used = time.monotonic()


class Handler(socketserver.StreamRequestHandler):
    """One message, its events, the end."""

    server: Resident

    def handle(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            try:
                for event in self._events(json_module.loads(self.rfile.readline())):
                    self.wfile.write(json_module.dumps(event, ensure_ascii=False).encode() + b"\n")
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as exc:
                code = exc.exit_code if isinstance(exc, PrereadError) else 1
                error = {"type": type(exc).__name__, "message": str(exc), "exit_code": code}
                self.wfile.write(json_module.dumps({"error": error}).encode() + b"\n")

    def _events(self, message: dict[str, Any]) -> Iterator[Event]:
        if message["op"] == "stop":
            yield {"stopping": True}
            self.server.shutdown()
            threading.Event().wait()  # the client sees the connection close when the process ends
        elif message["op"] == "status":
            yield {
                "pid": os.getpid(),
                "model": self.server.model,
                "idle_s": self.server.idle_s,
                "uptime_s": round(time.monotonic() - self.server.started, 1),
            }
        else:
            with self.server.busy():
                make = WarmRequest if message["op"] == "warm" else AskRequest
                yield from self._serve(make(**message["request"]), message["settings"])

    def _serve(
        self, request: AskRequest | WarmRequest, settings: dict[str, Any]
    ) -> Iterator[Event]:
        server = self.server
        model, store = settings["model"], settings["store"]
        asked = (request.target, request.cwd, request.model, (model["model"], store["codec"]))
        target, model["model"], store["codec"] = resolve(server.engine.catalog, *asked)
        if settings["model"]["model"] != server.model:
            yield {"declined": f"it holds {server.model}"}
        elif settings != server.settings:
            yield {"declined": "it was started with other settings (preread down; preread up)"}
        elif isinstance(request, WarmRequest):
            yield from warm_events(server.engine, replace(request, target=target))
        else:
            yield from answer_events(server.engine, replace(request, target=target))


def serve(model: str, idle_s: float) -> None:
    """Run the resident process until it is stopped or idle. One per home (file lock)."""
    from preread.app import open as open_engine

    settings = load_config()
    check_writable(settings.home)
    with (settings.home / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note("another resident process has this home")
            return
        with open_engine(model) as engine, Resident(engine, idle_s) as server:
            try:
                server.serve_forever(poll_interval=0.2)
            finally:
                (settings.home / SOCKET).unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        serve(sys.argv[1], float(sys.argv[2]))
    except BaseException as error:
        sys.exit(fail(error, json=False))
