"""Records as bytes: JSON without the texts, which are kept apart under their digest."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, fields
from hashlib import sha256
from typing import Any

from preread.contexts.catalog.base import (
    ContextRecord,
    ContextSummary,
    EmbeddingRecord,
    Part,
    ShardRecord,
    SourceRecord,
)


def pack(record: ContextRecord) -> tuple[bytes, dict[str, str]]:
    """(compressed record, texts by digest)."""
    texts: dict[str, str] = {}

    def aside(text: str) -> str:
        digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        texts[digest] = text
        return digest

    body = asdict(record)
    for source in body["sources"]:
        source["text"] = aside(source["text"])
        source["line_map"] = _runs(source["line_map"])
    for shard in body["shards"]:
        shard["system"] = aside(shard["system"])
        shard["parts"] = [list(part.values()) for part in shard["parts"]]
    if embedding := body["embedding"]:
        embedding["sections"] = [list(part.values()) for part in embedding["sections"]]
        embedding["vectors"] = base64.b64encode(embedding["vectors"]).decode()
    return compress(json.dumps(body)), texts


def unpack(data: bytes, text_of: Callable[[str], str]) -> ContextRecord:
    """The way back. Keys written by a later minor release are left out."""
    body = _known(ContextRecord, json.loads(decompress(data)))
    body["sources"] = tuple(
        SourceRecord(
            **_known(SourceRecord, source)
            | {"text": text_of(source["text"]), "line_map": _unruns(source["line_map"])}
        )
        for source in body["sources"]
    )
    body["shards"] = tuple(
        ShardRecord(
            **_known(ShardRecord, shard)
            | {
                "system": text_of(shard["system"]),
                "sources": tuple(shard["sources"]),
                "chunk_keys": tuple(shard["chunk_keys"]),
                "parts": _parts(shard["parts"]),
            }
        )
        for shard in body["shards"]
    )
    body["patterns"] = tuple(body["patterns"])
    if embedding := body["embedding"]:
        body["embedding"] = EmbeddingRecord(
            embedding["embedder"],
            embedding["dim"],
            _parts(embedding["sections"]),
            base64.b64decode(embedding["vectors"]),
        )
    return ContextRecord(**body)


def pack_whole(record: ContextRecord) -> bytes:
    """A record with its texts, compressed."""
    body, texts = pack(record)
    return compress(json.dumps({"record": decompress(body), "texts": texts}))


def unpack_whole(data: bytes) -> ContextRecord:
    """The way back."""
    whole = json.loads(decompress(data))
    return unpack(compress(whole["record"]), whole["texts"].__getitem__)


def summary_of(record: ContextRecord) -> ContextSummary:
    """What `list` shows of a record that nobody has used yet."""
    return ContextSummary(
        name=record.name,
        version=record.version,
        model=record.model,
        fingerprint=record.fingerprint,
        tokens=record.tokens,
        shards=len(record.shards),
        sources=len(record.sources),
        kv_bytes=sum(shard.kv_bytes for shard in record.shards),
        created_at=record.created_at,
        expires_at=record.expires_at,
        last_used=record.created_at,
        invalidated=record.invalidated,
    )


def read_summary(values: dict[str, Any]) -> ContextSummary:
    """From the JSON object of a summary."""
    return ContextSummary(**_known(ContextSummary, values))


def compress(text: str) -> bytes:
    return zlib.compress(text.encode("utf-8", "surrogatepass"), 6)


def decompress(data: bytes) -> str:
    return zlib.decompress(data).decode("utf-8", "surrogatepass")


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {key: value for key, value in values.items() if key in names}


def _parts(values: list[list[int]]) -> tuple[Part, ...]:
    return tuple(Part(*value) for value in values)


def _runs(line_map: tuple[int, ...]) -> list[int]:
    """Differences: line numbers mostly rise by one, and such lists compress to nothing."""
    return [b - a for a, b in zip((0, *line_map), line_map, strict=False)]


def _unruns(steps: list[int]) -> tuple[int, ...]:
    total, lines = 0, []
    for step in steps:
        total += step
        lines.append(total)
    return tuple(lines)
