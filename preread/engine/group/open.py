"""Opens a model over several devices of this host."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from preread.engine.group.collective import Ranks, listen
from preread.engine.group.follower import Task
from preread.engine.group.leader import AGAIN, Followers, GroupParts
from preread.errors import ConfigError, EngineError
from preread.models.config import read_config
from preread.models.folder import resolve
from preread.models.load import LoadedModel, choose_device, load_model
from preread.models.shard import Shard, ShardDecoder


@dataclass(frozen=True, slots=True)
class Wanted:
    """See models.load.load_model; size: ranks; threads: of each on a CPU, 0: as torch has it."""

    name: str
    size: int
    dtype: str = "auto"
    device: str = "auto"
    weights: str = "load"
    weights_precision: str = "full"
    kv_precision: str = "full"
    seed: int = 0
    threads: int = 0
    home: Path | None = None


def open_group(wanted: Wanted) -> tuple[LoadedModel, GroupParts]:
    """The model with rank 0's decoder, and the parts of an engine over all ranks; close them. Every
    rank has a process of its own. Raises what load_model raises, EngineError, ConfigError."""
    places = devices(choose_device(wanted.device), wanted.size)
    folder = resolve(wanted.name, weights=wanted.weights == "load")  # fetched once, not by each
    config = read_config(folder)
    heads = [Shard(rank, wanted.size).kv_heads(config) for rank in range(wanted.size)]
    store = listen(wanted.size)
    followers = _start(wanted, places, store.port, heads)
    try:
        ranks = Ranks(0, wanted.size, config.layers)
        loaded = _load(wanted, places[0], ranks)
        _begun(followers)
        ranks.join(store, torch.device(places[0]))
        _begun(followers)
    except BaseException:
        followers.close()
        raise
    return loaded, GroupParts(followers, ranks)


def devices(first: torch.device, size: int) -> list[str]:
    """The devices of the ranks: the first GPUs of this host, or the CPU so many times. Raises
    ConfigError."""
    if first.type == "cpu":
        return ["cpu"] * size
    if (here := torch.cuda.device_count()) < size:
        raise ConfigError(
            f"model.gpus = {size}, but this machine has {here}.", hint=f"Set model.gpus to {here}."
        )
    return [f"cuda:{rank}" for rank in range(size)]


def _load(wanted: Wanted, place: str, ranks: Ranks) -> LoadedModel:
    return load_model(
        wanted.name,
        dtype=wanted.dtype,
        device=place,
        weights=wanted.weights,
        weights_precision=wanted.weights_precision,
        kv_precision=wanted.kv_precision,
        home=wanted.home,
        seed=wanted.seed,
        shard=Shard(0, wanted.size),
        make=lambda config, tensors, linear: ShardDecoder(config, tensors, linear, ranks),
    )


def _start(
    wanted: Wanted, places: list[str], port: int, heads: list[tuple[int, int]]
) -> Followers:  # fmt: skip
    pipes: list[Connection] = []
    processes: list[subprocess.Popen[bytes]] = []
    for rank in range(1, wanted.size):
        pipe, process = _process()
        with suppress(OSError):  # it is gone already, which its reply will say
            pipe.send(
                Task(
                    Shard(rank, wanted.size), port, places[rank], wanted.name, wanted.dtype,
                    wanted.weights, wanted.weights_precision, wanted.seed, wanted.threads,
                )
            )  # fmt: skip
        pipes.append(pipe)
        processes.append(process)
    return Followers(pipes, processes, heads)


def _process() -> tuple[Connection, subprocess.Popen[bytes]]:
    """A program of its own, not a fork or a second run of the caller's script: neither CUDA nor a
    script without a main guard bears that."""
    ours, theirs = Pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "preread.engine.group", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    theirs.close()
    return ours, process


def _begun(followers: Followers) -> None:
    for rank, reply in enumerate(followers.replies(), 1):
        if reply.error:
            raise EngineError(f"Rank {rank} could not begin: {reply.error}.", hint=AGAIN)
