"""The client half of the resident process: nothing heavy is imported.

One JSON object a line, both ways. The client sends {"op": "ask" | "warm" | "status" | "stop", …}
and reads events until the connection closes.
"""

from __future__ import annotations

import json as json_module
import os
import socket
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from preread.cli.output import note
from preread.config import Config, load_config

SOCKET = "resident.sock"
Event = dict[str, Any]


def call(home: Path, message: dict[str, Any], timeout: float) -> Generator[Event] | None:
    """Send one message; None when nobody listens. Events are read lazily."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(address(home))
        connection.sendall(json_module.dumps(message).encode() + b"\n")
    except OSError:
        connection.close()
        return None
    connection.settimeout(None)
    return _lines(connection)


def _lines(connection: socket.socket) -> Generator[Event]:
    with suppress(OSError, ValueError), connection, connection.makefile("rb") as stream:
        for line in stream:  # a process that is killed ends its lines, also in the middle of one
            yield json_module.loads(line)


def address(home: Path) -> str:
    """Unix socket paths are limited to ~107 bytes; a longer home is reached through its own fd."""
    path = str(home / SOCKET)
    if len(path.encode()) < 100:
        return path
    return f"/proc/self/fd/{os.open(home, os.O_PATH)}/{SOCKET}"


def settings_of(config: Config) -> dict[str, Any]:
    """What must be equal for two processes to answer alike."""
    settings = {name: asdict(getattr(config, name)) for name in ("model", "store", "context")}
    for knob in ("key", "tiers", "catalog"):  # may hold secrets, which no message needs to tell
        digest = sha256(settings["store"][knob].encode("utf-8", "surrogateescape")).hexdigest()
        settings["store"][knob] = digest
    return settings


def resident_events(request: dict[str, Any], op: str = "ask") -> Generator[Event] | None:
    """Events of an `ask` or `warm` (fields of AskRequest, WarmRequest) by the resident process, or
    None when none runs that would answer as this process does."""
    config = load_config()
    message = {"op": op, "settings": settings_of(config), "request": request}
    events = call(config.home, message, config.resident.connect_timeout_s)
    first = next(events, None) if events is not None else None
    if events is None or first is None:
        return None
    if "declined" in first:
        note(f"answering without the resident process: {first['declined']}")
        return None
    return _chain(first, events)


def _chain(first: Event, rest: Generator[Event]) -> Generator[Event]:
    with closing(rest):
        yield first
        yield from rest


def status(home: Path, timeout: float) -> dict[str, Any] | None:
    """pid, model and uptime of the running process, or None."""
    events = call(home, {"op": "status"}, timeout)
    return next(events, None) if events is not None else None
