"""How many sequences fit, what limits them and how fast they could be.

    memory >= reserve + weights + workspace + contexts x context + sequences x (own KV + logits)

Sizes are real GQA sizes, rounded up to the engine's extents and pages. An answer of one token
stores no KV of its own; its sequences are limited by what one step takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from preread.capacity.machine import Machine
from preread.capacity.roofline import Load, Rate, Roofline
from preread.capacity.shape import ITEMSIZE, Shape
from preread.config import EngineSection
from preread.errors import ConfigError, ContextTooLong

RESERVE = 0.05  # of the memory: the driver, fragments, everything that is not counted
PAYS = 1.1  # twice the sequences must give this much more, else memory is not what limits
ENOUGH = 0.9  # of the full rate: the fewest sequences that reach it are enough
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. sequence: own KV of one; logits: of one, while a step runs."""

    total: int
    reserve: int
    weights: int
    workspace: int
    contexts: int
    sequence: int
    logits: int

    @property
    def left(self) -> int:
        """For sequences; negative when not even the rest fits."""
        return self.total - self.reserve - self.weights - self.workspace - self.contexts

    @property
    def fits(self) -> int:
        return max(0, self.left // (self.sequence + self.logits))


@dataclass(frozen=True, slots=True)
class Plan:
    """rates: of 1, 2, 4 … `sequences` at once, empty when nothing fits; enough: fewest sequences
    that reach nearly the full rate; limited_by: memory, compute or bandwidth."""

    shape: Shape
    machine: Machine
    dtype: str
    load: Load
    memory: Memory
    sequences: int
    limited_by: str
    rates: tuple[Rate, ...]
    enough: int
    reading_s: float
    precision: str = "full"
    kv_precision: str = "full"

    @property
    def settings(self) -> dict[str, int]:
        """Keys of [engine] that make the engine use this plan."""
        contexts = -(-self.memory.contexts // MIB)
        own = -(-self.enough * self.memory.sequence // MIB)
        settings = {"max_sequences": self.enough, "prefix_memory_mb": contexts}
        return settings | ({"suffix_memory_mb": own} if own else {})

    def to_json(self) -> dict[str, Any]:
        """The object of `preread plan --json`; see docs/capacity.md."""
        full = self.rates[-1] if self.rates else None
        return {
            "kv_bytes_per_token": self.shape.kv_token_bytes(self.dtype, self.kv_precision),
            "sequences": self.sequences,
            "limited_by": self.limited_by,
            "enough_sequences": self.enough,
            "requests_per_s": full.requests_per_s if full else 0.0,
            "tokens_per_s": full.tokens_per_s if full else 0.0,
            "first_token_s": full.first.seconds if full else None,
            "request_s": full.spent.seconds if full else None,
            "context_s": self.reading_s,
            "memory": asdict(self.memory),
            "load": asdict(self.load),
            "dtype": self.dtype,
            "weights_precision": self.precision,
            "kv_precision": self.kv_precision,
            "parameters": self.shape.parameters,
            "machine": self.machine.name,
            "flops_per_s": self.machine.rate(self.dtype),
            "bytes_per_s": self.machine.bandwidth,
            "rates_from": self.machine.source,
            "by_sequences": [
                {
                    "sequences": rate.sequences,
                    "requests_per_s": rate.requests_per_s,
                    "tokens_per_s": rate.tokens_per_s,
                    "bound": rate.bound,
                }
                for rate in self.rates
            ],
            "settings": self.settings if self.rates else {},
            "notes": list(self.shape.notes),
        }


def make_plan(
    shape: Shape,
    machine: Machine,
    dtype: str,
    load: Load,
    engine: EngineSection,
    precision: str = "full",
    kv_precision: str = "full",
) -> Plan:
    """precision, kv_precision: model.weights_precision and that one. Raises ContextTooLong when a
    prompt with its answer does not fit the model, ConfigError when the machine's rates are
    unknown."""
    engine = engine.limited("cuda" if machine.on_gpu else "cpu")
    longest = load.context + load.question + load.output
    if longest > shape.limit:
        raise ContextTooLong(
            f"{load.context:,} + {load.question:,} + {load.output:,} tokens are over the model's "
            f"limit of {shape.limit:,}.",
            hint="Lower --context, --question or --output.",
        )
    if not (machine.rate(dtype) and machine.bandwidth):
        raise ConfigError(
            f"The rates of {machine.name} in {dtype} are unknown.",
            hint="Give --machine, or --flops and --bandwidth.",
        )
    memory = memory_of(shape, machine.memory, dtype, load, engine, precision, kv_precision)
    fits = memory.fits
    if load.output == 1:
        fits = min(fits, max(1, engine.batch_tokens // load.question))
    rate = machine.rate(dtype)
    precisions = precision, kv_precision
    roof = Roofline(shape, dtype, rate, machine.bandwidth, engine.batch_tokens, *precisions)
    rates = tuple(roof.rate(load, n) for n in doubled(fits))
    limited_by, enough = "memory", 0
    if rates:
        most = rates[-1].requests_per_s
        more = roof.rate(load, 2 * fits).requests_per_s
        by_memory = more >= PAYS * most and fits == memory.fits
        limited_by = "memory" if by_memory else rates[-1].bound
        enough = next(r.sequences for r in rates if r.requests_per_s >= ENOUGH * most)
    reading_s = roof.reading(load.context).seconds if load.context else 0.0
    return Plan(
        shape, machine, dtype, load, memory, fits, limited_by, rates, enough, reading_s, *precisions
    )


def memory_of(
    shape: Shape,
    total: int,
    dtype: str,
    load: Load,
    engine: EngineSection,
    precision: str = "full",
    kv_precision: str = "full",
) -> Memory:
    """See the formula above."""
    item, kv = ITEMSIZE[dtype], shape.kv_token_bytes(dtype, kv_precision)
    own = load.question + load.output if load.output > 1 else 0
    return Memory(
        total=total,
        reserve=int(RESERVE * total),
        weights=shape.weights_size(dtype, precision),
        workspace=engine.batch_tokens * _live(shape) * item,
        contexts=load.contexts * _whole(load.context, engine.extent_tokens) * kv,
        sequence=_whole(own, engine.page_tokens) * kv,
        logits=4 * shape.vocab,
    )


def doubled(most: int) -> Iterator[int]:
    """1, 2, 4 … and `most` itself; nothing when it is 0."""
    n = 1
    while n < most:
        yield n
        n *= 2
    if most:
        yield most


def _live(shape: Shape) -> int:
    """Elements alive at once for each token of a step: the residual stream and its norm, and the
    larger of the MLP's (gate and up, their product) and attention's (q, k and v, rotated ones,
    and two partial results in float32)."""
    heads = shape.heads + 2 * shape.kv_heads
    attention = (2 * heads + 4 * shape.heads) * shape.head_dim
    return 2 * shape.hidden + max(3 * shape.inner, attention)


def _whole(tokens: int, unit: int) -> int:
    return -(-tokens // unit) * unit
