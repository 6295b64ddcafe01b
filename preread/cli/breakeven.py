"""`preread plan --tiers`: from which length on a tier beats computing, as measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from preread.cli.output import note, size, table

if TYPE_CHECKING:
    from preread.capacity.plan import Plan
    from preread.config import Config
    from preread.store.rates import Pace, Prefill, Slowed

LENGTHS = (256, 1024, 4096, 16384, 65536)
MEMORY = 1e12  # bytes a second: nothing that is loaded from is quicker
STEP, MOST = 64, 1 << 17  # tokens: how finely, and how far, a break-even is looked for


@dataclass(frozen=True, slots=True)
class BreakEven:
    """token_bytes: of the KV as it is stored, in so many `boxes` for every chunk_tokens; prefill:
    what computing takes, as measured, else None and the plan's `roof`: tokens -> seconds; tiers:
    (name, place, pace; None: never measured), nearest first; slowed: what computing and loading
    from a tier cost each other; layer_groups: into how many ranges of layers a chunk's tokens are
    cut."""

    token_bytes: float
    chunk_tokens: int
    boxes: int
    prefill: Prefill | None
    roof: Callable[[int], float]
    tiers: tuple[tuple[str, str, Pace | None], ...]
    slowed: Callable[[Iterable[str]], Slowed]
    layer_groups: int

    @property
    def measured(self) -> bool:
        return self.prefill is not None

    def compute(self, tokens: int) -> float:
        """Seconds."""
        return self.prefill.seconds(0, tokens) if self.prefill else self.roof(tokens)

    def begins(self, pace: Pace) -> int | None:
        """The least tokens that load at least as fast as they are computed; None: never."""
        lengths = range(STEP, MOST + 1, STEP)
        return next((n for n in lengths if self.load(pace, n) <= self.compute(n)), None)

    def load(self, pace: Pace, tokens: int) -> float:
        """Seconds."""
        chunks = -(-tokens // self.chunk_tokens) * self.boxes
        return pace.seconds(int(tokens * self.token_bytes), chunks)

    def both(self, name: str, pace: Pace, tokens: int) -> float | None:
        """Seconds, where it is computed from its front and loaded from its end; None where that is
        not known or does not pay."""
        from preread.store.policy import Piece, decide

        ends = [*range(self.chunk_tokens, tokens, self.chunk_tokens), tokens]
        sizes = (int((b - a) * self.token_bytes) for a, b in pairwise([0, *ends]))
        pieces = [
            Piece(end, ((name, nbytes, self.boxes),))
            for end, nbytes in zip(ends, sizes, strict=True)
        ]
        choice = decide(0, pieces, {name: pace}, self.prefill, self.slowed)
        if choice.meets is None or self.prefill is None:
            return None
        return choice.load_s + self.prefill.seconds(choice.upto, tokens)

    def to_json(self) -> dict[str, Any]:
        return {
            "token_bytes": self.token_bytes,
            "layer_groups": self.layer_groups,
            "compute_measured": self.measured,
            "compute_s": {n: self.compute(n) for n in LENGTHS},
            "tiers": [
                {
                    "name": name,
                    "place": place,
                    "fixed_s": pace.fixed_s if pace else None,
                    "chunk_s": pace.chunk_s if pace else None,
                    "bytes_per_s": 1 / pace.byte_s if pace else None,
                    "from_tokens": self.begins(pace) if pace else None,
                    "load_s": {n: self.load(pace, n) for n in LENGTHS} if pace else None,
                    "both_s": {n: self.both(name, pace, n) for n in LENGTHS} if pace else None,
                }
                for name, place, pace in self.tiers
            ],
        }


def break_even(model: str, plan: Plan, config: Config, dtype: str) -> BreakEven:
    """Of this machine. Raises ConfigError for a list of tiers that cannot be read."""
    from preread.app.storing import open_rates
    from preread.capacity.roofline import Roofline
    from preread.store.codec import codec_of
    from preread.store.keys import Geometry
    from preread.store.tiers.urls import parse_tiers

    rates = open_rates(config, plan.machine.name, (model, dtype, plan.precision))
    shape, codec = (1, 2, 1, config.store.chunk_tokens, 128), codec_of(config.store.codec)
    share = codec.nbytes(shape, plan.dtype) / codec_of("raw").nbytes(shape, plan.dtype)
    rate = plan.machine.rate(plan.dtype)
    heads = (plan.shape.kv_layers, plan.shape.kv_heads, plan.shape.head_dim)
    kept = config.store
    geometry = Geometry(*heads, plan.dtype, kept.chunk_tokens, kept.chunk_bytes)
    precisions = (plan.precision, plan.kv_precision)
    batch = config.engine.limited("cuda" if plan.machine.on_gpu else "cpu").batch_tokens
    roof = Roofline(plan.shape, plan.dtype, rate, plan.machine.bandwidth, batch, *precisions)
    return BreakEven(
        plan.shape.kv_token_bytes(plan.dtype) * share,
        config.store.chunk_tokens,
        len(geometry.cells),
        rates.prefill(),
        lambda n: roof.reading(n).seconds,
        tuple((t.name, t.place, rates.pace(t.name)) for t in parse_tiers(config.store.tiers)),
        rates.slowed,
        geometry.layer_groups,
    )


def print_break_even(found: BreakEven) -> None:
    """A row for each length; a star where that wins: loading against computing, both at once
    against either."""
    print()
    rows = []
    for n in LENGTHS:
        computing = found.compute(n)
        cells: list[str] = []
        for name, _, pace in found.tiers:
            cells += _cells(found, name, pace, n, computing)
        rows.append((f"{n:,}", size(int(n * found.token_bytes)), time_text(computing), *cells))
    heads = (head for name, _, _ in found.tiers for head in (name, "both"))
    table(("tokens", "KV", "computing", *heads), rows)
    print()
    for name, place, pace in found.tiers:
        if pace is None:
            print(f"{name} ({place}) was never loaded from here: it is tried, and measured then.")
            continue
        begins = found.begins(pace)
        when = f"loads faster than computing from {begins:,} tokens on" if begins else "never pays"
        print(f"{name} ({place}): {pace_text(pace)}; {when}.")
    if found.layer_groups > 1:
        print(
            f"KV comes in {found.layer_groups} ranges of layers: a question may be computed while "
            "the last ones come (docs/store.md, By layer)."
        )
    if not found.measured:
        note("computing: as planned from the machine's rates; measured when a context is read")


def pace_text(pace: Pace) -> str:
    """`1.2 ms + 0.3 ms a chunk + 2.1 GB/s`. Loads that were all of about one size say nothing of
    the bytes."""
    fixed = f"{pace.fixed_s * 1e3:,.3g} ms"
    if pace.chunk_s:
        fixed += f" + {pace.chunk_s * 1e3:,.3g} ms a chunk"
    if 1 / pace.byte_s > MEMORY and not pace.chunk_s:
        return f"{fixed} whatever the size, as loads of one size say; longer ones were not measured"
    return f"{fixed} + {1 / pace.byte_s / 1e9:,.3g} GB/s"


def _cells(
    found: BreakEven, name: str, pace: Pace | None, tokens: int, computing: float
) -> tuple[str, str]:
    """Of one tier: loaded alone, and both at once where that pays."""
    if pace is None:
        return "not yet", ""
    load, both = found.load(pace, tokens), found.both(name, pace, tokens)
    alone = time_text(load) + " *" * (both is None and load <= computing)
    return alone, "" if both is None else f"{time_text(both)} *"


def time_text(seconds: float) -> str:
    """Three digits, never as a power of ten: longer times are in whole seconds."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
