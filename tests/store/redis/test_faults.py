"""What goes wrong with one server is a miss or a TierError, and never the next reader's bytes."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from preread.errors import TierError
from preread.store.tiers.base import MAX_VALUE_BYTES, ChunkUnreadable
from preread.store.tiers.redis.names import chunk_name
from preread.store.tiers.redis.tier import RedisTier
from preread.testing.conformance_tier import get, key, put
from preread.testing.proxy import Act, Manner, Proxy
from tests.attacks.tools import Den
from tests.store.redis.conftest import Opener
from tests.store.valkey import Valkey, eventually, running

BIG = 300_000  # bytes: more than one segment, one buffer, one piece of the proxy


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    with running(tmp_path / "valkey") as made:
        yield made


@pytest.fixture
def proxy(server: Valkey) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", server.port)) as made:
        yield made


@pytest.fixture
def tier(opened: Opener, proxy: Proxy) -> RedisTier:
    """Behind the proxy, holding values 0 to 9."""
    made = opened(f"redis://127.0.0.1:{proxy.port}?deadline=1s")
    patient = opened(f"redis://127.0.0.1:{proxy.port}?deadline=30s")
    for n in range(10):
        put(patient, n, value(n))
    return made


def value(n: int) -> bytes:
    return bytes([n]) * BIG


def recovers(tier: RedisTier) -> bool:
    try:
        return get(tier, 9) == value(9)
    except TierError:
        return False


# --- the connection ---


@pytest.mark.parametrize("act", [Act.RESET, Act.CLOSE, Act.HANG])
@pytest.mark.parametrize("after", [0, 1, 8, 1000, BIG + 9, BIG + 2000, 3 * BIG])
def test_a_reply_that_is_cut_off(proxy: Proxy, tier: RedisTier, act: Act, after: int) -> None:
    """Whole values up to there, then TierError; what comes late reaches nobody."""
    proxy.behave(Manner(act, after))
    seen = 0
    with pytest.raises(TierError, match=str(proxy.port)):
        for n, outcome in enumerate(tier.read([key(n) for n in range(8)])):
            assert outcome == value(n)
            seen += 1
    whole = after // (len(b"$300000\r\n") + BIG + len(b"\r\n:1\r\n"))
    assert seen == whole if act is Act.HANG else seen <= whole  # a reset takes what had come
    proxy.behave()
    eventually(lambda: recovers(tier))
    for n, outcome in enumerate(tier.read([key(n) for n in range(10)])):
        assert outcome == value(n)


def test_a_hanging_server_costs_one_deadline(proxy: Proxy, tier: RedisTier) -> None:
    """After it the breaker is open: no further connection is even tried."""
    proxy.behave(Manner(Act.HANG))
    with pytest.raises(TierError, match="deadline"):
        tier.find([key(0)])
    accepted = proxy.accepted
    for ask in (
        lambda: tier.find([key(0)]),
        lambda: get(tier, 0),
        lambda: put(tier, 0, b"x"),
        lambda: tier.remove([key(0)]),
        lambda: list(tier.scan()),
    ):
        with pytest.raises(TierError, match="asked again in"):
            ask()
    assert proxy.accepted == accepted
    proxy.behave()
    eventually(lambda: recovers(tier))


def test_a_value_that_trickles_is_late(proxy: Proxy, tier: RedisTier) -> None:
    """Every piece comes soon, the whole does not."""
    proxy.behave(Manner(rate=50_000.0))
    with pytest.raises(TierError, match="deadline"):
        get(tier, 0)
    proxy.behave()
    eventually(lambda: recovers(tier))


def test_a_slow_server_within_the_deadline_is_right(proxy: Proxy, tier: RedisTier) -> None:
    proxy.behave(Manner(delay_s=0.01))
    assert [bytes(v or b"") for v in tier.read([key(1), key(2)])] == [value(1), value(2)]


def test_killed_and_restarted_empty(server: Valkey, tier: RedisTier) -> None:
    server.kill()
    with pytest.raises(TierError):
        tier.find([key(0)])
    server.start()
    eventually(lambda: answers(tier))
    assert tier.find([key(n) for n in range(10)]) == [False] * 10
    assert list(tier.read([key(0), key(1)])) == [None, None]
    assert put(tier, 0, b"again") and get(tier, 0) == b"again"


def test_killed_between_two_values_of_a_read(server: Valkey, tier: RedisTier) -> None:
    reads = tier.read([key(n) for n in range(10)])
    assert next(reads) == value(0)
    server.kill()
    with pytest.raises(TierError):
        for outcome in reads:  # those on the way may still be whole
            assert outcome is not None
    server.start()
    eventually(lambda: answers(tier))
    assert get(tier, 0) is None


def test_a_restart_between_two_calls_goes_unnoticed(server: Valkey, tier: RedisTier) -> None:
    """Connections that were kept are looked at before they are used."""
    assert tier.find([key(0)]) == [True]
    server.kill(signal.SIGTERM)
    server.start()
    assert tier.find([key(0)]) == [False]


def answers(tier: RedisTier) -> bool:
    try:
        tier.find([key(0)])
        return True
    except TierError:
        return False


def test_a_frozen_server_takes_a_write_but_does_not_answer(server: Valkey, tier: RedisTier) -> None:
    server.freeze()
    with pytest.raises(TierError):
        put(tier, 0, value(1))
    server.thaw()
    eventually(lambda: recovers(tier))


def test_nobody_listens(opened: Opener, server: Valkey) -> None:
    server.kill()
    tier = opened(server.url)
    with pytest.raises(TierError, match=r"refused.*Answers stay right"):
        tier.find([key(0)])


def test_a_name_that_nobody_can_resolve_in_time(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        never.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(TierError, match="no address of cache"):
        opened("redis://cache.example?deadline=0.05s").find([key(0)])
    never.set()


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad\r\n\r\n", b":12a\r\n", b"$x\r\n", b"?"])
def test_what_is_no_redis_at_all(opened: Opener, reply: bytes) -> None:
    with Fake(reply) as fake, pytest.raises(TierError, match=str(fake.port)):
        get(opened(f"redis://127.0.0.1:{fake.port}?deadline=1s"), 0)


def test_a_value_beyond_all_measure_is_unreadable_and_not_read(opened: Opener) -> None:
    too_long = b"$%d\r\n" % (MAX_VALUE_BYTES + 1)
    with Fake(too_long) as one, Fake(too_long) as two:
        for hosts in (f"127.0.0.1:{one.port}", f"127.0.0.1:{one.port};127.0.0.1:{two.port}"):
            tier = opened(f"redis://{hosts}?window=3&deadline=5s")
            outcomes = list(tier.read([key(0), key(1), key(2)]))
            assert all(isinstance(outcome, ChunkUnreadable) for outcome in outcomes)


class Fake:
    """A server that answers every request with the same bytes."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]
        self._stop = False
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Fake:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        threads: list[threading.Thread] = []
        while not self._stop:
            with contextlib.suppress(TimeoutError):
                sock, _ = self._listener.accept()
                threads.append(threading.Thread(target=self._answer, args=(sock,)))
                threads[-1].start()
        for thread in threads:
            thread.join()

    def _answer(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):  # cut off, or nobody asks any more
            sock.settimeout(5)
            if sock.recv(1 << 16):
                sock.sendall(self._reply)
                while sock.recv(1 << 16):
                    pass


