"""From an address to a connection that is logged in, within one deadline."""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from preread.store.tiers.redis.streams import Deadline, PlainStream, Stream, TlsStream
from preread.store.tiers.redis.wire import Command, Connection, ServerError


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    @property
    def local(self) -> bool:
        """Whether it is on this machine, as far as its address says."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Login:
    """How to be let in; the same for all servers of a tier. ca, cert, key: PEM files (TLS); without
    a ca the system's are trusted."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    database: int = 0
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    insecure: bool = False  # believe any certificate

    def context(self) -> ssl.SSLContext:
        """Raises OSError and ssl.SSLError for files that cannot be used."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class LoginRefused(Exception):
    """Wrong or missing password, no such user or database."""


def dial(address: Address, login: Login, deadline: Deadline) -> Connection:
    """Connect, encrypt, AUTH, SELECT. Raises OSError, ProtocolError, LoginRefused."""
    try:
        connection = Connection(_stream(address, login, deadline))
    except ValueError as exc:  # a name that can be none, sent by a server of a cluster
        raise OSError(str(exc)) from exc
    try:
        _log_in(connection, login, deadline)
    except BaseException:
        connection.close()
        raise
    return connection


def _stream(address: Address, login: Login, deadline: Deadline) -> Stream:
    sock = _connected(address, deadline)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if not login.tls:
            return PlainStream(sock)
        sock.settimeout(deadline.left())
        return TlsStream(login.context().wrap_socket(sock, server_hostname=address.host))
    except BaseException:
        sock.close()
        raise


def _log_in(connection: Connection, login: Login, deadline: Deadline) -> None:
    commands: list[Command] = []
    if login.password:
        names = [login.username.encode()] if login.username else []
        commands.append([b"AUTH", *names, login.password.encode()])
    if login.database:
        commands.append([b"SELECT", b"%d" % login.database])
    if not commands:
        return
    connection.send(commands, deadline)
    replies = [connection.reply(deadline) for _ in commands]
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, ServerError):
            # A server that does not know AUTH quotes what it was given: the password.
            text = "AUTH was refused" if command[0] == b"AUTH" else reply.text
            raise LoginRefused(f"{reply.code} {text}")


def _connected(address: Address, deadline: Deadline) -> socket.socket:
    error: OSError = OSError(f"no address of {address.host}")
    for family, place in _resolved(address, deadline):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(deadline.left())
            sock.connect(place)
            return sock
        except OSError as exc:
            sock.close()
            error = exc
    raise error


def _resolved(address: Address, deadline: Deadline) -> list[tuple[int, Any]]:
    """Families and places of a name. The system's resolver knows no deadline, so it works in a
    thread that is left behind when it is late."""
    answers: queue.SimpleQueue[list[tuple[int, Any]] | OSError] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            answers.put([(family, place) for family, _, _, _, place in found])
        except OSError as exc:
            answers.put(exc)
        except ValueError as exc:  # a name that can be none, such as one with an empty part
            answers.put(OSError(str(exc)))

    if _literal(address.host):
        resolve()
    else:
        threading.Thread(target=resolve, name="preread-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=deadline.left())
    except queue.Empty:
        raise TimeoutError(f"no address of {address.host} within the deadline") from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def _literal(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
            return True
        except OSError:
            continue
    return False
