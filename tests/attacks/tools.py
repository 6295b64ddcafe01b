"""What an attacker needs: a small store with known KV, and ways to spoil its files.

`Den` is self-contained; the file functions work on any folder of a DiskTier, so that the suites of
the engine can attack a whole build with them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import xxhash

from preread.metrics import Metrics
from preread.store.keys import OVERHEAD, Box, Geometry, fingerprint
from preread.store.store import LoadReport, Store
from preread.store.tiers.base import Tier
from preread.store.tiers.disk import DiskTier

# The header as docs/format.md has it: name -> (offset, size).
FIELDS = {
    "magic": (0, 8),
    "version": (8, 2),
    "header_length": (10, 2),
    "flags": (12, 4),
    "payload_length": (16, 8),
    "token_start": (24, 4),
    "token_end": (28, 4),
    "layer_start": (32, 4),
    "layer_end": (36, 4),
    "head_start": (40, 4),
    "head_end": (44, 4),
    "head_dim": (48, 4),
    "dtype": (52, 2),
    "codec": (54, 2),
    "reserved_a": (56, 8),
    "key": (64, 32),
    "fingerprint": (96, 32),
    "tenant": (128, 32),
    "chain": (160, 32),
    "reserved_b": (192, 64),
}
HEADER, CHECKSUM = 256, 16

# 2 boxes a span: layers [0, 1) and [1, 3), of 512 and 1,024 payload bytes.
GEOMETRY = Geometry(3, 2, 4, "float32", chunk_tokens=8, chunk_bytes=1024 + OVERHEAD)
FINGERPRINT = fingerprint({"weights": "ours"})


# --- files of a DiskTier ---


def chunk_files(root: Path) -> list[Path]:
    return sorted((root / "chunks").rglob("*.kv"))


def chunk_file(root: Path, key: str) -> Path:
    return root / "chunks" / key[0] / key[1] / f"{key}.kv"


def flip(path: Path, offset: int, mask: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def truncate(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def exchange(one: Path, two: Path) -> None:
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)


def forge(path: Path, name: str, value: bytes | int) -> None:
    """Overwrite a header field and make the checksum right again: a competent forger."""
    offset, size = FIELDS[name]
    raw = value.to_bytes(size, "little") if isinstance(value, int) else value
    assert len(raw) == size
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = raw
    data[-CHECKSUM:] = xxhash.xxh3_128(bytes(data[:-CHECKSUM])).digest()
    path.write_bytes(data)


# --- a store with known KV ---


class Pieces:
    """The slow, obvious Slots."""

    def __init__(self, pieces: Iterable[memoryview]) -> None:
        self._pieces = list(pieces)

    def pieces(self) -> list[memoryview]:
        return self._pieces

    def fill(self, payload: memoryview) -> None:
        at = 0
        for piece in self._pieces:
            piece[:] = payload[at : at + len(piece)]
            at += len(piece)
        assert at == len(payload)


class WrongBytes(AssertionError):
    """The one thing that must never happen."""


@dataclass
class Truth:
    """KV [L, 2, G, N, D] of N tokens, random but known. As a sink it compares, bit for bit. As a
    place it takes every other box, to `arena`, which is like an engine's: what was not read there
    is anything."""

    geometry: Geometry
    kv: torch.Tensor
    boxes: list[Box] = field(default_factory=list)
    arena: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.clear()

    @classmethod
    def of(cls, geometry: Geometry, count: int, seed: int = 0) -> Truth:
        shape = (geometry.layers, 2, geometry.kv_heads, count, geometry.head_dim)
        kv = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return cls(geometry, kv.to(getattr(torch, geometry.dtype)))

    def source(self, box: Box) -> torch.Tensor:
        a, b, i, j, g, h = box
        return self.kv[i:j, :, g:h, a:b]

    def sink(self, box: Box, tensor: torch.Tensor) -> None:
        want = self.source(box).contiguous()
        if tensor.dtype != want.dtype or not torch.equal(
            tensor.reshape(-1).view(torch.uint8), want.reshape(-1).view(torch.uint8)
        ):
            raise WrongBytes(str(box))
        self.boxes.append(box)

    def clear(self) -> None:
        self.boxes.clear()
        self.arena = torch.full_like(self.kv, torch.nan)

    def placed(self, box: Box) -> bool:
        return (box.token_start // self.geometry.chunk_tokens + box.layer_start) % 2 == 1

    def place(self, box: Box) -> Pieces | None:
        """Every token of every head in a piece of its own."""
        if not self.placed(box):
            return None
        a, b, i, j, g, h = box
        parts = self.arena[i:j, :, g:h, a:b]
        return Pieces(
            memoryview(parts[x].view(torch.uint8).numpy())
            for x in itertools.product(*(range(n) for n in parts.shape[:-1]))
        )

    def read(self, box: Box) -> torch.Tensor:
        a, b, i, j, g, h = box
        return self.arena[i:j, :, g:h, a:b]


class Den:
    """Four spans (8, 8, 8, 5 tokens) of two boxes each, stored on disk."""

    tokens = tuple(range(100, 129))

    def __init__(self, root: Path, geometry: Geometry = GEOMETRY) -> None:
        self.root = root
        self.disk = DiskTier(root, fsync=False)
        self.truth = Truth.of(geometry, len(self.tokens))
        self.metrics = Metrics()
        self.store = self.open([self.disk])
        self.keys = self.save()

    def open(self, tiers: Sequence[Tier], tenant: str = "default") -> Store:
        return Store(tiers, self.truth.geometry, FINGERPRINT, tenant=tenant, metrics=self.metrics)

    def save(self) -> tuple[str, ...]:
        report = self.store.save(self.tokens, 0, self.truth.source)
        assert report.stored
        return report.keys

    def file(self, n: int) -> Path:
        """The file of box n of 8: span n // 2, in order."""
        return chunk_file(self.root, self.keys[n])

    def load(self, store: Store | None = None) -> LoadReport:
        """Load everything; the boxes delivered are right and tile the reported prefix."""
        truth = self.truth
        truth.clear()
        report = (store or self.store).load(
            self.tokens, len(self.tokens), truth.sink, place=truth.place
        )
        spans = [(a, min(a + 8, len(self.tokens))) for a in range(0, report.tokens, 8)]
        tiles = [box for a, b in spans for box in truth.geometry.boxes(a, b)]
        given = [box for box in tiles if not truth.placed(box) or box in truth.boxes]
        assert truth.boxes[: len(given)] == given
        assert len(truth.boxes) - len(given) < len(truth.geometry.cells)  # no whole span
        for box in set(tiles).difference(given):
            truth.sink(box, truth.read(box))
        assert not spans or spans[-1][1] == report.tokens
        return report

    def survives(self, bad: Sequence[int], reason: str, log: list[logging.LogRecord]) -> None:
        """The boxes `bad` were spoiled: everything before their first span is served, `reason` is
        reported and logged for each; after one recomputation all is whole again."""
        log.clear()
        report = self.load()
        assert report.tokens == min(bad) // 2 * 8
        assert report.faults == tuple((reason, self.keys[n]) for n in bad)
        for (_, key), record in zip(report.faults, log, strict=True):
            assert key in record.getMessage() and reason in record.getMessage()
        again = self.load()  # set aside: now they are plain misses
        assert (again.tokens, again.faults) == (report.tokens, ())
        self.save()
        assert self.load().tokens == len(self.tokens)


class _Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def recorded(logger: str) -> Iterator[list[logging.LogRecord]]:
    """What is logged, as it is logged."""
    recorder = _Recorder()
    logging.getLogger(logger).addHandler(recorder)
    try:
        yield recorder.records
    finally:
        logging.getLogger(logger).removeHandler(recorder)


def draws(seed: str) -> random.Random:
    return random.Random(seed)
