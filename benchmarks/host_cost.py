"""What does a request cost on the host, whatever the device does?

    .venv/bin/python benchmarks/host_cost.py [--requests 8192] [--only arrays] [--profile]

An engine over a decoder that computes nothing, so what is measured is everything else: search for
shared prefixes, admission, scheduling, packing, commit, results; CPU time of all threads of the
process (time.process_time), microseconds per request and per generated token. Each request is
`tokens` shared and `own` tokens of its own, settings as on a GPU. Cases: token batches with their
context named; whole prompts as one array, as Python lists, as text. And what a step costs while
1,024 rows decode. "runner" is the part of it that launches steps and reads logits: torch calls on a
CPU here, other code on a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

import preread
from preread.app.compose import Parts
from preread.app.engine import Engine as Facade
from preread.backend import Ragged
from preread.config import EngineSection, load_config
from preread.engine.engine import Engine
from preread.engine.local import LocalBackend
from preread.home import open_catalog
from preread.metrics import Metrics
from preread.models.load import load_model
from preread.tokens.batch import ChooseSpec, GenerateSpec, LikelihoodSpec, Spec, TokenBatch
from preread.tokens.labels import label_trie
from preread.tokens.share import share
from preread.types import GREEDY

IDS = 16  # made-up token ids are below this, so that the null decoder's logits cover them
LETTERS = 512  # and those of single letters below this


class NullDecoder:
    """Computes nothing: constant hidden states, constant logits of a few columns."""

    layers = heads = kv_heads = 1
    head_dim = 8
    vocab_size = 151_936
    max_positions = 1 << 17
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, columns: int = IDS) -> None:
        self.columns = columns

    def hidden(self, tokens: torch.Tensor, positions: torch.Tensor, attend: object) -> torch.Tensor:
        return torch.zeros(1, 8).expand(len(tokens), 8)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(hidden), self.columns)


def section(args: argparse.Namespace) -> EngineSection:
    return EngineSection(
        prefix_memory_mb=64,
        suffix_memory_mb=64,
        max_sequences=args.sequences,
        batch_tokens=args.batch_tokens,
        prefill_chunk=8192,
    )


def prompts(n: int, args: argparse.Namespace, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(shared [tokens], own [n, own]); the shared part is the same for every seed."""
    shared = np.random.default_rng(0).integers(0, IDS, args.tokens).astype(np.int32)
    own = np.random.default_rng(1 + seed).integers(0, IDS, (n, args.own)).astype(np.int32)
    return shared, own


def named(n: int, spec: Spec, args: argparse.Namespace, seed: int) -> TokenBatch:
    """Requests whose context is named, as the text road makes them."""
    shared, own = prompts(n, args, seed)
    base = np.full(n, len(shared), np.int32)
    return TokenBatch(
        spec=spec,
        own=Ragged(own.ravel(), np.arange(n + 1) * args.own),
        groups=[shared],
        group_of=np.zeros(n, np.int32),
        base=base,
        context=base,
        seeds=np.zeros(n, np.uint64),
    )


def whole(n: int, args: argparse.Namespace, seed: int, *, shared_tokens: int = -1) -> Ragged:
    """The same as whole prompts."""
    shared, own = prompts(n, args, seed)
    shared = shared if shared_tokens < 0 else shared[:shared_tokens]
    width = len(shared) + args.own
    values = np.empty((n, width), np.int32)
    values[:, : len(shared)], values[:, len(shared) :] = shared, own
    return Ragged(values.ravel(), np.arange(n + 1) * width)


def drain(engine: Engine, batch: TokenBatch) -> None:
    engine.submit(batch)
    while not engine.idle or engine.has_news:
        engine.step()


def plain(prompts: Ragged, spec: Spec) -> TokenBatch:
    """Whole prompts as a token batch that names nothing."""
    none = np.zeros(len(prompts), np.int32)
    seeds = np.zeros(len(prompts), np.uint64)
    return TokenBatch(spec, prompts, [], none - 1, none, none, seeds)


