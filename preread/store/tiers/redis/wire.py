"""RESP on one socket: requests go out, replies come back in the same order, large ones straight
into the reader's buffer.

Version 2 of https://redis.io/docs/latest/develop/reference/protocol-spec/. A request or reply that
was interrupted (timeout, reset, a reply that makes no sense) closes the connection for good: what
is left of it on the wire is never taken for the next reply.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from preread.store.tiers.base import MAX_VALUE_BYTES, Room, fresh
from preread.store.tiers.redis.streams import Buffer, Deadline, Stream

Argument: TypeAlias = bytes | tuple[Buffer, ...]  # a tuple's parts are sent as one argument
Command: TypeAlias = Sequence[Argument]

_SMALL = 4096  # shorter parts are copied together, longer ones sent from where they lie
_DEEPEST = 8  # arrays in arrays; a map of slots has three
_INBOX = 16 * 1024  # bytes received at once where no buffer of the reader's is known yet


class ServerError(NamedTuple):
    """An error reply; a value here, as in a pipeline it concerns its own request alone.
    code: its first word ("MOVED", "OOM", "ERR"); text: the rest."""

    code: str
    text: str


class TooLong(NamedTuple):
    """More than MAX_VALUE_BYTES, says its reply. Not read, and the connection is closed."""

    nbytes: int


# A status or an integer, a value, an error, an array, nothing ("no such key").
Reply: TypeAlias = "int | bytes | memoryview | ServerError | TooLong | list[Reply] | None"


class ProtocolError(Exception):
    """Bytes that are no reply: not a Redis server, or one that was cut off."""


class Connection:
    """Requests and replies on one stream. One thread at a time. owed: replies that were asked for
    and not read yet; closed: nothing more can be asked."""

    def __init__(self, stream: Stream) -> None:
        self.owed = 0
        self.closed = False
        self._stream = stream
        self._bytes = bytearray(_INBOX)
        self._inbox = memoryview(self._bytes)  # the same, to receive into
        self._start = self._end = 0  # of what was received and not taken yet

    def send(self, commands: Sequence[Command], deadline: Deadline) -> None:
        """Ask. One reply per command is owed from now on. Raises OSError."""
        try:
            self.owed += len(commands)
            self._stream.send(encode(commands), deadline)
        except BaseException:
            self.close()
            raise

    def reply(self, deadline: Deadline, room: Room = fresh) -> Reply:
        """The next reply; a bulk value lies in a buffer from `room`. Raises OSError, ProtocolError,
        and what `room` raises."""
        assert self.owed > 0, "nothing was asked"
        try:
            reply = self._reply(deadline, room)
        except BaseException:
            self.close()
            raise
        self.owed -= 1
        return reply

    def idle(self) -> bool:
        """Whether another may use it: every reply was read and nothing else has come, the end of
        the connection included."""
        read = not self.owed and self._start == self._end
        return not self.closed and read and self._stream.quiet()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            with contextlib.suppress(OSError):
                self._stream.close()

    def __del__(self) -> None:
        self.close()

    # -- receiving --

    def _reply(self, deadline: Deadline, room: Room, depth: int = 0) -> Reply:
        line = self._line(deadline)
        kind, text = line[:1], line[1:]
        if kind == b"$":
            return self._bulk(_integer(text), deadline, room)
        if kind == b":":
            return _integer(text)
        if kind == b"+":
            return text
        if kind == b"-":
            code, _, rest = text.decode("utf-8", "replace").partition(" ")
            return ServerError(code, rest)
        if kind == b"*" and depth < _DEEPEST:
            return [self._reply(deadline, room, depth + 1) for _ in range(_integer(text))]
        raise ProtocolError(f"a reply begins with {kind!r}")

    def _line(self, deadline: Deadline) -> bytes:
        """Up to CR LF, which are taken, too."""
        while (at := self._bytes.find(b"\r\n", self._start, self._end)) < 0:
            self._more(deadline)
        line = bytes(self._inbox[self._start : at])
        self._start = at + 2
        return line

    def _more(self, deadline: Deadline) -> None:
        pending = self._end - self._start
        if self._start:
            self._inbox[:pending] = bytes(self._inbox[self._start : self._end])
            self._start, self._end = 0, pending
        if pending == _INBOX:
            raise ProtocolError("a line without an end")
        got = self._stream.receive(self._inbox[self._end :], deadline, whole=False)
        if not got:
            raise ConnectionResetError("the server closed the connection")
        self._end += got

    def _bulk(self, nbytes: int, deadline: Deadline, room: Room) -> memoryview | TooLong | None:
        if nbytes < 0:
            return None
        if nbytes > MAX_VALUE_BYTES:
            self.close()
            return TooLong(nbytes)
        view = room(nbytes)
        assert view.nbytes == nbytes, "room gave another size"
        early = min(nbytes, self._end - self._start)
        view[:early] = self._inbox[self._start : self._start + early]
        self._start += early
        if early < nbytes:
            got = self._stream.receive(view[early:], deadline, whole=True)
            if early + got < nbytes:
                raise ConnectionResetError("the server closed the connection within a value")
        if self._line(deadline):
            raise ProtocolError("a value longer than it said")
        return view


def encode(commands: Sequence[Command]) -> list[Buffer]:
    """What goes over the wire, as few buffers; long parts are not copied."""
    out: list[Buffer] = []
    small = bytearray()
    for command in commands:
        small += b"*%d\r\n" % len(command)
        for argument in command:
            if isinstance(argument, bytes):
                small += b"$%d\r\n%b\r\n" % (len(argument), argument)
                continue
            views = [memoryview(part).cast("B") for part in argument]
            small += b"$%d\r\n" % sum(len(view) for view in views)
            for view in views:
                if len(view) < _SMALL:
                    small += view
                else:
                    out += [bytes(small), view]
                    small.clear()
            small += b"\r\n"
    return [*out, bytes(small)]


def _integer(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise ProtocolError(f"{text[:40]!r} is no number") from None
