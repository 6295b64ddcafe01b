"""A server that speaks the protocol and says what makes no sense: a miss or a TierError."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from preread.errors import TierError
from preread.testing.conformance_tier import key
from tests.store.redis.conftest import Opener

CALLS = {
    "find": lambda tier: tier.find([key(1), key(2)], touch=True),
    "read": lambda tier: list(tier.read([key(1), key(2)])),
    "write": lambda tier: tier.write(key(1), [b"x" * 100]),
    "remove": lambda tier: tier.remove([key(1)]),
    "set aside": lambda tier: tier.remove([key(1)], quarantine=True),
    "scan": lambda tier: list(tier.scan()),
    "usage": lambda tier: tier.usage(),
}


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def slots(first: int, last: int, host: bytes, port: int) -> bytes:
    """A map of slots of one range."""
    return b"*1\r\n*3\r\n:%d\r\n:%d\r\n*2\r\n%b:%d\r\n" % (first, last, bulk(host), port)


ANSWERS = {
    "arrays in arrays": b"*1\r\n" * 3000 + b":1\r\n",
    "nothing at all": b"*0\r\n",
    "a number of 5,000 digits": b":" + b"9" * 5000 + b"\r\n",
    "moved to no port": b"-MOVED 5 127.0.0.1:99999999\r\n",
    "moved to no host": b"-MOVED 5 a\0b:1\r\n",
    "moved to half a host": b"-ASK 5 .a:1\r\n",
    "a name that is no text": slots(0, 16383, b"\xff\xfe", 6379),
    "a name with a zero": slots(0, 16383, b"a\0b", 6379),
    "no port": slots(0, 16383, b"127.0.0.1", 99999999),
    "slots backwards": slots(0, -2, b"127.0.0.1", 1),
    "slots beyond the last": slots(0, 10**9, b"127.0.0.1", 1),
    "settings that are no text": b"*2\r\n" + bulk(b"maxmemory") + bulk(b"\xff"),
    "settings in other units": b"*2\r\n" + bulk(b"proto-max-bulk-len") + bulk(b"1gb"),
}


@contextmanager
def saying(answer: bytes, to_slots: bytes) -> Iterator[int]:
    """Says `answer` to whatever it is asked but for the map of slots, which is right if none is
    given. Yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    map_ = to_slots or slots(0, 16383, b"127.0.0.1", port)

    def speak(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while asked := connection.recv(65536):
                count = len(re.findall(rb"(?m)^\*\d+\r\n", asked))
                connection.sendall(map_ if b"SLOTS" in asked else answer * count)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=speak, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield port
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("kind", ["redis", "redis+cluster"])
def test_nonsense_is_no_more_than_a_tier_error(opened: Opener, kind: str, answer: str) -> None:
    said = ANSWERS[answer]
    settings = answer.startswith("settings")
    with saying(said, said if said[:1] == b"*" and not settings else b"") as port:
        for call in CALLS.values():
            tier = opened(f"{kind}://127.0.0.1:{port}?deadline=0.3s&budget=1MB")
            with contextlib.suppress(TierError):
                call(tier)
