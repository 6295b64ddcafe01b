"""The Redis catalog on real Valkey, one server and a cluster: the common suite, and what a server
far away can do wrong."""

from __future__ import annotations

import ssl
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from preread.contexts.catalog.base import Catalog, Standing
from preread.contexts.catalog.redis import RedisCatalog
from preread.contexts.catalog.redis_client import Client
from preread.errors import ConfigError, HomeError
from preread.store.tiers.urls import parse_tiers
from preread.testing.conformance_catalog import CatalogConformance, record
from preread.testing.proxy import Proxy
from tests.contexts.catalog.racing import race
from tests.servers import certificate
from tests.store.valkey import Valkey, cluster, running


def catalog_at(text: str) -> RedisCatalog:
    (url,) = parse_tiers(text)
    return RedisCatalog(Client(url))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def server(shared: Valkey) -> Valkey:
    shared.command("FLUSHALL")
    return shared


class TestRedisCatalog(CatalogConformance):
    @pytest.fixture(autouse=True)
    def use(self, server: Valkey) -> None:
        self.url = server.url

    def open(self, place: Path) -> Catalog:
        return catalog_at(self.url)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Valkey]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


class TestRedisClusterCatalog(CatalogConformance):
    @pytest.fixture(autouse=True)
    def use(self, nodes: list[Valkey]) -> None:
        for node in nodes:
            node.command("FLUSHALL")
        self.url = f"redis+cluster://127.0.0.1:{nodes[1].port}"

    def open(self, place: Path) -> Catalog:
        return catalog_at(self.url)


def test_texts_are_kept_once_for_all_contexts(server: Valkey) -> None:
    catalog = catalog_at(server.url)
    catalog.put(record(), expected=0)
    catalog.put(record("second"), expected=0)
    catalog.put(record("second", 2, text="Other."), expected=1)
    assert server.command("HLEN", "{preread}:texts") == 4 + 3  # "typed" is in all of them
    catalog.remove("handbook")
    catalog.remove("second", below=2)
    assert catalog.get("second") == record("second", 2, text="Other.")
    assert server.command("HLEN", "{preread}:texts") == 4
    catalog.remove("second")
    assert server.command("KEYS", "*") == []


def test_a_hint_comes_at_once(server: Valkey) -> None:
    """And of every kind of change; a wait that is never told would last for minutes."""
    one, two = catalog_at(server.url), catalog_at(server.url)
    hints = two.listen()
    hints.wait(0.01)  # subscribed now
    one.put(record(), expected=0)
    hints.wait(600.0)
    one.invalidate("handbook", "recall")
    hints.wait(600.0)
    assert two.standing([("handbook", 1)]) == [Standing(1, "recall")]
    one.bump("tenant:a")
    hints.wait(600.0)
    one.remove("handbook")
    hints.wait(600.0)
    hints.close()


def test_hints_come_again_after_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        catalog = catalog_at(server.url)
        hints = catalog.listen()
        hints.wait(0.01)
        server.kill()
        hints.wait(0.05)  # raises nothing
        server.start()
        hints.wait(0.05)
        catalog.bump("tenant:a")
        hints.wait(600.0)
        hints.close()


