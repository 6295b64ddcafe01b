"""What do contexts joined approximately cost in answers, and gain in time to the first token?

    .venv/bin/python benchmarks/approximate.py [--rounds 5] [--keep]      # the bundled reader
    .venv/bin/python benchmarks/approximate.py --shape [--tokens 1000]    # 0.5B shape: times alone

The example handbook as three contexts, joined in three orders, its questions asked of each: of the
exact composition, and of the one put together, by share and by which tokens are computed again.
Times: every context is in memory, the composition is not; from the call to the only token, exact
and by share in turn, A B A B. The exact arm computes all but the first context; a blend computes
its share. Physical limit: the products of what an arm computes over the measured matrix rate.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import common
import torch

from preread.backend import Generate, RequestBatch
from preread.blends import Approximate, Blend
from preread.config import Config, EngineSection
from preread.contexts.ask import AskOptions, ask_many
from preread.contexts.blending import blend_contexts, join
from preread.contexts.build import BuildRequest, build_context
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.contexts.opened import Blended, Opened
from preread.contexts.questions import read_questions
from preread.contexts.rows import collect
from preread.engine.local import LocalBackend
from preread.models.load import LoadedModel, load_model
from preread.types import Prefix

EXAMPLES = Path(__file__).parents[1] / "examples"
CONTEXTS = {
    "house": ("welcome.md", "working_hours.md", "workshop_safety.md"),
    "orders": ("orders.md", "repairs.md"),
    "vans": ("tools_and_vans.md", "customers_and_visitors.md"),
}
ORDERS = (("house", "orders", "vans"), ("orders", "vans", "house"), ("vans", "house", "orders"))
SHARES = (0.0, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0)
TIMED = (0.0, 0.15, 0.5)
INSTRUCTIONS = "Answer from the documents below."


def arms(shares: Sequence[float]) -> Iterator[Blend]:
    """Without parts yet. With 0 and 1 it makes no difference which tokens are chosen."""
    for share, by in itertools.product(shares, ("first", "deviation")):
        if by == "first" or 0 < share < 1:
            yield Blend((), share, by)  # type: ignore[arg-type]


def name(blend: Blend) -> str:
    return f"{blend.share:.2f} {blend.by}"


async def agreement(model: LoadedModel, home: Path) -> dict[str, dict[str, float]]:
    """By arm, over all orders and questions."""
    config, catalog = Config(home), SqliteCatalog(home / "catalog.sqlite")
    backend = LocalBackend(model, None, EngineSection().limited(model.decoder.device.type))
    for context, files in CONTEXTS.items():
        paths = tuple(str(EXAMPLES / "handbook" / file) for file in files)
        await build_context(backend, catalog, BuildRequest(context, paths), config)
    asked = read_questions(EXAMPLES / "handbook_questions.jsonl")
    texts, work, options = [q.text for q in asked], Generate(max_tokens=48), AskOptions(cite=False)
    found: dict[str, dict[str, float]] = {}
    for order in ORDERS:
        parts = [part for context in order if (part := catalog.get(context))]
        target = "+".join(order)
        made = await blend_contexts(backend, target, parts, join(parts, ""), config)
        record, blended, _ = made
        exact = await ask_many(backend, Opened(record), texts, work, options)
        turns = [(q, a.tokens) for q, a in zip(texts, exact, strict=True)]
        for arm in arms(SHARES):
            blend = replace(arm, parts=blended.approximate.blend.parts)
            opened = Opened(record, blended=Blended(Approximate(target, blend), tuple(parts)))
            answers = await ask_many(backend, opened, texts, work, options)
            shares = await backend.agreement(opened.prefix(0), turns)
            row = found.setdefault(name(arm), dict.fromkeys(
                ("questions", "same", "right", "right_exact", "tokens", "equal", "divergence"), 0
            ))  # fmt: skip
            row["questions"] += len(asked)
            row["same"] += sum(a.tokens == b.tokens for a, b in zip(exact, answers, strict=True))
            row["right"] += sum(bool(q.grade(a.text)) for q, a in zip(asked, answers, strict=True))
            row["right_exact"] += sum(
                bool(q.grade(a.text)) for q, a in zip(asked, exact, strict=True)
            )
            for key, value in zip(("tokens", "equal", "divergence"), shares, strict=True):
                row[key] += value
    await backend.close()
    for row in found.values():
        row["equal"] = round(row["equal"] / row["tokens"], 4)
        row["divergence"] = round(row["divergence"] / row["tokens"], 6)
    return found


async def times(model: LoadedModel, texts: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds to the first token, and tokens computed, by arm; medians. texts: documents of
    the parts."""
    backend = LocalBackend(model, None, EngineSection().limited(model.decoder.device.type))
    parts = tuple(f"{INSTRUCTIONS}\n\n{text}" for text in texts)
    for part in parts:
        await backend.build(Prefix(part))
    whole = Prefix("\n\n".join([INSTRUCTIONS, *texts]))
    asked = {"exact": whole} | {
        name(arm): replace(whole, blend=replace(arm, parts=parts)) for arm in arms(TIMED)
    }
    taken: dict[str, list[float]] = {arm: [] for arm in asked}
    computed: dict[str, float] = {}
    work = Generate(max_tokens=1, ignore_eos=True)
    for turn in range(rounds + 1):  # the first one warms up
        for arm, prefix in asked.items():
            await backend.forget([prefix])
            (row,) = await collect(backend, RequestBatch(work, ["Which word?"], (prefix,)))
            computed[arm] = row.usage.computed_tokens
            if turn:
                taken[arm].append(row.timing.ttft_ms)
            await backend.forget([prefix])
    (tokens,) = await backend.count([whole])
    await backend.close()
    return {
        arm: {"ms": round(common.median(ms), 1), "computed": computed[arm], "tokens": tokens}
        for arm, ms in taken.items()
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--model", default="reader")
    parser.add_argument("--shape", action="store_true", help="random weights of the 0.5B shape")
    parser.add_argument("--tokens", type=int, default=1000, help="of each part, for times")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder, weights = args.model, "load"
        if args.shape:
            folder, weights = str(common.shape_folder(Path(scratch) / "shape")), "random"
        model = load_model(folder, dtype=args.dtype, weights=weights)
        found = {} if args.shape else asyncio.run(agreement(model, Path(scratch)))
        words = args.tokens // 2 if not args.shape else args.tokens // 7
        texts = [f"[{i}.md]\n{common.filler(words, seed=i)}" for i in range(3)]
        measured = asyncio.run(times(model, texts, args.rounds))
    for arm, row in found.items():
        print(
            f"{arm:15} equal {row['equal']:.2%} of {row['tokens']:,}  KL {row['divergence']:.2e}  "
            f"same {row['same']:.0f}/{row['questions']:.0f}  right {row['right']:.0f}, exact "
            f"{row['right_exact']:.0f}"
        )
    for arm, row in measured.items():
        print(f"{arm:15} {row['ms']:8.1f} ms  {row['computed']:,} of {row['tokens']:,} computed")
    figures = {
        "model": "0.5B shape, random" if args.shape else Path(args.model).name,
        "dtype": model.dtype,
        "device": str(model.decoder.device),
        "agreement": found,
        "first_token": measured,
        "threads": args.threads,
        "rounds": args.rounds,
        **common.measured_limits(model.dtype),
    }
    common.finish(f"approximate{'_05b' if args.shape else ''}", figures, keep=args.keep)


if __name__ == "__main__":
    main()
