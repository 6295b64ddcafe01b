"""The connection of the Redis catalog: a deadline on every call, errors that say what to do, and
messages as hints."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry

from preread.errors import ConfigError, HomeError
from preread.store.tiers.urls import TierUrl

DEADLINE_S = 2.0
PORT = 6379
# All that the client raises; that of a cluster has a root of its own.
FAILURES = (exceptions.RedisError, exceptions.RedisClusterException, OSError)
LOOK_S = 0.2  # how soon a wait notices that it was closed
Answer: TypeAlias = Any  # what a server replied: bytes, int, list or dict of them


class Client:
    """place: the URL for messages, without credentials; ping: the command that asks it whether it
    is there. Thread-safe. Connects at the first call;
    one that fails is not repeated: a script that may have run must not run twice."""

    def __init__(self, url: TierUrl) -> None:
        """Raises ConfigError."""
        self.place = url.place
        self.deadline_s = url.seconds("deadline", DEADLINE_S)
        self._url = url
        self._cluster = url.scheme.endswith("+cluster")
        if len(url.hosts) > 1 and not self._cluster:
            raise ConfigError(
                f"{url.place}: a catalog is one server or one cluster, not a list.",
                hint="Name one of them, or a cluster: redis+cluster://…",
            )
        if not (url.path or "0").isdecimal() or (self._cluster and url.path not in ("", "0")):
            raise ConfigError(
                f"{url.place}: {url.path!r} is no database.",
                hint="A cluster has only 0." if self._cluster else "Write a number, as in /0.",
            )
        first = url.hosts[0]
        self.ping = f"redis-cli -h {first.name.strip('[]')} -p {first.port or PORT} ping"
        self._lock = threading.Lock()
        self._opened: Any = None

    def run(self, script: str, keys: Sequence[str], values: Sequence[object]) -> Answer:
        """A script; sent whole, since a server that has forgotten it would cost a second try."""
        with self.border():
            return self.client.eval(script, len(keys), *keys, *values)

    def ask(self, commands: Sequence[tuple[object, ...]]) -> list[Answer]:
        """Commands on keys of one tag, in one round trip."""
        with self.border():
            if len(commands) == 1:
                return [self.client.execute_command(*commands[0])]
            pipeline = self.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute())

    @property
    def client(self) -> Any:
        if self._opened is None:
            opened = self._connect()  # asks a cluster: nobody is to wait for somebody else's try
            with self._lock:
                self._opened = self._opened or opened
            if opened is not self._opened:
                opened.close()
        return self._opened

    def _connect(self) -> Any:
        url = self._url
        options: dict[str, Any] = {
            "username": url.user or None,
            "password": url.password or None,
            "socket_timeout": self.deadline_s,
            "socket_connect_timeout": self.deadline_s,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        if url.scheme.startswith("rediss"):
            options |= {
                "ssl": True,
                "ssl_ca_certs": url.text("ca") or None,
                "ssl_certfile": url.text("cert") or None,
                "ssl_keyfile": url.text("key") or None,
                "ssl_cert_reqs": "none" if url.flag("insecure") else "required",
                "ssl_check_hostname": not url.flag("insecure"),
            }
        nodes = [(host.name.strip("[]"), host.port or PORT) for host in url.hosts]
        if self._cluster:
            node: Any = ClusterNode  # without types
            startup = [node(host, port) for host, port in nodes]
            return RedisCluster(startup_nodes=startup, require_full_coverage=False, **options)
        ((host, port),) = nodes
        return redis.Redis(host=host, port=port, db=int(url.path or 0), **options)

    @contextmanager
    def border(self) -> Iterator[None]:
        """Foreign errors become HomeError; their texts quote no credentials, ours neither."""
        try:
            yield
        except FAILURES as exc:
            why, hint, again = _explained(exc, self)
            error = HomeError(f"Catalog {self.place}: {why}.", hint=hint)
            error.retryable = again
            raise error from None  # its text may quote what the server was given


class RedisHints:
    """See base.Hints: a subscription of its own, made anew when it breaks."""

    def __init__(self, client: Client, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._closed = threading.Event()
        self._lock = threading.Lock()  # of the subscription: one waits, or closes it
        self._messages: Any = None

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._closed.is_set() and (left := end - time.monotonic()) > 0:
            try:
                with self._lock:
                    if self._next(min(left, LOOK_S)):
                        return
            except FAILURES:
                with self._lock:
                    self._drop()
                self._closed.wait(left)  # whoever waits looks for himself then

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            self._drop()

    def _next(self, seconds: float) -> bool:
        """Whether a message came; those that came with it say nothing more."""
        if self._messages is None:
            self._messages = self._client.client.pubsub(ignore_subscribe_messages=True)
            self._messages.subscribe(self._channel)
        came = self._messages.get_message(timeout=seconds) is not None
        while came and self._messages.get_message(timeout=0) is not None:
            pass
        return came

    def _drop(self) -> None:
        messages, self._messages = self._messages, None
        if messages is not None:
            with suppress(*FAILURES):
                messages.close()


def _explained(exc: Exception, client: Client) -> tuple[str, str, bool]:
    """(what happened, what to do, whether the same call may succeed later)."""
    said = str(exc).partition(", with args")[0]  # else an unknown AUTH quotes the password
    ping = f"Start it, or mend store.catalog: {client.ping}"
    if isinstance(exc, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return "user or password was refused", "Mend them in store.catalog.", False
    if isinstance(exc, exceptions.NoPermissionError):
        return "this user may not do that", f"ACL SETUSER … ~{{preread}}:* &* +@all ({said})", False
    if isinstance(exc, exceptions.OutOfMemoryError) or said.startswith("OOM"):
        return "the server is full", "Raise its maxmemory, or run: preread gc", True
    if isinstance(exc, exceptions.ReadOnlyError):
        return "the server is a replica that cannot be written", "Name its primary.", True
    if isinstance(exc, exceptions.BusyLoadingError):
        return "the server is still loading", "Ask again in a moment.", True
    if isinstance(exc, exceptions.TimeoutError | TimeoutError):
        return f"no answer within {client.deadline_s:g} s", ping, True
    if "Cluster mode is not enabled" in said:
        return "no part of a cluster", "Write redis:// instead of redis+cluster://.", False
    if isinstance(exc, exceptions.RedisClusterException):
        return "no server of the cluster can be asked", ping, True
    if isinstance(exc, exceptions.ClusterError):
        return "the cluster has no node for it", ping, True
    if isinstance(exc, exceptions.ConnectionError | OSError):
        return "cannot be reached", ping, True
    return f"it refused ({said})", ping, False