def test_a_restarted_server_is_used_again(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        catalog = catalog_at(server.url)
        catalog.put(record(), expected=0)
        server.kill()
        with pytest.raises(
            HomeError, match=rf"cannot be reached.*redis-cli -h 127.0.0.1 -p {server.port} ping"
        ):
            catalog.get("handbook")
        server.start()
        assert catalog.get("handbook") is None  # it kept nothing
        catalog.put(record(), expected=0)
        assert catalog.get("handbook") == record()


CALLS = {
    "get": lambda c: c.get("handbook"),
    "put": lambda c: c.put(record(), expected=0),
    "invalidate": lambda c: c.invalidate("handbook", "x"),
    "standing": lambda c: c.standing([("handbook", 1), ("other", 1)]),
    "remove": lambda c: c.remove("handbook"),
    "summaries": lambda c: c.summaries(),
    "touch": lambda c: c.touch("handbook", 1.0),
    "live_chunks": lambda c: c.live_chunks(),
    "sessions": lambda c: c.sessions("handbook"),
    "session": lambda c: c.session("handbook", "s"),
    "append_turn": lambda c: c.append_turn("handbook", "s", ("q", "a"), at=0),
    "epochs": lambda c: c.epochs(["tenant:a"]),
    "bump": lambda c: c.bump("tenant:a"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("connected", [False, True])
def test_a_server_that_hangs_is_not_waited_for(server: Valkey, call: str, connected: bool) -> None:
    catalog = catalog_at(f"{server.url}?deadline=0.1s")
    if connected:
        catalog.summaries()
    server.freeze()
    try:
        with pytest.raises(HomeError, match=r"no answer within 0\.1 s.*ping") as caught:
            CALLS[call](catalog)
        assert caught.value.retryable
    finally:
        server.thaw()


@pytest.mark.parametrize("call", CALLS)
def test_a_cluster_that_is_gone_is_an_error_like_any_other(call: str) -> None:
    with pytest.raises(HomeError, match=r"no server of the cluster can be asked.*ping") as caught:
        CALLS[call](catalog_at("redis+cluster://127.0.0.1:1"))
    assert caught.value.retryable


def test_a_single_server_is_no_cluster(server: Valkey) -> None:
    catalog = catalog_at(f"redis+cluster://127.0.0.1:{server.port}")
    with pytest.raises(HomeError, match=r"no part of a cluster. Write redis://"):
        catalog.get("handbook")


def test_hints_of_a_cluster_that_is_gone_raise_nothing() -> None:
    hints = catalog_at("redis+cluster://127.0.0.1:1").listen()
    hints.wait(0.01)
    hints.close()


def test_a_wrong_password_is_said_without_it(tmp_path: Path) -> None:
    with running(tmp_path, "--requirepass", "right") as server:
        for login in (":wr0ng@", "user:wr0ng@", ""):
            catalog = catalog_at(server.url.replace("//", f"//{login}"))
            with pytest.raises(HomeError, match="refused") as caught:
                catalog.get("handbook")
            assert "wr0ng" not in str(caught.value)
        assert catalog_at(server.url.replace("//", "//:right@")).get("handbook") is None


def test_a_server_that_quotes_the_password_is_not_quoted(tmp_path: Path) -> None:
    """One that does not know AUTH answers with what it was given."""
    with running(tmp_path, "--rename-command", "AUTH", "") as server:
        catalog = catalog_at(server.url.replace("//", "//bob:s3cr3t@"))
        with pytest.raises(HomeError, match="unknown command 'AUTH'") as caught:
            catalog.get("handbook")
        assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


def test_tls(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    with (
        running(tmp_path / "valkey", "--requirepass", "pw") as server,
        Proxy(("127.0.0.1", server.port), tls=context) as proxy,
    ):
        place = f"rediss://:pw@127.0.0.1:{proxy.port}"
        catalog = catalog_at(f"{place}?ca={pem}&deadline=20s")
        catalog.put(record(), expected=0)
        hints = catalog.listen()
        hints.wait(0.01)
        assert catalog_at(f"{place}?insecure=1&deadline=20s").get("handbook") == record()
        catalog.bump("tenant:a")
        hints.wait(600.0)
        hints.close()
        with pytest.raises(HomeError, match="cannot be reached"):
            catalog_at(f"{place}?deadline=20s").get("handbook")


def test_a_full_server_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    with running(tmp_path, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as server:
        catalog = catalog_at(server.url)
        catalog.put(record(), expected=0)
        big = "".join(map(str, range(2_000_000)))  # does not compress to nothing
        with pytest.raises(HomeError, match=r"full.*preread gc"):
            catalog.put(record("big", text=big), expected=0)
            catalog.put(record("bigger", text=big[::-1]), expected=0)
        assert catalog.get("handbook") == record()


def test_a_server_that_may_forget_names_is_warned_of(
    server: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    catalog_at(server.url).put(record("a"), expected=0)
    assert not caplog.records
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        catalog = catalog_at(server.url)
        catalog.put(record("b"), expected=0)
        catalog.put(record("c"), expected=0)
    finally:
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    (told,) = caplog.records
    assert "CONFIG SET maxmemory-policy volatile-lru" in told.getMessage()


@pytest.mark.parametrize("key", ["bodies:handbook", "texts", "chunks:handbook"])
def test_damage_is_named(server: Valkey, key: str) -> None:
    catalog = catalog_at(server.url)
    catalog.put(record(), expected=0)
    for field in server.command("HKEYS", f"{{preread}}:{key}"):
        server.command("HSET", f"{{preread}}:{key}", field, b"\0")
    with pytest.raises(HomeError, match="damaged"):
        catalog.get("handbook")
        catalog.live_chunks()


@pytest.mark.parametrize(
    "text", ["redis://a:1;b:2", "redis://a/words", "redis+cluster://a:1/3", "rediss://a;b"]
)
def test_what_is_no_catalog_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        catalog_at(text)


def test_one_of_many_processes_wins_each_version(server: Valkey) -> None:
    race(catalog_at, server.url)
