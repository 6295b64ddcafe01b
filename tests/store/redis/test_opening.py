"""URLs, logins, TLS; and values of all sizes against what another client sees."""

from __future__ import annotations

import os
import random
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from preread.errors import ConfigError, TierError
from preread.store.tiers.redis import open_redis
from preread.store.tiers.redis.names import chunk_name, residency_ms
from preread.store.tiers.redis.reading import WINDOW
from preread.store.tiers.urls import parse_tiers
from preread.testing.conformance_tier import Clock, get, key, put
from preread.testing.proxy import Act, Manner, Proxy
from tests.servers import certificate
from tests.store.redis.conftest import Opener, emptied
from tests.store.valkey import Valkey, running


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://a/x", "database 'x'"),
        ("redis+cluster://a/1", "A cluster has only database 0"),
        ("redis://a?ttl=1s", "ttl must be at least 1m"),
        ("redis://a?window=0", "window must be at least 1"),
        ("redis://a?copies=0", "copies must be at least 1"),
        ("redis://a?deadline=0", "deadline must be at least 1ms"),
        ("redis://a;b;a:6379", "a server is listed twice"),
        ("rediss://a?ca=/nowhere.pem", "ca, cert or key"),
    ],
)
def test_what_cannot_be_meant(opened: Opener, url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        opened(url)


def test_opening_asks_nobody(opened: Opener) -> None:
    assert opened("redis://nowhere.invalid:1;elsewhere.invalid:1").name == "redis"


@pytest.mark.parametrize(
    ("hosts", "cores", "window"),
    [
        ("127.0.0.1", 2, 2),
        ("localhost;[::1]:1", 1, 2),
        ("127.0.0.1", 3, WINDOW),
        ("127.0.0.1;elsewhere", 2, WINDOW),
        ("10.0.0.1", 2, WINDOW),
        ("127.0.0.1?window=3", 2, 3),
    ],
)
def test_a_server_that_shares_two_cores_is_asked_for_two_values_at_a_time(
    monkeypatch: pytest.MonkeyPatch, hosts: str, cores: int, window: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert open_redis(parse_tiers(f"redis://{hosts}")[0])._window == window


def test_secrets_show_nowhere(opened: Opener) -> None:
    tier = opened("redis://ann:topsecret@127.0.0.1:1")
    with pytest.raises(TierError) as caught:
        tier.find([key(1)])
    for shown in (str(caught.value), repr(tier), tier.name, repr(vars(tier))):
        assert "topsecret" not in shown


# --- values ---


@pytest.fixture
def server(three: list[Valkey]) -> Valkey:
    emptied(three)
    return three[0]


def test_values_are_those_that_another_client_sees(opened: Opener, server: Valkey) -> None:
    """Sizes around the inbox, a segment and a page; written by one client, read by the other."""
    draw = random.Random(7)
    edges = [n + d for n in (0, 4096, 16384, 65536, 1 << 20) for d in (-17, -2, -1, 0, 1, 2, 9)]
    sizes = [n for n in edges if n >= 0] + [draw.randrange(1 << 18) for _ in range(30)]
    values = [draw.randbytes(size) for size in sizes]
    tier = opened(f"{server.url}?deadline=20s&window=3")
    with server.client() as other:
        for n, value in enumerate(values):
            if n % 2:
                cut = draw.randrange(len(value) + 1)
                tier.write(key(n), [value[:cut], memoryview(value)[cut:]])
                assert other.get(chunk_name(key(n))) == value
            else:
                other.set(chunk_name(key(n)), value)
    for value, outcome in zip(values, tier.read([key(n) for n in range(len(sizes))]), strict=True):
        assert outcome == value
    assert get(opened(f"{server.url}/5"), 1) is None  # another database


def test_a_hit_renews_its_time_a_look_does_not(opened: Opener, server: Valkey) -> None:
    tier = opened(f"{server.url}?ttl=1h&deadline=20s")
    full = residency_ms(key(1), 3600)
    put(tier, 1, b"x")
    with server.client() as other:
        name = chunk_name(key(1))
        assert full - 60_000 < other.pttl(name) <= full
        for use, renewed in (
            (lambda: tier.find([key(1)]), False),
            (lambda: tier.find([key(1)], touch=True), True),
            (lambda: get(tier, 1), True),
        ):
            other.pexpire(name, 100_000)
            use()
            assert (other.pttl(name) > 100_000) is renewed


def test_what_was_set_aside_goes_by_itself_and_counts(opened: Opener, server: Valkey) -> None:
    tier = opened(f"{server.url}?budget=1000&deadline=20s", Clock())
    put(tier, 1, b"x" * 400)
    assert tier.remove([key(1)], quarantine=True) == 1
    (aside,) = server.command("KEYS", "prd:aside:*")
    assert 0 < server.command("PTTL", aside) <= 3_600_000
    assert (tier.usage().chunks, tier.usage().nbytes) == (0, 400)
    for n in range(2, 5):
        put(tier, n, b"x" * 300)
    assert (tier.usage().chunks, tier.usage().nbytes) == (3, 900)  # it went first
    assert server.command("KEYS", "prd:aside:*") == []


def test_what_is_not_ours_is_left_alone(opened: Opener, server: Valkey) -> None:
    with server.client() as other:
        other.set("prd:catalog", "theirs")
        other.set("x", "y" * 5000)
        other.set(chunk_name(key(9)), "without an end")
    tier = opened(f"{server.url}?budget=1000&deadline=20s")
    put(tier, 1, b"x" * 990)
    assert [entry.key for entry in tier.scan()] == [key(1)]
    assert server.command("DBSIZE") == 3


# --- TLS ---


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 that vouches for itself, with its key."""
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secured(tmp_path: Path, pem: Path) -> Iterator[Proxy]:
    """Speaks TLS for a server that wants a password."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    with (
        running(tmp_path / "valkey", "--requirepass", "pw") as server,
        Proxy(("127.0.0.1", server.port), tls=context) as proxy,
    ):
        yield proxy


def test_tls(opened: Opener, secured: Proxy, pem: Path) -> None:
    tier = opened(f"rediss://:pw@127.0.0.1:{secured.port}?ca={pem}&deadline=20s&window=3")
    values = [os.urandom(n) for n in (0, 1, 16384, 70_001, 1 << 20, 3 << 20)]
    for n, value in enumerate(values):
        put(tier, n, value)
    assert list(tier.read([key(n) for n in range(6)])) == values
    assert tier.find([key(0), key(9)], touch=True) == [True, False]
    assert secured.accepted == 1


def test_tls_with_a_certificate_of_nobody_we_know(opened: Opener, secured: Proxy) -> None:
    with pytest.raises(TierError, match=r"(?i)certificate"):
        opened(f"rediss://:pw@127.0.0.1:{secured.port}").find([key(1)])
    insecure = opened(f"rediss://:pw@127.0.0.1:{secured.port}?insecure=1&deadline=20s")
    assert insecure.find([key(1)]) == [False]


@pytest.mark.parametrize("act", [Act.RESET, Act.CLOSE, Act.HANG])
def test_tls_that_is_cut_off(opened: Opener, secured: Proxy, pem: Path, act: Act) -> None:
    tier = opened(f"rediss://:pw@127.0.0.1:{secured.port}?ca={pem}&deadline=0.5s")
    put(tier, 1, b"x" * 300_000)
    secured.behave(Manner(act, 100_000))
    with pytest.raises(TierError, match=str(secured.port)):
        get(tier, 1)


def test_a_server_without_tls(opened: Opener, server: Valkey) -> None:
    with pytest.raises(TierError, match=str(server.port)):
        opened(f"rediss://127.0.0.1:{server.port}?deadline=0.5s").find([key(1)])
