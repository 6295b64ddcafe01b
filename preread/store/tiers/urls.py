"""How a list of tiers is written: `ram:512MB,disk,redis://cache.local?ttl=7d`, nearest first.

    ram:512MB                               values in memory, gone with the process
    disk    disk:/path?budget=10GB          a folder; without a path that of the home
    redis://user:secret@host:6379/0         rediss:// with TLS
    redis://a:6379;b:6379;c:6379            several servers, each value on two of them
    redis+cluster://host:6379               rediss+cluster:// with TLS
    s3://bucket/prefix?endpoint=URL         gs://…  az://…  file:///path: an object store

What stands between `:`, `/`, `;`, `,`, `?` and `&` may be %-encoded. Errors name the bad part and
never show a user or a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote

from preread.errors import ConfigError

# Options that every tier knows: bytes it may hold, bytes of one tenant that others leave alone,
# seconds for one operation, values in flight, how often a prefix must be wanted before it is
# written there.
COMMON = ("budget", "share", "deadline", "window", "touches")
_REDIS = ("ttl", "copies", "pool", "ca", "cert", "key", "insecure")
_OBJECT = ("ttl", "endpoint", "region", "account", "anonymous", "http")
OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ram": (),
        "disk": ("fsync",),
        **dict.fromkeys(("redis", "rediss", "redis+cluster", "rediss+cluster"), _REDIS),
        **dict.fromkeys(("s3", "gs", "az", "file"), _OBJECT),
    }
)
# pip's extra and the package that a scheme needs beyond what is always installed.
EXTRAS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("redis", "rediss", "redis+cluster", "rediss+cluster"), ("redis", "redis")),
        **dict.fromkeys(("s3", "gs", "az", "file"), ("object", "obstore")),
    }
)
_BYTES = {"": 1, "B": 1, "kB": 1000} | {
    f"{unit}{kind}": base**power
    for power, unit in enumerate("KMGT", 1)
    for kind, base in (("B", 1000), ("iB", 1024))
}
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)")
HINT = "See docs/store.md, Tiers."


class Host(NamedTuple):
    """port: 0 where none was given. The bucket of an object store is a host without a port."""

    name: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class TierUrl:
    """One tier of the list, checked as far as text can be. name: unique in its list, of letters,
    digits and `-`; what logs, metrics and reports call the tier. `repr` shows no password."""

    name: str
    scheme: str
    hosts: tuple[Host, ...] = ()
    path: str = ""  # decoded; of `ram` the amount; without a leading slash where there are hosts
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def place(self) -> str:
        """The URL without credentials and options: for messages."""
        if not self.hosts:
            return f"{self.scheme}:{self.path}" if self.path else self.scheme
        hosts = ";".join(f"{h.name}:{h.port}" if h.port else h.name for h in self.hosts)
        return f"{self.scheme}://{hosts}" + (f"/{self.path}" if self.path else "")

    def text(self, option: str, default: str = "") -> str:
        return self.options.get(option, default)

    def nbytes(self, option: str, default: int = 0) -> int:
        """`10GB` (10^9 each), `512MiB` (2^20 each), `4096`. Raises ConfigError."""
        given = self.options.get(option)
        return default if given is None else parse_bytes(given, f"{self.name}: {option}")

    def seconds(self, option: str, default: float = 0.0) -> float:
        """`0.25s`, `250ms`, `7d`, `2`. Raises ConfigError."""
        given = self.options.get(option)
        return default if given is None else parse_seconds(given, f"{self.name}: {option}")

    def count(self, option: str, default: int = 0) -> int:
        """A whole number. Raises ConfigError."""
        given = self.options.get(option)
        if given is None:
            return default
        if not re.fullmatch(r"\d{1,9}", given):
            raise ConfigError(f"{self.name}: {option}={given} is no whole number.", hint=HINT)
        return int(given)

    def flag(self, option: str, default: bool = False) -> bool:
        """1, true, yes or 0, false, no; the bare name means 1. Raises ConfigError."""
        given = self.options.get(option)
        if given is None:
            return default
        known = {"": True, **dict.fromkeys(("1", "true", "yes"), True)}
        known |= dict.fromkeys(("0", "false", "no"), False)
        if given.lower() not in known:
            raise ConfigError(f"{self.name}: {option}={given}, expected 1 or 0.", hint=HINT)
        return known[given.lower()]


def parse_tiers(text: str) -> list[TierUrl]:
    """The tiers of a comma list, nearest first; none for an empty text. Raises ConfigError."""
    tiers: list[TierUrl] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        url = _parse(part, [tier.name for tier in tiers])
        if any((url.scheme, url.hosts, url.path) == (t.scheme, t.hosts, t.path) for t in tiers):
            raise ConfigError(f"Tier {url.place} is listed twice.", hint="Remove one.")
        tiers.append(url)
    return tiers


def parse_bytes(text: str, what: str = "size") -> int:
    """`512MB`, `10 GiB`, `4096`. Raises ConfigError naming `what`."""
    return int(_amount(text, _BYTES, what, "10GB, 512MiB or 4096"))


def parse_seconds(text: str, what: str = "time") -> float:
    """`0.25s`, `250ms`, `7d`, `2`. Raises ConfigError naming `what`."""
    return _amount(text, _SECONDS, what, "0.25s, 250ms or 7d")


def _amount(text: str, units: Mapping[str, float], what: str, like: str) -> float:
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or match[2] not in units:
        raise ConfigError(f"{what} = {text!r}.", hint=f"Write it like {like}.")
    return float(match[1]) * units[match[2]]


def _parse(part: str, taken: list[str]) -> TierUrl:
    rest, _, query = part.partition("?")
    scheme, _, rest = rest.partition(":")
    scheme = scheme.lower()
    if scheme not in OPTIONS:
        shown = scheme if re.fullmatch(r"[a-z0-9+.-]{1,20}", scheme) else "?"
        raise ConfigError(
            f"{shown!r} is no kind of tier."
            if shown != "?"
            else f"Tier {len(taken) + 1} of the list begins with no kind of tier.",
            hint=f"Commas between tiers; known: {', '.join(sorted(OPTIONS))}. {HINT}",
        )
    name = _unique(scheme.replace("+", "-"), taken)
    hosts: tuple[Host, ...] = ()
    user, password, path = "", "", unquote(rest)
    if scheme == "file":
        path = unquote(rest.removeprefix("//"))
    elif scheme in EXTRAS:
        if "@" in query + rest.removeprefix("//").partition("/")[2]:
            raise ConfigError(
                f"{name}: an `@` beyond the host.",
                hint="In a password, write `/` as %2F, `?` as %3F, `,` as %2C and `@` as %40.",
            )
        hosts, user, password, path = _located(name, rest)
    if scheme in ("ram", "file") and not path:
        what = "how much, as in ram:512MB" if scheme == "ram" else "a path: file:///path"
        raise ConfigError(f"{name}: needs {what}.", hint=HINT)
    if scheme == "ram":
        parse_bytes(path, name)
    url = TierUrl(name, scheme, hosts, path, user, password, _options(name, scheme, query))
    url.nbytes("budget"), url.seconds("deadline"), url.seconds("ttl")
    url.count("window")
    _check_share(url)
    if url.count("touches", 1) not in (1, 2) or (url.count("touches", 1) == 2 and not taken):
        raise ConfigError(
            f"{name}: touches={url.text('touches')}.",
            hint="Give 1, or 2 for a tier that is not the nearest: it gets what is used again.",
        )
    return url


def _check_share(url: TierUrl) -> None:
    limit = parse_bytes(url.path) if url.scheme == "ram" else url.nbytes("budget")
    if limit and url.nbytes("share") > limit:
        raise ConfigError(
            f"{url.name}: share={url.text('share')} of a budget of {limit} bytes.",
            hint="A share is what each tenant keeps: all of them together fit the budget.",
        )


def _located(name: str, rest: str) -> tuple[tuple[Host, ...], str, str, str]:
    """`//user:password@host:port;host:port/path` -> (hosts, user, password, path)"""
    if not rest.startswith("//"):
        raise ConfigError(f"{name}: `//` must follow the scheme.", hint=HINT)
    netloc, _, path = rest[2:].partition("/")
    login, _, hosts = netloc.rpartition("@")
    user, _, password = login.partition(":")
    found = tuple(_host(name, n, host) for n, host in enumerate(hosts.split(";"), 1))
    return found, unquote(user), unquote(password), unquote(path).rstrip("/")


def _host(name: str, n: int, text: str) -> Host:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/]+)(?::(\d{1,5}))?", text)
    port = int(match[2] or 0) if match else 0
    if match is None or port > 65535:
        # Not shown: it may be half of a password that holds an unescaped `/`.
        raise ConfigError(f"{name}: server {n} of the list is no host or host:port.", hint=HINT)
    return Host(unquote(match[1]), port)


def _options(name: str, scheme: str, query: str) -> Mapping[str, str]:
    known, options = (*COMMON, *OPTIONS[scheme]), {}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key not in known:
            raise ConfigError(
                f"{name}: unknown option {key!r}.", hint=f"Known: {', '.join(known)}."
            )
        options[key] = unquote(value)
    return MappingProxyType(options)


def _unique(scheme: str, taken: list[str]) -> str:
    names = [scheme, *(f"{scheme}-{n}" for n in range(2, len(taken) + 2))]
    return next(name for name in names if name not in taken)
