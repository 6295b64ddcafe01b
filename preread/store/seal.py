"""Sealed chunks: AES-256-GCM, so that a tier can neither read, change nor exchange what it keeps.

A sealed value is as long as a plain one: header, ciphertext, tag. Its header says which key and
nonce, and nothing about what is inside; that is known to who asks, and bound to the ciphertext as
associated data. Byte by byte in docs/format.md, what it promises in docs/security.md.

Sources: NIST SP 800-38D (GCM), RFC 5869 (HKDF). Keys: 256 bits. Needs the package cryptography,
which is imported when a key is there.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash

from preread.errors import ConfigError
from preread.store.chunk import (
    CHECKSUM_BYTES,
    HEADER_BYTES,
    MAGIC,
    SEALED,
    VERSION,
    ChunkFault,
    ChunkHeader,
    Fault,
    described,
    opening,
    verify,
    verify_key,
    whole,
)
from preread.store.keys import prefixed
from preread.store.tiers.base import ChunkKey, Room, fresh

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES, ID_BYTES = 32, 8
# Random, 96 bits: a key of one tenant may seal 2^32 chunks (8 PiB at 2 MiB a chunk) before
# two nonces are equal with a chance of 2^-32 (SP 800-38D, 8.3). See docs/security.md.
NONCE_BYTES = 12

# What a header says up to the payload's length, key id, nonce, zeros, name, zeros, owner, zeros;
# then a checksum of all other bytes of the value, for those who look after it without a key.
_CLEAR = struct.Struct("<8sHHIQ8s12s20s32s32s32s80s")
_ZEROS = bytes(20), bytes(32), bytes(80)
_HINT = "A key is 256 random bits in hex or base64: openssl rand -hex 32"


@dataclass(frozen=True, slots=True)
class Keyring:
    """Master keys. The first one seals, all of them open, the last one names: so a new key is put
    in front, and the old one is dropped when what it sealed has gone."""

    keys: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def parse(cls, text: str, where: str) -> Keyring:
        """Keys in hex or base64 between white space or commas; # begins a comment. where: how
        errors call the place. Raises ConfigError, which never shows a key."""
        words = re.sub(r"#.*", "", text).replace(",", " ").split()
        if not words:
            raise ConfigError(f"{where}: there is no key.", hint=_HINT)
        keys = tuple(_key(word, f"{where}: key {n}") for n, word in enumerate(words, 1))
        if len(set(keys)) < len(keys):
            raise ConfigError(f"{where}: the same key stands there twice.", hint="Remove one.")
        return cls(keys)

    def seal(self, tenant: bytes) -> Seal:
        """The seal of one tenant (its digest). Raises ConfigError without cryptography."""
        derive = _derivation()
        aead = _aead()
        ciphers: dict[bytes, AESGCM] = {}
        for key in self.keys:
            key_id = derive(key, prefixed(b"preread/seal/1/id"))[:ID_BYTES]
            ciphers[key_id] = aead(derive(key, prefixed(b"preread/seal/1/data") + key_id + tenant))
        name, owner = (
            derive(self.keys[-1], prefixed(b"preread/seal/1/" + what) + tenant)
            for what in (b"name", b"owner")
        )
        return Seal(ciphers, name, owner)


class Seal:
    """Seals and opens the chunks of one tenant. Thread-safe."""

    def __init__(self, ciphers: Mapping[bytes, AESGCM], name_key: bytes, owner: bytes) -> None:
        """ciphers: by key id; the first one seals. owner: stands for the tenant in what it seals,
        so that a tier can keep each tenant to its share."""
        self._ciphers = dict(ciphers)
        self._first = next(iter(self._ciphers))
        self._name_key = name_key
        self._owner = owner

    def __repr__(self) -> str:
        return f"Seal({self._first.hex()})"

    def name(self, key: ChunkKey) -> ChunkKey:
        """Under which tiers and catalog know the chunk: says nothing to who lacks the key."""
        return ChunkKey(hmac.digest(self._name_key, key, "sha256"))

    def pack(self, chunk: ChunkHeader, payload: memoryview) -> tuple[bytes, memoryview, bytes]:
        """The parts of a sealed value; chunk.key is its name."""
        assert payload.nbytes == chunk.payload_nbytes, (payload.nbytes, chunk)
        nonce = os.urandom(NONCE_BYTES)
        fields = MAGIC, VERSION, HEADER_BYTES, SEALED, payload.nbytes, self._first, nonce
        clear = _CLEAR.pack(*fields, _ZEROS[0], chunk.key, _ZEROS[1], self._owner, _ZEROS[2])
        sealed = fresh(payload.nbytes + CHECKSUM_BYTES)
        cipher = self._ciphers[self._first]
        cipher.encrypt_into(nonce, payload, clear + described(chunk), sealed)
        body, tag = sealed[:-CHECKSUM_BYTES], bytes(sealed[-CHECKSUM_BYTES:])
        return clear + _checksum(clear, sealed), body, tag

    def unpack(self, value: memoryview, expected: ChunkHeader, room: Room = fresh) -> memoryview:
        """The payload, in memory of `room`: `value` stays sealed. Raises ChunkFault."""
        view = memoryview(value)
        key_id, nonce = _clear(view, expected.key)
        if (cipher := self._ciphers.get(key_id)) is None:
            raise ChunkFault(Fault.UNKNOWN_KEY)
        if len(view) != HEADER_BYTES + expected.payload_nbytes + CHECKSUM_BYTES:
            raise ChunkFault(Fault.WRONG_LENGTH)
        payload = room(expected.payload_nbytes)
        bound = bytes(view[: _CLEAR.size]) + described(expected)
        from cryptography.exceptions import InvalidTag

        try:
            cipher.decrypt_into(nonce, view[HEADER_BYTES:], bound, payload)
        except InvalidTag:
            raise ChunkFault(Fault.BROKEN_SEAL) from None
        return payload


def check(value: memoryview, key: ChunkKey) -> None:
    """A whole, undamaged value in its place, plain or sealed; needs no model, tokens or key. Raises
    ChunkFault."""
    view = memoryview(value)
    if opening(view)[0] != SEALED:
        verify_key(verify(view)[0], key)
        return
    _clear(view, key)
    if _checksum(view[: _CLEAR.size], view[HEADER_BYTES:]) != view[_CLEAR.size : HEADER_BYTES]:
        raise ChunkFault(Fault.CHECKSUM)


def _clear(view: memoryview, name: ChunkKey) -> tuple[bytes, bytes]:
    """(key id, nonce) of a sealed value that is as long as it says and stands under its name."""
    flags, payload_nbytes = opening(view)
    if not flags:
        raise ChunkFault(Fault.PLAIN)
    *_, key_id, nonce, zeros_a, named, zeros_b, _owner, zeros_c = _CLEAR.unpack_from(view)
    if (flags, (zeros_a, zeros_b, zeros_c)) != (SEALED, _ZEROS):
        raise ChunkFault(Fault.BAD_HEADER)
    whole(len(view), payload_nbytes)
    if named != name:
        raise ChunkFault(Fault.OTHER_KEY)
    return key_id, nonce


def _checksum(clear: bytes | memoryview, sealed: memoryview) -> bytes:
    digest = xxhash.xxh3_128(clear)
    digest.update(sealed)
    return digest.digest()


def _key(word: str, where: str) -> bytes:
    try:
        if len(word) == 2 * KEY_BYTES:
            key = bytes.fromhex(word)
        else:
            padded = word.rstrip("=") + "=" * (-len(word.rstrip("=")) % 4)
            key = base64.b64decode(padded.replace("-", "+").replace("_", "/"), validate=True)
    except (ValueError, binascii.Error):
        raise ConfigError(f"{where} is neither hex nor base64.", hint=_HINT) from None
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{where} has {8 * len(key)} bits, not 256.", hint=_HINT)
    if len(set(key)) == 1:
        raise ConfigError(f"{where} is not random.", hint=_HINT)
    return key


def _aead() -> type[AESGCM]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigError(
            "A key is set, and sealing chunks needs the package cryptography.",
            hint="pip install 'preread[seal]'",
        ) from None
    return AESGCM


def _derivation() -> Callable[[bytes, bytes], bytes]:
    """(master key, info) -> 256 bits, by HKDF-SHA256 without salt."""
    _aead()
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return lambda key, info: HKDF(SHA256(), KEY_BYTES, None, info).derive(key)
