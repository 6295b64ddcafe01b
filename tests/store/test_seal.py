"""What is sealed can be opened by who asks for exactly that, and by nobody else."""

from __future__ import annotations

import base64
import os
import struct
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from preread.errors import ConfigError
from preread.store.chunk import HEADER_BYTES, ChunkFault, ChunkHeader, Fault, pack, unpack
from preread.store.keys import Box, chunk_key, prefixed, tenant_digest
from preread.store.seal import Keyring, Seal, check

OLD, NEW = bytes(range(32)), bytes(range(100, 132))
ALICE, BOB = tenant_digest("alice"), tenant_digest("bob")
BOX = Box(256, 300, 2, 4, 0, 2)
PAYLOAD = os.urandom(768)
CHAIN = b"c" * 32


def seal(*keys: bytes, tenant: bytes = ALICE) -> Seal:
    return Keyring(keys or (OLD,)).seal(tenant)


def header(of: Seal, tenant: bytes = ALICE) -> ChunkHeader:
    name = of.name(chunk_key(CHAIN, BOX, "raw"))
    return ChunkHeader(b"f" * 32, tenant, CHAIN, BOX, 64, 3, 1, len(PAYLOAD), name)


def value(of: Seal, chunk: ChunkHeader | None = None) -> memoryview:
    parts = of.pack(chunk or header(of), memoryview(PAYLOAD))
    return memoryview(bytearray(b"".join(parts)))


def fault(of: Seal, data: memoryview, expected: ChunkHeader | None = None) -> Fault:
    with pytest.raises(ChunkFault) as caught:
        of.unpack(data, expected or header(of))
    return caught.value.reason


def test_round_trip_and_length() -> None:
    ours = seal()
    data = value(ours)
    plain = b"".join(pack(header(ours), memoryview(PAYLOAD)))
    assert len(data) == len(plain) and PAYLOAD[:16] not in bytes(data)
    check(data, header(ours).key)
    assert ours.unpack(data, header(ours)) == PAYLOAD
    assert ours.unpack(data, header(ours)) == PAYLOAD  # it is still sealed


def test_the_page_is_enough_to_open_one() -> None:
    """Slow twin, from docs/format.md alone."""

    def derive(info: bytes) -> bytes:
        return HKDF(SHA256(), 32, None, info).derive(OLD)

    ours = seal()
    data, chunk = bytes(value(ours)), header(ours)
    key_id, nonce, name = data[24:32], data[32:44], data[64:96]
    assert key_id == derive(prefixed(b"preread/seal/1/id"))[:8] and name == chunk.key
    assert data[128:160] == derive(prefixed(b"preread/seal/1/owner") + ALICE)
    assert data[44:64] + data[96:128] + data[160:240] == bytes(132)
    cipher = AESGCM(derive(prefixed(b"preread/seal/1/data") + key_id + ALICE))
    numbers = struct.pack("<6IIHH", *BOX, 64, 3, 1)
    bound = data[:240] + numbers + b"f" * 32 + ALICE + CHAIN
    assert cipher.decrypt(nonce, data[256:], bound) == PAYLOAD


def test_nothing_of_the_content_shows() -> None:
    ours = seal()
    data = bytes(value(ours))
    chunk = header(ours)
    key = chunk_key(CHAIN, BOX, "raw")
    assert not [x for x in (key, ALICE, chunk.fingerprint, chunk.chain) if x in data]
    assert value(ours)[32:44] != value(ours)[32:44]  # a nonce is not used twice
    assert bytes(value(ours)[HEADER_BYTES:]) != bytes(value(ours)[HEADER_BYTES:])


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("fingerprint", b"x" * 32),
        ("tenant", b"x" * 32),
        ("chain", b"x" * 32),  # other tokens, or another epoch
        ("box", BOX._replace(layer_end=5)),
        ("head_dim", 32),
        ("dtype", 2),
        ("codec", 2),
    ],
)
def test_every_field_is_bound_to_the_payload(field: str, other: object) -> None:
    """Also under the same name: no field is believed because another one fits."""
    ours = seal()
    expected = header(ours)._replace(**{field: other})  # type: ignore[arg-type]
    assert fault(ours, value(ours), expected) is Fault.BROKEN_SEAL


