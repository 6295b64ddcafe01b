"""Who may ask, and as whom: the tenant comes from the key alone, never from what a caller says."""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from preread.errors import ConfigError

COMMENT = re.compile(r"(^|\s)#.*")  # else it is part of a key


class Keys:
    """Digest of a key -> tenant. Without any key everybody may ask, as the default tenant."""

    def __init__(self, tenants: Mapping[str, str], default: str) -> None:
        """tenants: key -> tenant."""
        self._tenants = [(_digest(key), tenant) for key, tenant in tenants.items()]
        self._default = default

    def __repr__(self) -> str:
        return f"Keys({len(self._tenants)})"

    @property
    def open(self) -> bool:
        """Whether everybody may ask."""
        return not self._tenants

    @property
    def tenants(self) -> tuple[str, ...]:
        """All there are, each once."""
        return tuple(dict.fromkeys(t for _, t in self._tenants)) or (self._default,)

    def tenant(self, authorization: str) -> str | None:
        """Of an Authorization header; None: no key, or a wrong one. How long it takes says nothing
        about the keys: digests are compared, all of them, each in constant time."""
        if self.open:
            return self._default
        scheme, _, key = authorization.partition(" ")
        given, found = _digest(key.strip() if scheme.lower() == "bearer" else ""), None
        for digest, tenant in self._tenants:
            if hmac.compare_digest(digest, given):
                found = tenant
        return found


def read_keys(key: str, file: str, home: Path, default: str) -> Keys:
    """key: of the default tenant, "" for none; file: one key a line, `key` or `tenant:key`, with #
    for comments; relative to the home. Raises ConfigError; no message shows a key."""
    if key and file:
        raise ConfigError("server.key and server.keys_file are both set.", hint="Remove one.")
    if key:
        return Keys({_usable(key, "server.key or $PREREAD_SERVER_KEY"): default}, default)
    if not file:
        return Keys({}, default)
    path = home / Path(file).expanduser()
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"{path}: the keys cannot be read: {why}.", hint="Mend server.keys_file."
        ) from None
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{path}: others can read these keys.", hint=f"chmod 600 {path}")
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not (line := COMMENT.sub("", line).strip()):
            continue
        tenant, colon, given = line.rpartition(":")
        given = _usable(given.strip(), f"{path}:{number}")
        tenant = tenant.strip() if colon else default
        if not tenant or found.setdefault(given, tenant) != tenant:
            raise ConfigError(
                f"{path}:{number}: a key of no tenant, or of two.", hint="Write tenant:key."
            )
    if not found:  # else a file that was emptied by mistake would open the door
        raise ConfigError(f"{path} holds no key.", hint="Write one a line: tenant:key")
    return Keys(found, default)


def _usable(key: str, where: str) -> str:
    if len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{where}: a key has at least 16 characters, without spaces.",
            hint="Make one: openssl rand -hex 32",
        )
    return key


def _digest(key: str) -> bytes:
    return sha256(key.encode(errors="surrogateescape")).digest()
