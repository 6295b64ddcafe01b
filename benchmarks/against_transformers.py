"""How many requests a second on one prefix, against transformers on the same CPU?

    .venv/bin/python benchmarks/against_transformers.py [--requests 64]

430 M Llama shape, bfloat16, random weights, 2,000 shared + 50 own tokens, 1 out, token ids in and
out; the context is built beforehand. Arms in turn: preread (all requests at once); transformers
with the full prompt each time; transformers with the prefix in one DynamicCache that is cropped
after each request (the recipe of many tutorials, done right). The two slow arms are timed on some
of the requests. Limit: products and attention at the measured matrix rate. Goals: 25 x and 2 x.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch
from cpu_sequences import VOCABULARY, engine_of, shape

from preread.backend import Ragged
from preread.models.layers import layout
from preread.tokens.batch import GenerateSpec, TokenBatch
from preread.types import Sampling


def ours(args: argparse.Namespace, prefix: np.ndarray, own: np.ndarray) -> Callable[[], object]:
    engine = engine_of("packed", shape())
    base = np.full(len(own), len(prefix), np.int32)
    batch = TokenBatch(
        spec=GenerateSpec(1, Sampling()),
        own=Ragged(own.ravel(), np.arange(len(own) + 1, dtype=np.int64) * args.own),
        groups=[prefix],
        group_of=np.zeros(len(own), np.int32),
        base=base,
        context=base,
        seeds=np.zeros(len(own), np.uint64),
    )

    def run() -> None:
        engine.submit(batch)
        while not engine.idle or engine.has_news:
            engine.step()

    return run


def theirs(args: argparse.Namespace, prefix: np.ndarray, own: np.ndarray) -> Any:
    """(full prompt, one cache that is cropped), each over its share of the requests."""
    from transformers import LlamaConfig, LlamaForCausalLM

    c = shape()
    config = LlamaConfig(
        hidden_size=c.hidden_size, intermediate_size=c.intermediate_size, head_dim=c.head_dim,
        num_hidden_layers=c.layers, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads,
        vocab_size=VOCABULARY, max_position_embeddings=4096, tie_word_embeddings=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    head, rows = torch.from_numpy(prefix).long()[None], torch.from_numpy(own).long()
    options = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        cache = model(head, use_cache=True, logits_to_keep=1).past_key_values

    @torch.inference_mode()
    def full() -> None:
        for row in rows[: args.full]:
            model.generate(torch.cat((head, row[None]), 1), **options)

    @torch.inference_mode()
    def cropped() -> None:
        for row in rows[: args.cropped]:
            model.generate(torch.cat((head, row[None]), 1), past_key_values=cache, **options)
            cache.crop(len(prefix) - cache.get_seq_length())  # below 0: so many less

    return full, cropped


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--shared", type=int, default=2000)
    parser.add_argument("--own", type=int, default=50)
    parser.add_argument("--full", type=int, default=2, help="requests of the full-prompt arm")
    parser.add_argument("--cropped", type=int, default=8, help="requests of the cropped-cache arm")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    make = np.random.default_rng(0)
    prefix = make.integers(0, VOCABULARY, args.shared).astype(np.int32)
    own = make.integers(0, VOCABULARY, (args.requests, args.own)).astype(np.int32)
    full, cropped = theirs(args, prefix, own)
    arms = {"preread": ours(args, prefix, own), "full prompt": full, "cropped cache": cropped}
    counts = {"preread": args.requests, "full prompt": args.full, "cropped cache": args.cropped}
    took = common.side_by_side(arms, args.rounds)
    each = {arm: [t / counts[arm] for t in values] for arm, values in took.items()}
    limits = common.measured_limits("bfloat16")
    c = shape()
    body = sum(np.prod(s.shape) for k, s in layout(c).items() if k not in ("embed", "head"))
    work = common.Work(
        parameters=int(body), head=c.vocab_size * c.hidden_size,
        attention_width=c.layers * c.heads * c.head_dim,
        kv_token_bytes=c.layers * 4 * c.kv_heads * c.head_dim, itemsize=2,
    )  # fmt: skip
    least = work.floor_s(
        limits, args.requests * args.own, past=args.shared, rows=args.requests, heads=args.requests
    )
    rates = {arm: 1 / common.median(values) for arm, values in each.items()}
    figures: dict[str, Any] = {f"{arm}, req/s": round(rate, 3) for arm, rate in rates.items()}
    figures["limit, req/s"] = round(args.requests / least, 2)
    over = common.paired_ratio(each["full prompt"], each["preread"])
    figures["over the full prompt"] = round(over, 1)
    figures["over the cropped cache"] = round(
        common.paired_ratio(each["cropped cache"], each["preread"]), 2
    )
    for name, value in figures.items():
        print(f"{name:24} {value}")
    options = {k: v for k, v in vars(args).items() if k != "keep"}
    common.finish("against_transformers", options | limits | figures, keep=args.keep)


if __name__ == "__main__":
    main()
