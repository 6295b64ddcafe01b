"""The proxy does to bytes what it was told, and nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from preread.testing.proxy import Act, Manner, Proxy


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """Sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def serve() -> None:
        while True:
            sock, _ = listener.accept()
            with sock:
                while data := sock.recv(1 << 16):
                    if data == b"stop":
                        return
                    sock.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()
    with socket.create_connection(listener.getsockname()) as last:
        last.sendall(b"stop")
    thread.join()
    listener.close()


@pytest.fixture
def proxy(echo: tuple[str, int]) -> Iterator[Proxy]:
    with Proxy(echo) as made:
        yield made


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as sock:
        yield sock


def exchanged(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return received(client, len(data))


def received(client: socket.socket, nbytes: int) -> bytes:
    got = b""
    while len(got) < nbytes and (data := client.recv(nbytes - len(got))):
        got += data
    return got


def test_passes_everything_on(proxy: Proxy, client: socket.socket) -> None:
    data = bytes(range(256)) * 4000
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    assert received(client, len(data)) == data
    sender.join()
    assert proxy.accepted == 1


def test_hangs_after_some_bytes_and_sends_the_rest_late(
    proxy: Proxy, client: socket.socket
) -> None:
    proxy.behave(Manner(Act.HANG, after=3))
    client.sendall(b"abcdef")
    assert received(client, 3) == b"abc"
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(20)
    proxy.behave()
    assert received(client, 3) == b"def"


def test_cuts_a_reply_short(proxy: Proxy, client: socket.socket) -> None:
    proxy.behave(Manner(Act.CLOSE, after=2))
    assert exchanged(client, b"abcdef") == b"ab"


def test_resets_within_a_reply(proxy: Proxy, client: socket.socket) -> None:
    proxy.behave(Manner(Act.RESET, after=0))
    with pytest.raises(ConnectionResetError):
        exchanged(client, b"abcdef")


def test_flips_one_bit_once(proxy: Proxy, client: socket.socket) -> None:
    proxy.behave(Manner(Act.FLIP, after=2))
    assert exchanged(client, b"abcdef") == b"abbdef"  # c ^ 1
    assert exchanged(client, b"abcdef") == b"abcdef"


def test_paces(proxy: Proxy, client: socket.socket) -> None:
    proxy.behave(Manner(rate=1e5, delay_s=0.001))
    assert exchanged(client, b"x" * 3000) == b"x" * 3000


def test_leaving_ends_connections_even_those_that_hang(echo: tuple[str, int]) -> None:
    with Proxy(echo) as proxy:
        proxy.behave(Manner(Act.HANG))
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
            client.sendall(b"abc")
            proxy.close()
            assert client.recv(1) == b""


def test_a_target_that_is_down_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
    with (
        Proxy(address) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as sock,
    ):
        assert sock.recv(1) == b""