class Runner:
    """CPU seconds that an engine's runner takes, of the thread that calls it."""

    def __init__(self, engine: Engine) -> None:
        self.spent = 0.0
        self._launch = engine._runner.launch
        engine._runner.launch = self  # type: ignore[method-assign, assignment]

    def __call__(self, step: Any) -> Any:
        began = time.thread_time()
        try:
            return self._launch(step)
        finally:
            self.spent += time.thread_time() - began


Case = tuple[str, int, int, Callable[[int], Callable[[], object]]]  # name, requests, tokens, make


def engine_cases(engine: Engine, args: argparse.Namespace) -> list[Case]:
    """make(seed) prepares a round, and returns what is measured of it."""
    n, n16 = args.requests, max(1, args.requests // 2)
    own = np.full(n, args.own - 1, np.int32)
    labels = ChooseSpec(label_trie([[1], [2], [3, 4]]))

    def on_context(spec: Spec, n: int) -> Callable[[int], Callable[[], object]]:
        def make(seed: int) -> Callable[[], object]:
            batch = named(n, spec, args, seed)
            return lambda: drain(engine, batch)

        return make

    def found(spec: Spec, n: int, shared: int) -> Callable[[int], Callable[[], object]]:
        def make(seed: int) -> Callable[[], object]:
            rows = whole(n, args, seed, shared_tokens=shared)
            return lambda: drain(engine, share(plain(rows, spec), 512))

        return make

    one, many = GenerateSpec(1, GREEDY), GenerateSpec(16, GREEDY)
    return [
        ("context named, 1 out", n, 1, on_context(one, n)),
        ("context named, 16 out", n16, 16, on_context(many, n16)),
        ("context named, choose of 3", n, 0, on_context(labels, n)),
        ("context named, loglikelihood", n, 0, on_context(LikelihoodSpec(own), n)),
        ("arrays, 1 out", n, 1, found(one, n, -1)),
        ("arrays, 16 out", n16, 16, found(many, n16, -1)),
        ("arrays, nothing shared, 1 out", n, 1, found(one, n, 0)),
        ("arrays, nothing shared, 16 out", n16, 16, found(many, n16, 0)),
    ]


def facade_cases(engine: Facade, args: argparse.Namespace) -> list[Case]:
    n, n16 = args.requests, max(1, args.requests // 2)
    few = max(1, args.requests // 8)  # lists and texts are slow, and take much memory

    def asks(n: int, out: int, form: Callable[[Ragged], Any]) -> Callable[[int], Any]:
        def make(seed: int) -> Callable[[], object]:
            given = form(whole(n, args, seed))
            return lambda: engine.generate(given, max_tokens=out, ignore_eos=True)

        return make

    def lists(rows: Ragged) -> list[list[int]]:
        return [rows.row(i).tolist() for i in range(len(rows))]

    def arrays(rows: Ragged) -> list[np.ndarray]:
        return [rows.row(i) for i in range(len(rows))]

    def texts(seed: int) -> tuple[preread.Context, list[str]]:
        book, rows = common.filler(args.tokens // 3), common.filler(few * 16, 1 + seed).split()
        asked = [" ".join(rows[i * 16 : i * 16 + 16]) for i in range(few)]
        return _opened(engine, book), asked

    def answered(seed: int, out: int) -> Callable[[], object]:
        context, asked = texts(seed)
        return lambda: context.ask_many(asked, max_tokens=out, ignore_eos=True)

    def chosen(seed: int) -> Callable[[], object]:
        context, asked = texts(seed)
        return lambda: context.choose(asked, ["A", "B", "C"])

    def awaited(seed: int) -> Callable[[], object]:
        _, asked = texts(seed)

        async def all_at_once() -> None:
            asks = (engine.aio.ask("book", q, max_tokens=1, ignore_eos=True) for q in asked)
            await asyncio.gather(*asks)

        return lambda: asyncio.run(all_at_once())

    return [
        ("facade, one array, 1 out", n, 1, asks(n, 1, lambda rows: rows)),
        ("facade, list of arrays, 1 out", n, 1, asks(n, 1, arrays)),
        ("facade, one array, 16 out", n16, 16, asks(n16, 16, lambda rows: rows)),
        ("facade, lists, 1 out", few, 1, asks(few, 1, lists)),
        ("facade, lists, 16 out", few, 16, asks(few, 16, lists)),
        ("facade, questions in text, 1 out", few, 1, lambda seed: answered(seed, 1)),
        ("facade, questions in text, 16 out", few, 16, lambda seed: answered(seed, 16)),
        ("facade, questions in text, label", few, 0, chosen),
        ("facade, a task for each question", few, 1, awaited),
    ]


def _opened(engine: Facade, text: str) -> preread.Context:
    folder = Path(engine.config.home) / "docs"
    folder.mkdir(exist_ok=True)
    (folder / "book.txt").write_text(text)
    return engine.context("book", folder)


def measured(case: Case, runner: Runner, args: argparse.Namespace) -> dict[str, Any]:
    """Quietest of the rounds, after one that is not counted."""
    name, n, tokens, make = case
    make(0)()
    times = []
    for seed in range(1, 1 + args.rounds):
        work = make(seed)
        gc.collect()
        profile = cProfile.Profile() if args.profile else None
        began, runner.spent = time.process_time(), 0.0
        if profile:
            profile.runcall(work)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        else:
            work()
        times.append((time.process_time() - began, runner.spent))
    us, inside = (seconds / n * 1e6 for seconds in min(times))
    row = {"case": name, "requests": n, "tokens_out": tokens, "us_per_request": round(us, 2)}
    row["of_it_runner"] = round(inside, 2)
    if tokens > 1:
        row["us_per_token"] = round(us / tokens, 2)
    token = f" {us / tokens:8.2f} a token" if tokens > 1 else ""
    print(f"{name:36} {us:9.1f} us a request, of it the runner {inside:6.1f}{token}")
    return row


def decoding_step(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a step in which every slot decodes, scheduling to news."""
    engine = Engine(NullDecoder(), section(args))  # type: ignore[arg-type]
    engine.submit(named(args.sequences, GenerateSpec(200, GREEDY), args, 1))
    while (engine._seqs.done < 2).any():  # all are read
        engine.step()
    times, inside, runner = [], [], Runner(engine)
    for _ in range(100):
        began, runner.spent = time.thread_time(), 0.0
        engine.step()
        times.append(time.thread_time() - began)
        inside.append(runner.spent)
    ms, device = (float(np.median(x)) * 1e3 for x in (times, inside))
    print(f"a step of {args.sequences} decoding rows: {ms:.3f} ms, of it the runner {device:.3f}")
    return {"rows": args.sequences, "ms": round(ms, 3), "runner_ms": round(device, 3)}


def null_facade(args: argparse.Namespace, home: Path) -> Facade:
    """The public engine with everything real but the decoder."""
    config = replace(load_config(home), engine=section(args))
    loaded = load_model("reader", device="cpu")
    loaded = replace(loaded, decoder=NullDecoder(LETTERS))  # type: ignore[arg-type]
    metrics = Metrics()
    backend = LocalBackend(loaded, None, config.engine, metrics, name="null")
    return Facade(Parts(config, backend, open_catalog(config), metrics, 0))


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--requests", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--own", type=int, default=50)
    parser.add_argument("--sequences", type=int, default=1024)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    step = decoding_step(args)
    engine = Engine(NullDecoder(), section(args))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        facade = null_facade(args, home)
        inner = facade.backend._thread._engine  # type: ignore[attr-defined]
        below, above = Runner(engine), Runner(inner)
        cases = [(case, below) for case in engine_cases(engine, args)]
        cases += [(case, above) for case in facade_cases(facade, args)]
        rows = [measured(case, at, args) for case, at in cases if args.only in case[0]]
        facade.close()
    figures = {
        "shared_tokens": args.tokens,
        "own_tokens": args.own,
        "batch_tokens": args.batch_tokens,
        "max_sequences": args.sequences,
        "cases": rows,
        "decoding_step": step,
        "rounds": args.rounds,
    }
    common.finish(f"host_cost_{args.batch_tokens}", figures, keep=args.keep)


if __name__ == "__main__":
    main()
