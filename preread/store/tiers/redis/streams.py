"""Bytes to and from a server, plain or encrypted, never beyond a deadline."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias

Buffer: TypeAlias = bytes | memoryview

_PARTS = 512  # most buffers of one sendmsg; Linux takes 1024
_TLS_RECORD = 1 << 18  # bytes handed to TLS at once, so that the deadline is looked at in between


class Deadline:
    """A moment that no operation waits beyond."""

    __slots__ = ("_at",)

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then. Raises TimeoutError when there are none."""
        if (left := self._at - time.monotonic()) <= 0:
            raise TimeoutError("no answer within its deadline")
        return left


class Stream(Protocol):
    """Bytes to and from a server. Raises OSError, TimeoutError at the deadline."""

    def send(self, parts: Sequence[Buffer], deadline: Deadline) -> None: ...

    def receive(self, view: memoryview, deadline: Deadline, *, whole: bool) -> int:
        """Fill the view, all of it or what there is (at least one byte). 0: the other end left."""
        ...

    def quiet(self) -> bool:
        """Nothing has come, not even the end."""
        ...

    def close(self) -> None: ...


class PlainStream:
    """TCP. The kernel keeps the deadline: one call receives a whole value, however it trickles."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)  # a Python timeout would make every receive return early
        self._sock = sock

    def send(self, parts: Sequence[Buffer], deadline: Deadline) -> None:
        rest = [memoryview(part).cast("B") for part in parts if len(part)]
        while rest:
            self._limit(socket.SO_SNDTIMEO, deadline)
            with _timeout():
                sent = self._sock.sendmsg(rest[:_PARTS])
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if sent:
                rest[0] = rest[0][sent:]

    def receive(self, view: memoryview, deadline: Deadline, *, whole: bool) -> int:
        done = 0
        flags = socket.MSG_WAITALL if whole else 0
        while done < len(view):
            self._limit(socket.SO_RCVTIMEO, deadline)
            with _timeout():
                got = self._sock.recv_into(view[done:], 0, flags)
            done += got
            if not got or not whole:
                break
        return done

    def quiet(self) -> bool:
        return _quiet(self._sock)

    def close(self) -> None:
        self._sock.close()

    def _limit(self, option: int, deadline: Deadline) -> None:
        micros = max(int(deadline.left() * 1e6), 1)
        seconds = struct.pack("@ll", micros // 1_000_000, micros % 1_000_000)  # struct timeval
        self._sock.setsockopt(socket.SOL_SOCKET, option, seconds)


class TlsStream:
    """TLS over TCP: records are decrypted into the reader's buffer."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock

    def send(self, parts: Sequence[Buffer], deadline: Deadline) -> None:
        for part in parts:
            view = memoryview(part).cast("B")
            while len(view):
                self._sock.settimeout(deadline.left())
                view = view[self._sock.send(view[:_TLS_RECORD]) :]

    def receive(self, view: memoryview, deadline: Deadline, *, whole: bool) -> int:
        done = 0
        while done < len(view):
            self._sock.settimeout(deadline.left())
            got = self._sock.recv_into(view[done:])
            done += got
            if not got or not whole:
                break
        return done

    def quiet(self) -> bool:
        return _quiet(self._sock)

    def close(self) -> None:
        self._sock.close()


def _quiet(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    """A socket whose kernel timeout has passed says EAGAIN."""
    try:
        yield
    except BlockingIOError:
        raise TimeoutError("no answer within its deadline") from None
