"""A TCP proxy that misbehaves on purpose: put it before any server, a Redis, an HTTP store, a
resident engine, and see what its client does."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

_PIECE = 1 << 16


class Act(StrEnum):
    """What happens to bytes from the server once those that were let through are used up."""

    PASS = "pass"  # nothing: all of them go through
    HANG = "hang"  # kept, and sent when the manner changes: a late reply
    RESET = "reset"  # the connection is reset (RST)
    CLOSE = "close"  # the connection is closed in good order (FIN): the reply is cut short
    FLIP = "flip"  # one bit of the next byte is turned over; the rest goes through


@dataclass(frozen=True, slots=True)
class Manner:
    """act: after `after` more bytes from the server, of all connections together. rate: bytes per
    second and connection, 0 for as fast as they come. delay_s: before every piece."""

    act: Act = Act.PASS
    after: int = 0
    rate: float = 0.0
    delay_s: float = 0.0


class Proxy:
    """Listens on a free port of 127.0.0.1 and forwards to `target`, which need not be up. tls: what
    to speak to clients, the target is spoken to in plain. accepted: connections so far. A context
    manager; leaving it ends all connections."""

    def __init__(self, target: tuple[str, int], *, tls: ssl.SSLContext | None = None) -> None:
        self.accepted = 0
        self._target = target
        self._tls = tls
        self._manner = Manner()
        self._left = 0  # bytes until it acts
        self._changed = threading.Condition()
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]
        self._thread(self._accept)

    def behave(self, manner: Manner | None = None) -> None:
        """From now on; well, without a manner."""
        with self._changed:
            self._manner = manner or Manner()
            self._left = self._manner.after
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            sockets = tuple(self._sockets)
        for sock in sockets:
            _end(sock)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- threads: one that accepts, two per connection --

    def _thread(self, work: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                self.accepted += 1
                self._thread(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(None)
        server: socket.socket | None = None
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            server = socket.create_connection(self._target)
        except OSError:  # the target is down, or the client does not speak TLS
            client.close()
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._changed:
            self._sockets |= {client, server}
            closed = self._closed
        if closed:
            _end(client)
            _end(server)
        busy = threading.Lock()  # a TLS connection bears one thread at a time
        forward = threading.Thread(target=_forward, args=(client, server, busy), daemon=True)
        forward.start()
        try:
            self._return(server, client, busy)
        except OSError:
            _end(client)
        _end(server)
        forward.join()
        with self._changed:
            self._sockets -= {client, server}
        client.close()
        server.close()

    def _return(self, server: socket.socket, client: socket.socket, busy: threading.Lock) -> None:
        """Bytes from the server, in the manner of the moment."""
        while piece := server.recv(_PIECE):
            while piece:
                manner, allowed = self._allowed(len(piece))
                if manner is None:
                    return _end(client)
                if allowed:
                    for slice_ in self._paced(piece[:allowed], manner):
                        with busy:
                            client.sendall(slice_)
                    piece = piece[allowed:]
                elif manner.act is Act.RESET:
                    linger = struct.pack("ii", 1, 0)  # closing it is now a reset
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    return _end(client, socket.SHUT_RD)
                elif manner.act is Act.CLOSE:
                    return _end(client)
                else:
                    piece = bytes([piece[0] ^ 1]) + piece[1:]
                    self.behave()
        return _end(client)

    def _allowed(self, wanted: int) -> tuple[Manner | None, int]:
        """How many bytes may go now; waits while the manner is to hang. None: the proxy closes."""
        with self._changed:
            while not self._closed:
                if self._manner.act is Act.PASS:
                    return self._manner, wanted
                if self._left or self._manner.act is not Act.HANG:
                    allowed = min(wanted, self._left)
                    self._left -= allowed
                    return self._manner, allowed
                self._changed.wait()
        return None, 0

    def _paced(self, piece: bytes, manner: Manner) -> Iterator[bytes]:
        step = max(int(manner.rate / 100), 1) if manner.rate else len(piece)
        for start in range(0, len(piece), step):
            pause = manner.delay_s + (step / manner.rate if manner.rate else 0.0)
            with self._changed:
                if pause and self._changed.wait_for(lambda: self._closed, pause):
                    return
            yield piece[start : start + step]


def _forward(client: socket.socket, server: socket.socket, busy: threading.Lock) -> None:
    poll = select.poll()
    poll.register(client, select.POLLIN)
    with contextlib.suppress(OSError):
        while True:
            if not (isinstance(client, ssl.SSLSocket) and client.pending()):
                poll.poll()
            with busy:
                piece = client.recv(_PIECE)
            if not piece:
                break
            server.sendall(piece)
    _end(server)


def _end(sock: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """Whoever waits for it wakes up."""
    with contextlib.suppress(OSError):
        sock.shutdown(how)
