"""A prefix that comes by layer: its first layers are used while the last ones are still coming."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from preread.engine.uploads import Behind
from preread.models.interface import Attend

if TYPE_CHECKING:
    from preread.engine.engine import Engine
    from preread.engine.reading import Reading


class NotComing(Exception):
    """A layer that a step waits for does not come, or others want the engine. Internal: the step is
    given up."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What is to be computed behind a prefix: so many tokens in its first step. run: have them
    computed while the layers of the prefix come, on the engine thread; whether that was done."""

    tokens: int
    run: Callable[[Engine, Reading, Layers], bool]


class Layers:
    """How many leading layers of a prefix are there: `wait` returns only when every box that holds
    a part of the layer has been verified, and what the caller's stream does next comes after its
    copy. One thread brings, one step waits, anybody may end it."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._turn = threading.Condition(threading.Lock())
        self._there = 0
        self._groups: list[tuple[int, Behind]] = []  # (layers there with it, behind its copies)
        self._passed = 0  # layers behind whose copies the step is already
        self._over = False

    def arrived(self, layers: int, behind: Behind) -> None:
        """Layers [0, layers) are there. The thread that brings them."""
        with self._turn:
            assert self._there < layers <= self._layers, "layers come in order"
            self._there = layers
            self._groups.append((layers, behind))
            self._turn.notify_all()

    def quit(self) -> None:
        """Nothing more comes, or nobody may wait for it any longer. From any thread."""
        with self._turn:
            self._over = True
            self._turn.notify_all()

    @property
    def over(self) -> bool:
        return self._over

    def wait(self, layer: int) -> None:
        """Until that layer is there; asked in order. Raises NotComing."""
        with self._turn:
            self._turn.wait_for(lambda: self._there > layer or self._over)
            if self._there <= layer:
                raise NotComing
            if layer < self._passed:
                return
            self._passed, behind = next(group for group in self._groups if group[0] > layer)
        behind()

    def before(self, attend: Attend) -> Attend:
        """The same attention, of a step that sees the prefix."""

        def waiting(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.wait(layer)
            return attend(layer, q, k, v)

        return waiting

    def check(self) -> None:
        """Verify the order of what came. Raises AssertionError."""
        ends = [layers for layers, _ in self._groups]
        assert ends == sorted(set(ends)) and self._there == (ends[-1] if ends else 0)
        assert self._passed in (0, *ends) and self._passed <= self._there <= self._layers
