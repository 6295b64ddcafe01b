"""Who comes in: by key, and without one only what runs on this machine."""

from __future__ import annotations

import ipaddress

from aiohttp import web

from preread.errors import ConfigError
from preread.server.keys import Keys
from preread.server.refusal import Refusal

NAMES_OF_THIS_MACHINE = ("localhost", "127.0.0.1", "[::1]")


class Door:
    """Of one address."""

    def __init__(self, keys: Keys, host: str) -> None:
        """Raises ConfigError for an address that others reach while nobody needs a key."""
        self._keys = keys
        self._names = (*NAMES_OF_THIS_MACHINE, host.lower())
        if keys.open and not is_loopback(host):
            raise ConfigError(
                f"server.host = {host!r} lets everybody on the network ask.",
                hint="Set PREREAD_SERVER_KEY or server.keys_file, or listen at 127.0.0.1.",
            )

    def admit(self, request: web.Request) -> str:
        """The tenant who asks. Raises Refusal. Where no key is needed no page in a browser of this
        machine may ask: it would name another host (DNS rebinding), or send what is not called
        JSON, which a browser lets pages do without asking first."""
        if self._keys.open and (host := _name(request.host)) not in self._names:
            raise Refusal(403, f"Host {host!r} is not this server.", code="wrong_host")
        tenant = self._keys.tenant(request.headers.get("Authorization", ""))
        if tenant is None:
            raise Refusal(
                401, "The API key is missing or wrong.", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        if request.method == "POST" and request.content_type != "application/json":
            raise Refusal(415, "Send Content-Type: application/json.", code="wrong_type")
        return tenant


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name(host: str) -> str:
    """Without its port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()
