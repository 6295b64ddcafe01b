"""One HTTP client for all providers: aiohttp, an optional extra. It follows no redirect (a key must
not travel), keeps no cookie and tells what went wrong on the wire from what a server answered."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from preread.errors import ConfigError

if TYPE_CHECKING:
    import aiohttp

LONG = 512  # characters
LARGEST = 1 << 26  # bytes of a response
BOM = b"\xef\xbb\xbf"
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
INSTALL = "pip install 'preread[providers]'"


class Reply(NamedTuple):
    """A whole response. headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any] | None:
        """The body as an object; None if it is none. Texts are whole characters: what is none is
        U+FFFD, because it could not be kept or sent."""
        try:
            value = json.loads(self.body.removeprefix(BOM).decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
        if SURROGATE.search(self.body):
            text = json.dumps(value, ensure_ascii=False)
            value = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        return value if isinstance(value, dict) else None


class Broken(Exception):
    """No whole response came: no connection, a reset, half a body or too long a wait."""


class Unsent(Broken):
    """No connection: the server has seen nothing of it."""


class TooLarge(Broken):
    """More than LARGEST: asking again would not help."""


class Http:
    """Connections to one base URL, made when they are first needed. Use it in one event loop."""

    def __init__(self, base: str, *, timeout_s: float = 120.0, connections: int = 512) -> None:
        """timeout_s: of one whole request. Raises ConfigError if aiohttp is not installed."""
        try:
            import aiohttp  # noqa: F401
        except ImportError as exc:
            raise ConfigError("Backends of others need aiohttp.", hint=INSTALL) from exc
        self.base = base.rstrip("/")
        self._timeout_s = timeout_s
        self._connections = connections
        self._proxy = _proxy(self.base)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, headers: Mapping[str, str], body: Any) -> Reply:
        """Raises Broken."""
        return await self.send("POST", path, headers, dump(body).encode())

    async def get(self, path: str, headers: Mapping[str, str]) -> Reply:
        """Raises Broken."""
        return await self.send("GET", path, headers, None)

    async def send(
        self, method: str, path: str, headers: Mapping[str, str], data: bytes | None
    ) -> Reply:
        """path: below the base URL, or a whole URL of the same host. Raises Broken."""
        import aiohttp

        url = path if "://" in path else self.base + path
        sent = {"Content-Type": "application/json", **headers} if data is not None else headers
        try:
            async with self._open().request(
                method, url, data=data, headers=sent, allow_redirects=False, proxy=self._proxy
            ) as response:
                body = await _read(response)
                lower = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status, lower, body)
        except TimeoutError as exc:
            raise Broken(f"no answer within {self._timeout_s:g} s") from exc
        except aiohttp.ClientConnectorError as exc:
            raise Unsent(str(exc) or type(exc).__name__) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise Broken(str(exc) or type(exc).__name__) from exc

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, ttl_dns_cache=300),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, unpacked. Raises TooLarge."""
    parts, size = [], 0
    while part := await response.content.readany():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise TooLarge(f"the answer is larger than {LARGEST:,} bytes")
    return b"".join(parts)


def dump(value: Any) -> str:
    """JSON, as json.dumps has it. Long texts are encoded once: rows share most of what they send,
    and it is the same object in each."""
    parts: list[str] = []
    _dump(value, parts.append)
    return "".join(parts)


def _dump(value: Any, put: Callable[[str], None]) -> None:
    if isinstance(value, str):
        put(_long(value) if len(value) >= LONG else quote(value))
    elif isinstance(value, dict) and value:
        before = "{"
        for name, inner in value.items():
            put(f"{before}{quote(name)}: ")
            _dump(inner, put)
            before = ", "
        put("}")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        before = "["
        for inner in value:
            put(before)
            _dump(inner, put)
            before = ", "
        put("]")
    else:
        put(json.dumps(value))


@lru_cache(64)
def _long(text: str) -> str:
    return json.dumps(text)


def _proxy(url: str) -> str | None:
    """As HTTPS_PROXY, HTTP_PROXY and NO_PROXY say."""
    parts = urlsplit(url)
    proxies = getproxies()
    if not proxies or proxy_bypass(parts.hostname or ""):
        return None
    return proxies.get(parts.scheme)
