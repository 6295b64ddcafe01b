"""Sums and broadcasts between the ranks of a group: NCCL on GPUs, gloo on CPUs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=120)  # of one sum: a rank that is gone must not be waited for forever
HOST = "127.0.0.1"


class Ranks:
    """See models.shard.Collective. passes: forward passes that were begun (recorded ones too)."""

    def __init__(self, rank: int, size: int, layers: int) -> None:
        self.rank, self.size, self.passes = rank, size, 0
        self._sums, self._left = 2 * layers, 0
        self._group: Any = None

    def join(self, store: Any, device: torch.device) -> None:
        """Wait for all ranks and connect with them. Raises RuntimeError."""
        self._group = _group(store, self.rank, self.size, device)
        self.sum(torch.zeros(1, device=device))  # makes the connections
        self._left = 0

    @property
    def whole(self) -> bool:
        """No forward pass is under way."""
        return self._left == 0

    def share(self, tokens: torch.Tensor) -> torch.Tensor:
        self._left, self.passes = self._sums, self.passes + 1
        options = dist.BroadcastOptions()
        options.rootRank, options.asyncOp = 0, False
        tokens = tokens.contiguous()
        self._done(self._group.broadcast([tokens], options))
        return tokens

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        self._left -= 1
        options = dist.AllreduceOptions()
        options.asyncOp = False  # on the current stream
        self._done(self._group.allreduce([x], options))
        return x

    def _done(self, work: Any) -> None:
        if work is not None:
            work.wait()


def listen(size: int) -> Any:
    """Where the ranks meet; `port` says where others find it."""
    return _store(0, size)


def meet(port: int, size: int) -> Any:
    """The same, of a follower."""
    return _store(port, size)


def _store(port: int, size: int) -> Any:
    tcp: Any = dist  # whose types do not name it
    return tcp.TCPStore(HOST, port, size, not port, TIMEOUT, wait_for_workers=False)


def _group(store: Any, rank: int, size: int, device: torch.device) -> Any:
    """Made by itself, not as the process's default: a process may have many engines."""
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = TIMEOUT
        return dist.ProcessGroupNCCL(store, rank, size, options)
    return dist.ProcessGroupGloo(store, rank, size, TIMEOUT)