# --- what the server says ---


@pytest.fixture
def direct(opened: Opener, server: Valkey) -> RedisTier:
    made = opened(f"{server.url}?deadline=10s")
    put(made, 1, b"one")
    return made


def test_full_and_forbidden_to_evict(server: Valkey, direct: RedisTier) -> None:
    server.command("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(TierError, match=r"OOM .*maxmemory-policy allkeys-lru"):
        put(direct, 2, b"two")
    assert get(direct, 1) == b"one"
    server.command("CONFIG", "SET", "maxmemory", 0)
    assert put(direct, 2, b"two")


def test_a_replica_reads_and_does_not_write(opened: Opener, tmp_path: Path, server: Valkey) -> None:
    server.command("CONFIG", "SET", "repl-diskless-sync-delay", 0)
    primary = opened(server.url)
    put(primary, 1, b"one")
    with running(tmp_path / "replica") as replica:
        replica.command("REPLICAOF", "127.0.0.1", server.port)
        tier = opened(f"{replica.url}?deadline=10s")
        eventually(lambda: tier.find([key(1)], touch=True) == [True])
        assert get(tier, 1) == b"one"
        with pytest.raises(TierError, match=r"READONLY .*name its primary"):
            put(tier, 2, b"two")


def test_a_server_that_is_still_loading(opened: Opener, tmp_path: Path) -> None:
    with running(tmp_path / "valkey") as server:
        client = server.client()
        for n in range(2000):
            client.set(chunk_name(key(n)), b"x" * 100)
        client.save()
        client.close()
        server.kill()
        server.settings = (
            *("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"),
        )
        server.start()
        tier = opened(f"{server.url}?deadline=10s")
        for ask in (lambda: tier.find([key(0)]), lambda: get(tier, 0), lambda: put(tier, 0, b"")):
            with pytest.raises(TierError, match="LOADING"):
                ask()
        server.command("CONFIG", "SET", "key-load-delay", 0)
        eventually(lambda: answers(tier))
        assert get(tier, 0) == b"x" * 100


def test_wrong_and_missing_passwords(opened: Opener, tmp_path: Path) -> None:
    with running(tmp_path / "valkey", "--requirepass", "right/one") as server:
        host = f"127.0.0.1:{server.port}"
        for url, says in (
            (f"redis://:wrong@{host}", r"WRONGPASS.*Check user, password"),
            (f"redis://ann:right%2Fone@{host}", r"WRONGPASS.*Check user, password"),
            (f"redis://{host}", r"NOAUTH.*Put user and password"),
        ):
            with pytest.raises(TierError, match=says) as caught:
                opened(url).find([key(1)])
            assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
            assert "right" not in str(caught.value)
        tier = opened(f"redis://:right%2Fone@{host}/3")
        assert put(tier, 1, b"x") and get(tier, 1) == b"x"
        assert server.command("EXISTS", chunk_name(key(1)), password="right/one", db=3) == 1


def test_a_server_that_quotes_the_password_is_not_quoted(
    opened: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that does not know AUTH answers with what it was given."""
    with running(tmp_path, "--rename-command", "AUTH", "") as server:
        tier = opened(server.url.replace("//", "//bob:s3cr3t@"))
        with pytest.raises(TierError, match=r"AUTH was refused.*Check user, password") as caught:
            tier.find([key(1)])
        assert "s3cr3t" not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_a_user_who_may_only_read(opened: Opener, server: Valkey, direct: RedisTier) -> None:
    server.command("ACL", "SETUSER", "reader", "on", ">secret", "~prd:*", "+@read", "+ping")
    tier = opened(f"redis://reader:secret@127.0.0.1:{server.port}")
    assert tier.find([key(1), key(2)], touch=True) == [True, False]
    assert list(tier.read([key(1), key(2)])) == [b"one", None]
    with pytest.raises(TierError, match=r"NOPERM.*Allow the user"):
        put(tier, 2, b"x")


def test_a_user_with_the_rights_of_the_documentation(opened: Opener, server: Valkey) -> None:
    rights = ("~prd:*", "+@read", "+@write", "+@keyspace", "+@connection")
    server.command("ACL", "SETUSER", "preread", "on", ">secret", *rights)
    tier = opened(f"redis://preread:secret@127.0.0.1:{server.port}/2?budget=1000&deadline=10s")
    for n in range(12):
        assert put(tier, n, b"x" * 90)
    assert tier.find([key(11)], touch=True) == [True] and get(tier, 11) == b"x" * 90
    assert tier.remove([key(11)], quarantine=True) == tier.remove([key(10)]) == 1
    assert tier.usage().chunks == len(list(tier.scan())) > 5


def test_a_value_larger_than_the_server_takes_is_refused(opened: Opener, server: Valkey) -> None:
    server.command("CONFIG", "SET", "proto-max-bulk-len", 1 << 20)
    tier = opened(f"{server.url}?deadline=10s")
    assert put(tier, 1, b"x" * ((1 << 20) + 1)) is False
    assert put(tier, 1, b"x" * (1 << 20)) is True
    assert tier.usage().chunks == 1


def test_something_else_under_a_chunks_name(server: Valkey, direct: RedisTier) -> None:
    server.command("RPUSH", chunk_name(key(2)), "a", "b")
    one, two, none = direct.read([key(1), key(2), key(3)])
    assert (one, none) == (b"one", None)
    assert isinstance(two, ChunkUnreadable)
    assert direct.find([key(2)]) == [True]
    assert direct.remove([key(2)], quarantine=True) == 1
    assert direct.find([key(2)]) == [False]
    assert [entry.key for entry in direct.scan()] == [key(1)]


def test_too_many_clients(server: Valkey, direct: RedisTier) -> None:
    server.command("CONFIG", "SET", "maxclients", 1)
    direct.close()
    with server.client() as other:
        other.ping()
        with pytest.raises(TierError, match="max number of clients"):
            direct.find([key(1)])
    eventually(lambda: answers(direct))


def test_settings_that_make_a_bad_cache_are_said_with_the_command(
    opened: Opener, server: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="preread.store")
    opened(server.url).find([key(1)])
    assert f"-p {server.port} CONFIG SET maxmemory 10gb" in caplog.text
    caplog.clear()
    opened(f"{server.url}?budget=1GB").find([key(1)])
    assert not caplog.text
    server.command("CONFIG", "SET", "maxmemory", 100_000_000)
    tier = opened(server.url)
    tier.find([key(1)])
    tier.find([key(1)])
    assert caplog.text.count("CONFIG SET maxmemory-policy allkeys-lru") == 1
    assert tier.usage().budget == 100_000_000


# --- seen by the store ---


def test_a_bit_that_flips_on_the_way_is_a_miss_and_mended(
    opened: Opener, tmp_path: Path, server: Valkey, proxy: Proxy
) -> None:
    """Law 2 over the wire: 40 places of one chunk, its reply included."""
    den = Den(tmp_path / "kv")
    tier = opened(f"redis://127.0.0.1:{proxy.port}?deadline=1s&window=1")
    store = den.open([tier])
    store.save(den.tokens, 0, den.truth.source)
    length = next(iter(tier.scan())).nbytes
    for after in range(0, length, length // 40):
        proxy.behave(Manner(Act.FLIP, after))
        den.load(store)  # raises if a box is not what was saved
        proxy.behave()
        eventually(lambda: answers(tier))
        store.save(den.tokens, 0, den.truth.source)
    assert den.load(store).tokens == len(den.tokens)
