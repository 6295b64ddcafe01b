"""S sequences on one shared prefix on a CPU, against llama.cpp at its best.

    .venv/bin/python benchmarks/against_llama.py [--arms w8a8] [--sequences 1,4,8] [--threads 1]

Needs llama-cpp-python (built with CMAKE_ARGS=-DGGML_NATIVE=ON) and gguf beside our own packages.
430 M Llama shape, random weights, 1,000 shared (read in the call) + 32 own + 32 out, greedy, token
ids in and out. Pairs: our bf16 against F16; our int8 (weights of one byte, activations of two) and
w8a8 (activations of one byte, too, as Q8_0 has them) against Q8_0. llama.cpp reads the
prefix once, copies the sequence (`seq_cp`, unified KV, no KV moved) and decodes all rows as one
batch. Arms in turn, A B A B; whole call; with one thread CPU seconds, which a busy machine does
not spoil. Goals: at most 1, 0.65 and 0.55 of llama.cpp's time at S = 1, 4, 8.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from cpu_sequences import VOCABULARY, call, engine_of, shape

from preread.engine.engine import Engine

PAIRS = {"packed": "f16", "int8": "q8_0", "w8a8": "q8_0"}  # our arm: theirs
GOALS = {1: 1.0, 4: 0.65, 8: 0.55}
CELLS = 2048  # tokens of one llama_decode


def write_gguf(path: Path, kind: str) -> Path:
    """Our shape with random weights of a type, and a vocabulary that nobody asks."""
    import gguf

    c, make = shape(), np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(c.max_positions)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name: str, rows: int, columns: int) -> None:
        values = make.standard_normal((rows, columns), dtype=np.float32) * 0.02
        if kind == "f16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            quantised = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)

    width, inner, kv = c.hidden_size, c.intermediate_size, c.kv_heads * c.head_dim
    sizes = {
        "attn_q": (width, width), "attn_k": (kv, width), "attn_v": (kv, width),
        "attn_output": (width, width), "ffn_gate": (inner, width), "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }  # fmt: skip
    matrix("token_embd.weight", VOCABULARY, width)
    matrix("output.weight", VOCABULARY, width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for i in range(c.layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(width, np.float32))
        for name, (rows, columns) in sizes.items():
            matrix(f"blk.{i}.{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Llama:
    """llama.cpp over one file."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self._api, self._threads = llama_cpp, threads
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        assert self._model, path
        self._batch = llama_cpp.llama_batch_init(CELLS, 0, 1)

    def _decode(self, context: Any, rows: list[tuple[int, int, int, bool]]) -> None:
        """rows: token, position, sequence, whether its logits are wanted."""
        batch = self._batch
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        batch.n_tokens = len(rows)
        assert self._api.llama_decode(context, batch) == 0

    def _best(self, context: Any, row: int) -> int:
        pointer = self._api.llama_get_logits_ith(context, row)
        return int(np.ctypeslib.as_array(pointer, shape=(VOCABULARY,)).argmax())

    def run(self, prefix: np.ndarray, own: np.ndarray, out: int) -> None:
        api, (count, length), base = self._api, own.shape, len(prefix)
        options = api.llama_context_default_params()
        options.n_ctx = base + count * (length + out) + 256
        options.n_batch, options.n_seq_max, options.kv_unified = CELLS, count, True
        options.n_threads = options.n_threads_batch = self._threads
        context = api.llama_init_from_model(self._model, options)
        self._decode(context, [(int(t), i, 0, False) for i, t in enumerate(prefix)])
        memory = api.llama_get_memory(context)
        for sequence in range(1, count):
            api.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        self._decode(context, [
            (int(own[s, i]), base + i, s, i == length - 1)
            for s in range(count) for i in range(length)
        ])  # fmt: skip
        last = [self._best(context, s * length + length - 1) for s in range(count)]
        for at in range(out - 1):
            self._decode(context, [(last[s], base + length + at, s, True) for s in range(count)])
            last = [self._best(context, s) for s in range(count)]
        api.llama_free(context)


def seconds(work: Callable[[], object], threads: int) -> float:
    """Of the wall, or of the CPU where one thread computes."""
    clock = time.process_time if threads == 1 else time.perf_counter
    began = clock()
    work()
    return clock() - began


def compared(
    engine: Engine, llama: Llama, count: int, args: argparse.Namespace, make: np.random.Generator
) -> dict[str, float | None]:
    """Medians of both, and ours over theirs round by round; the first round warms up."""
    ours, theirs = [], []
    for _ in range(1 + args.rounds):
        prefix = make.integers(2, VOCABULARY, args.shared).astype(np.int32)
        own = make.integers(2, VOCABULARY, (count, args.own)).astype(np.int32)
        ours.append(seconds(partial(call, engine, count, args, make), args.threads))
        theirs.append(seconds(partial(llama.run, prefix, own, args.out), args.threads))
    return {
        "preread_s": round(common.median(ours[1:]), 2),
        "llama_s": round(common.median(theirs[1:]), 2),
        "share": round(common.paired_ratio(ours[1:], theirs[1:]), 3),
        "goal": GOALS.get(count),
    }


def main() -> None:
    parser = common.parser(__doc__, rounds=2)
    parser.add_argument("--sequences", default="1,4,8")
    parser.add_argument("--shared", type=int, default=1000)
    parser.add_argument("--own", type=int, default=32)
    parser.add_argument("--out", type=int, default=32)
    parser.add_argument("--arms", default=",".join(PAIRS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    make, figures = np.random.default_rng(0), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        for ours in args.arms.split(","):
            theirs = PAIRS[ours]
            engine = engine_of(ours, shape())
            llama = Llama(write_gguf(Path(folder) / f"{theirs}.gguf", theirs), args.threads)
            for count in map(int, args.sequences.split(",")):
                name = f"{ours} / {theirs}, S={count}"
                figures[name] = compared(engine, llama, count, args, make)
                print(name, figures[name], flush=True)
            del engine, llama
    options = {k: v for k, v in vars(args).items() if k != "keep"}
    some = "" if args.arms == ",".join(PAIRS) else "_" + args.arms.replace(",", "_")
    common.finish(f"against_llama{some}", options | figures, keep=args.keep)


if __name__ == "__main__":
    main()
