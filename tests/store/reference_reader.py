"""A reader of preread chunks written from docs/format.md alone: standard library and xxhash.

python reference_reader.py FILE...      prints what each chunk holds, or why it is none
"""

from __future__ import annotations

import hashlib
import pathlib
import sys
from typing import Any

import xxhash

FIELDS = {  # name: (offset, size, is an integer)
    "magic": (0, 8, False),
    "version": (8, 2, True),
    "header_length": (10, 2, True),
    "flags": (12, 4, True),
    "payload_length": (16, 8, True),
    "token_start": (24, 4, True),
    "token_end": (28, 4, True),
    "layer_start": (32, 4, True),
    "layer_end": (36, 4, True),
    "head_start": (40, 4, True),
    "head_end": (44, 4, True),
    "head_dim": (48, 4, True),
    "dtype": (52, 2, True),
    "codec": (54, 2, True),
    "reserved_a": (56, 8, True),
    "key": (64, 32, False),
    "fingerprint": (96, 32, False),
    "tenant": (128, 32, False),
    "chain": (160, 32, False),
    "reserved_b": (192, 64, True),
}
RANGES = ("token_start", "token_end", "layer_start", "layer_end", "head_start", "head_end")
DTYPES = {1: ("float32", 4), 2: ("float16", 2), 3: ("bfloat16", 2)}
CODECS = {1: "raw"}


def digest(domain: str, *data: bytes) -> bytes:
    name = domain.encode()
    return hashlib.sha256(len(name).to_bytes(4, "little") + name + b"".join(data)).digest()


def chain(fingerprint: bytes, tenant: str, tokens: list[int], chunk_tokens: int) -> list[bytes]:
    """The chain digest after every span."""
    link, digests = (
        digest("preread/chain/1", fingerprint, digest("preread/tenant/1", tenant.encode())),
        [],
    )
    for a in range(0, len(tokens), chunk_tokens):
        span = b"".join(t.to_bytes(4, "little") for t in tokens[a : a + chunk_tokens])
        link = digest("preread/link/1", link, span)
        digests.append(link)
    return digests


def key(chain_digest: bytes, ranges: list[int], codec: str) -> bytes:
    box = b"".join(n.to_bytes(4, "little") for n in ranges)
    return digest("preread/key/1", chain_digest, box, codec.encode())


def read(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header fields and payload. Raises ValueError."""
    if len(data) < 256:
        raise ValueError("shorter than a header")
    header: dict[str, Any] = {}
    for name, (offset, size, integer) in FIELDS.items():
        raw = data[offset : offset + size]
        header[name] = int.from_bytes(raw, "little") if integer else raw
    if header["magic"] != b"\x89PRD\r\n\x1a\n" or header["version"] != 1:
        raise ValueError("not a chunk of version 1")
    if header["header_length"] != 256 or len(data) != 256 + header["payload_length"] + 16:
        raise ValueError("wrong length")
    if header["flags"] or header["reserved_a"] or header["reserved_b"]:
        raise ValueError("flags or reserved bytes are set")
    if xxhash.xxh3_128_digest(data[:-16]) != data[-16:]:
        raise ValueError("wrong checksum")
    if header["dtype"] not in DTYPES or header["codec"] not in CODECS:
        raise ValueError("unknown dtype or codec")
    a, b, i, j, g, h = box = [header[name] for name in RANGES]
    itemsize = DTYPES[header["dtype"]][1]
    if header["payload_length"] != (j - i) * 2 * (h - g) * (b - a) * header["head_dim"] * itemsize:
        raise ValueError("payload does not fill its box")
    if header["key"] != key(header["chain"], box, CODECS[header["codec"]]):
        raise ValueError("the key is another chunk's")
    return header, data[256:-16]


if __name__ == "__main__":
    for path in sys.argv[1:]:
        try:
            found, payload = read(pathlib.Path(path).read_bytes())
            ranges = [found[name] for name in RANGES]
            print(path, ranges, DTYPES[found["dtype"]][0], len(payload), "bytes")
        except ValueError as error:
            print(path, "is no chunk:", error)
