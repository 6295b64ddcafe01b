"""Some sequences at once on an engine, timed on this machine."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.capacity.roofline import Load, Roofline
from preread.capacity.shape import read_shape
from preread.capacity.trial import Sample, context_tokens, questions, run_trial
from preread.errors import RequestError
from preread.models.folder import read_json, resolve

if TYPE_CHECKING:
    from preread.app import Engine

STRAIN = ("engine.preempted", "engine.steps_lowered")  # counters that say: memory ran out


class Trials:
    """Trials on one engine; its context is in memory when they begin."""

    def __init__(self, engine: Engine, load: Load, rounds: int) -> None:
        from preread.app.measuring import bytes_used

        self._engine, self._rounds, self._made = engine, rounds, 0
        self._device, self._used = engine.info.device, bytes_used
        self._vocab = vocabulary(engine.info.model)
        room = engine.info.limit - load.question - load.output
        if room < 0:
            raise RequestError(
                f"{load.question:,} + {load.output:,} tokens are over the model's limit of "
                f"{engine.info.limit:,}.",
                hint="Lower --question or --output.",
            )
        self.load = replace(load, context=min(load.context, room))
        if self.load.context:
            engine.prefill(context_tokens(self.load, self._vocab), store=False)
        self._idle = bytes_used(self._device)
        self._run(1)

    def sample(self, sequences: int) -> Sample:
        """The median of some rounds, with the highest peak of all. Raises EngineError."""
        before = self._strain()
        taken = [self._run(sequences) for _ in range(self._rounds)]
        seconds = statistics.median_low(sample.seconds for sample in taken)
        middle = next(sample for sample in taken if sample.seconds == seconds)
        peak = max(sample.peak for sample in taken)
        return replace(middle, strained=self._strain() > before, peak=peak)

    def sequence_bytes(self) -> int:
        """KV of one sequence's own tokens, in whole pages; none for answers of one token."""
        page_tokens = self._engine.config.engine.page_tokens
        own = self.load.question + self.load.output if self.load.output > 1 else 0
        return -(-own // page_tokens) * page_tokens * self._engine.info.kv_bytes_per_token

    def limits(self, counts: Sequence[int]) -> list[float]:
        """Requests a second that the roofline allows on this machine at the rates measured now, for
        each number of sequences; nothing where sizes are not exact, see capacity/shape.py."""
        from preread.app.measuring import measured_rates

        info, path = self._engine.info, _config_path(self._engine.info.model)
        if info.name != "local":
            return []
        rates = measured_rates(info.dtype, info.device)
        kind = info.device.partition(":")[0]
        batch_tokens = self._engine.config.engine.limited(kind).batch_tokens
        chosen = self._engine.config.model
        roof = Roofline(
            read_shape(read_json(path), path), info.dtype, *rates, batch_tokens,
            chosen.weights_precision, chosen.kv_precision,
        )  # fmt: skip
        return [roof.rate(self.load, count).requests_per_s for count in counts]

    def about(self) -> dict[str, Any]:
        """What was measured, where and with what load."""
        from preread.app.measuring import device_name, threads

        info, load = self._engine.info, self.load
        return {
            "date": date.today().isoformat(),
            "machine": device_name(info.device),
            "load_average": round(os.getloadavg()[0], 1),  # above `threads`: others worked, too
            "threads": threads(),
            "model": info.model,
            "fingerprint": info.fingerprint,
            "dtype": info.dtype,
            "load": {"context": load.context, "question": load.question, "output": load.output},
            "kv_bytes_per_token": info.kv_bytes_per_token,
        }

    def _run(self, sequences: int) -> Sample:
        self._made += 1  # no two trials ask the same
        prompts = questions(self.load, self._vocab, sequences, self._made)
        idle, device = self._idle, self._device
        backend, used = self._engine.backend, self._used
        return self._engine.run(
            run_trial(backend, prompts, self.load.output, used=lambda: used(device) - idle)
        )

    def _strain(self) -> float:
        metrics = self._engine.metrics
        return sum(metrics.get(name, 0.0) for name in STRAIN)


def vocabulary(model: str) -> int:
    """Token ids lie below it."""
    raw = read_json(_config_path(model))
    return int({**raw, **(raw.get("text_config") or {})}.get("vocab_size") or 256)


def _config_path(model: str) -> Path:
    return resolve(model, weights=False) / "config.json"
