"""How long does the whole job take: 170,000 texts in, a label out, by the public API?

    .venv/bin/python benchmarks/whole_job.py 0.5b [--requests 170000] [--lists 8192]

A rubric of about 2,000 tokens is read once; every item is a text of about 50 tokens; `choose` gives
the probabilities of three labels. Everything counts but start-up and the rubric: templates,
tokenizing (a byte-level BPE of 128,000 entries, made here), planning, the device, results. Random
weights of the shape. `--lists`: beside it, so many whole prompts as Python lists of token ids by
`engine.generate`, one token each. Limit: products and attention at the card's matrix rate.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu_shared_prefix import SHAPES, Work, config, floor_s, limits, published

import preread
from preread.testing.models import CHATML, SPECIAL_TOKENS

VOCAB = 128_000
SYLLABLES = [a + b for a in "bdfghklmnprstvwz" for b in ("a", "e", "i", "o", "u", "ar", "en", "ol")]


def words(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(SYLLABLES, k=rng.choice((1, 2, 2, 3, 3, 4)))) for _ in range(count)]


def write_tokenizer(path: Path, vocab: int) -> None:
    """A byte-level BPE trained on invented words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    many = words(6 * vocab, 1)
    tokenizer.train_from_iterator(
        (" ".join(many[i : i + 40]) for i in range(0, len(many), 40)), trainer
    )
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL_TOKENS[2],
        "pad_token": SPECIAL_TOKENS[0], "chat_template": CHATML,
    }  # fmt: skip
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def write_model(path: Path, shape: str) -> None:
    """A folder without weights: they are drawn at random."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(published(shape)))
    write_tokenizer(path, min(VOCAB, published(shape)["vocab_size"]))


def sized(engine: preread.Engine, tokens: int) -> tuple[str, int]:
    """A rubric of about so many tokens."""
    text = " ".join(words(tokens // 2, 2))
    (count,) = engine.run(engine.backend.count([preread.types.Prefix(text)]))
    return " ".join(words(tokens // 2 * tokens // count, 2)), tokens


def labels(engine: preread.Engine, args: argparse.Namespace, home: Path) -> dict[str, Any]:
    """The job, and how its time divides."""
    rubric = home / "rubric.txt"
    rubric.write_text(sized(engine, args.prefix)[0])
    context = engine.context("rubric", str(rubric))
    pool = words(200_000, 3)
    rng = random.Random(4)
    items = [" ".join(rng.choices(pool, k=args.words)) for _ in range(args.requests)]
    context.choose(items[:2048], ["A", "B", "C"])  # compiles
    began, cpu = time.perf_counter(), time.process_time()
    choices = context.choose(items, ["A", "B", "C"])
    took, spent = time.perf_counter() - began, time.process_time() - cpu
    assert len(choices) == len(items) and not any(c.error for c in choices)
    usage = choices[-1].usage
    return {
        "requests": len(items), "s": round(took, 2), "req_s": round(len(items) / took, 1),
        "cpu_us_per_request": round(spent / len(items) * 1e6, 1), "usage": str(usage),
        "context_tokens": context.tokens,
    }  # fmt: skip


def lists(engine: preread.Engine, count: int, prefix: int) -> dict[str, Any]:
    """Whole prompts as lists of token ids."""
    rng = random.Random(5)
    head = [rng.randrange(300, 4000) for _ in range(prefix)]
    best = float("inf")
    for _ in range(3):
        prompts = [head + [rng.randrange(300, 4000) for _ in range(50)] for _ in range(count)]
        began = time.perf_counter()
        done = engine.generate(prompts, max_tokens=1, ignore_eos=True)
        best = min(best, time.perf_counter() - began)
        assert len(done) == count
    return {"requests": count, "s": round(best, 3), "req_s": round(count / best, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--requests", type=int, default=170_000)
    parser.add_argument("--prefix", type=int, default=2000)
    parser.add_argument("--words", type=int, default=20)
    parser.add_argument("--lists", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, help="a folder with one made before")
    parser.add_argument("--make-tokenizer", type=Path, help="make one there and leave")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    if args.make_tokenizer:
        return write_model(args.make_tokenizer, args.shape)
    flops, _ = limits(torch.device(args.device))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        if args.tokenizer is None:
            write_model(path, args.shape)
        else:
            path = args.tokenizer
        with preread.open(
            str(path), weights="random", dtype="bfloat16", device=args.device,
            home=Path(folder) / "home",
        ) as engine:  # fmt: skip
            job = labels(engine, args, Path(folder))
            made = lists(engine, args.lists, args.prefix) if args.lists else None
    own = Work("generate", args.requests, args.prefix, 50, 1)
    least = floor_s(config(args.shape), own, 1024, 0, flops, 1.0)  # one token: no KV is read again
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    print(json.dumps({
        "benchmark": "whole_job", "date": datetime.date.today().isoformat(), "shape": args.shape,
        "machine": name, "torch": torch.__version__, "job": job, "lists": made,
        "limit_s": round(least, 2), "share_of_limit": round(least / job["s"], 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
