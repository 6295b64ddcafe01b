"""From a tier's URL to the tier."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

from preread.errors import ConfigError
from preread.store.tiers.redis.cluster import Cluster
from preread.store.tiers.redis.dial import Address, Login
from preread.store.tiers.redis.node import DEADLINE_S, IDLE, Node
from preread.store.tiers.redis.placement import COPIES, Placement, Rendezvous
from preread.store.tiers.redis.reading import WINDOW
from preread.store.tiers.redis.tier import TTL_S, RedisTier
from preread.store.tiers.urls import HINT, TierUrl

PORT = 6379
LEAST_TTL_S = 60.0


def open_redis(
    url: TierUrl,
    *,
    clock: Callable[[], float] = time.time,
    log: logging.Logger | None = None,
) -> RedisTier:
    """redis://, rediss:// (one server or a list), redis+cluster://, rediss+cluster://. Asks
    nobody: a server that is down shows in the first call, and is taken up when it is back.
    Options: budget, deadline (1s), ttl (7d), window (4 or 1), copies (2), pool (4), ca, cert, key,
    insecure. Raises ConfigError."""
    cluster = url.scheme.endswith("+cluster")
    login = _login(url, cluster)
    deadline_s = url.seconds("deadline", DEADLINE_S)
    ttl_s = url.seconds("ttl", TTL_S)
    copies = url.count("copies", COPIES)
    _least(url, "deadline", deadline_s, 0.001, "1ms")
    _least(url, "ttl", ttl_s, LEAST_TTL_S, "1m")
    _least(url, "copies", copies, 1, "1")
    addresses = [Address(host.name.strip("[]"), host.port or PORT) for host in url.hosts]
    window = url.count("window", _window(addresses))
    _least(url, "window", window, 1, "1")
    if len(set(addresses)) < len(addresses):
        raise ConfigError(f"{url.name}: a server is listed twice.", hint=HINT)
    make = partial(Node, login=login, deadline_s=deadline_s, idle=url.count("pool", IDLE), log=log)
    placement: Placement
    if cluster:
        placement = Cluster(addresses, make)
    else:
        placement = Rendezvous([make(address) for address in addresses], copies)
    return RedisTier(
        placement,
        name=url.name,
        budget=url.nbytes("budget"),
        share=url.nbytes("share"),
        ttl_s=ttl_s,
        window=window,
        cluster=cluster,
        clock=clock,
        log=log,
    )


def _window(addresses: Sequence[Address]) -> int:
    """Values on the way at once. A server that shares two cores with us is in our way while it
    writes those behind the next one (docs/log.md)."""
    shares = all(address.local for address in addresses) and (os.cpu_count() or 1) <= 2
    return 2 if shares else WINDOW


def _login(url: TierUrl, cluster: bool) -> Login:
    """Raises ConfigError: no number for a database, TLS files that cannot be used."""
    database = url.path or "0"
    if not database.isdecimal() or (cluster and database != "0"):
        raise ConfigError(
            f"{url.name}: database {database!r}.",
            hint="A cluster has only database 0." if cluster else "Write a number, as in /0.",
        )
    login = Login(
        username=url.user,
        password=url.password,
        database=int(database),
        tls=url.scheme.startswith("rediss"),
        ca=url.text("ca") or None,
        cert=url.text("cert") or None,
        key=url.text("key") or None,
        insecure=url.flag("insecure"),
    )
    if login.tls:
        try:
            login.context()
        except OSError as exc:  # SSLError is one, too
            raise ConfigError(
                f"{url.name}: ca, cert or key: {exc.strerror or exc}.",
                hint="They name PEM files that this process can read.",
            ) from exc
    return login


def _least(url: TierUrl, option: str, value: float, least: float, shown: str) -> None:
    if value < least:
        raise ConfigError(f"{url.name}: {option} must be at least {shown}.", hint=HINT)