def test_another_name_or_length() -> None:
    ours = seal()
    assert fault(ours, value(ours), header(ours)._replace(key=b"x" * 32)) is Fault.OTHER_KEY
    assert fault(ours, value(ours), header(ours)._replace(payload_nbytes=9)) is Fault.WRONG_LENGTH


def test_another_tenant_with_the_same_master_key() -> None:
    theirs = seal(tenant=BOB)
    assert theirs.name(chunk_key(CHAIN, BOX, "raw")) != header(seal()).key
    stolen = header(seal())  # even if everything else were the same
    assert fault(theirs, value(seal()), stolen) is Fault.BROKEN_SEAL


def test_every_bit_counts() -> None:
    """A flipped bit is a fault; in the checksum, which opening does not need, `check` sees it."""
    ours = seal()
    whole = value(ours)
    for bit in range(8 * len(whole)):
        data = memoryview(bytearray(whole))
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ChunkFault):
            check(data, header(ours).key)
        if not 240 <= bit // 8 < 256:
            fault(ours, data)
        else:
            assert ours.unpack(data, header(ours)) == PAYLOAD


def test_every_length_counts() -> None:
    ours = seal()
    whole = value(ours)
    for length in range(len(whole)):
        assert fault(ours, memoryview(bytearray(whole[:length]))) is Fault.TRUNCATED
    assert fault(ours, memoryview(bytearray(whole) + b"\0")) is Fault.WRONG_LENGTH


def test_plain_and_sealed_never_pass_for_one_another() -> None:
    ours = seal()
    chunk = header(ours)
    plain = memoryview(bytearray(b"".join(pack(chunk, memoryview(PAYLOAD)))))
    assert fault(ours, plain) is Fault.PLAIN
    with pytest.raises(ChunkFault) as caught:
        unpack(value(ours), chunk)
    assert caught.value.reason is Fault.SEALED


# --- keys ---


def test_rotation() -> None:
    """A new key in front: what the old one sealed is found and opens; who has not got the new one
    yet finds what it sealed, and misses."""
    before, both, after = seal(OLD), seal(NEW, OLD), seal(NEW)
    assert header(before) == header(both) != header(after)
    assert both.unpack(value(before), header(both)) == PAYLOAD
    assert fault(before, value(both)) is Fault.UNKNOWN_KEY
    renamed = header(after)
    assert after.unpack(value(both, renamed), renamed) == PAYLOAD


@pytest.mark.parametrize(
    "word",
    [
        NEW.hex(),
        NEW.hex().upper(),
        base64.b64encode(NEW).decode(),
        base64.urlsafe_b64encode(NEW).decode().rstrip("="),
    ],
)
def test_keys_are_hex_or_base64(word: str) -> None:
    assert Keyring.parse(f"# new\n{word} # first\n\n{OLD.hex()},", "file").keys == (NEW, OLD)


@pytest.mark.parametrize(
    "text", ["", "#", "abc", "z" * 64, "00" * 32, "ff" * 31, f"{OLD.hex()} {OLD.hex()}", "é" * 44]
)
def test_bad_keys_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigError, match=r"\$PREREAD_KEY") as caught:
        Keyring.parse(text, "$PREREAD_KEY")
    assert not [word for word in text.split() if len(word) > 8 and word in str(caught.value)]


def test_a_keyring_does_not_show_its_keys() -> None:
    ring = Keyring((OLD,))
    assert OLD.hex() not in repr(ring) + repr(ring.seal(ALICE)) and repr(OLD) not in repr(ring)


def test_the_store_starts_without_cryptography() -> None:
    code = "import sys, preread.store.store; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ConfigError, match=r"pip install 'preread\[seal\]'"):
        seal()
