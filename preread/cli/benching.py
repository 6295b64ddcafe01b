"""`preread bench batch`: the tests that the plan for 170,000 candidates asks for, its expectations,
and what was measured."""

from __future__ import annotations

import json as json_module
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.batch.claims import OWN, PRICE, SHARED, TABLE, Expected, claimed, corrected
from preread.batch.trial import Job, Measured, Mode, run_part, sized
from preread.cli.output import emit, note, table
from preread.cli.pages import check_place
from preread.config import load_config, local_model

if TYPE_CHECKING:
    from preread.app import Engine

HEADERS = ("mode", "figures", "computed", "cached", "hit rate", "loads", "time", "req/s")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says."""

    requests: int = 100
    mode: str = "all"
    model: str = ""
    backend: str = ""
    shared: int = SHARED
    own: int = OWN
    out: int = 0
    sample: int = 100
    sample_full: int = 0
    loads: int = 6

    @property
    def modes(self) -> list[Mode]:
        return list(Mode) if self.mode == "all" else [Mode(self.mode)]

    @property
    def as_planned(self) -> bool:
        """Whether the expectations are about such a job."""
        return (self.shared, self.own) == (SHARED, OWN)

    def ran(self, mode: Mode) -> int:
        most = self.sample_full or self.requests if mode is Mode.full else self.sample
        return min(self.requests, most)

    def open(self) -> Engine:
        from preread.app import open as open_engine

        return open_engine(local_model(self.model), backend=self.backend)

    @property
    def local(self) -> bool:
        from preread.app.compose import remote

        return not remote(self.backend or load_config().model.backend)


@dataclass(frozen=True, slots=True)
class Bench:
    """A job and what each mode took."""

    asked: Asked
    job: Job
    seen: list[Measured]

    def gain(self, slow: Mode) -> float | None:
        """How many times as fast the full mode is, at the number of requests asked for."""
        times = {one.mode: one.at(self.asked.requests).seconds for one in self.seen}
        return times[slow] / times[Mode.full] if {slow, Mode.full} <= times.keys() else None

    def share(self) -> float | None:
        """Of the baseline's computed tokens, those that the full mode computes."""
        tokens = {one.mode: one.at(self.asked.requests).computed for one in self.seen}
        if not {Mode.baseline, Mode.full} <= tokens.keys():
            return None
        return tokens[Mode.full] / tokens[Mode.baseline]

    def to_json(self) -> dict[str, Any]:
        n, planned = self.asked.requests, self.asked.as_planned
        modes = {
            one.mode.value: {
                "expected": claimed(one.mode, n).to_json() if planned else None,
                "corrected": corrected(one.mode, n).to_json() if planned else None,
                "measured": one.to_json(),
                "all": one.at(n).to_json(),
                f"{TABLE}": one.at(TABLE).to_json(),
            }
            for one in self.seen
        }
        job = {"requests": n, "shared": self.job.shared, "own": self.job.own, "out": self.job.out}
        gains = {mode.value: self.gain(mode) for mode in Mode if mode is not Mode.full}
        return {
            "model": self.job.model,
            "backend": self.asked.backend or "local",
            "job": job,
            "modes": modes,
            "times_as_fast_as": {k: v and round(v, 2) for k, v in gains.items()},
            "computed_share": (share := self.share()) and round(share, 5),
        }


def bench_command(asked: Asked, *, output: Path | None, json: bool) -> None:
    if output:
        check_place(output)
    made = measure(asked, quiet=json)
    if output:
        text = json_module.dumps(made.to_json(), indent=1)
        output.write_text(text + "\n", encoding="utf-8")
    if json:
        emit(made.to_json())
    else:
        show(made)


def measure(asked: Asked, *, quiet: bool) -> Bench:
    """Run every mode that was asked for, one after the other. Raises EngineError if a request
    fails, and what opening the model raises."""
    with asked.open() as engine:
        job = engine.run(
            sized(
                engine.backend, requests=asked.requests, shared=asked.shared, own=asked.own,
                run=secrets.token_hex(4), out=asked.out,
            )
        )  # fmt: skip
    seen = []
    for mode in asked.modes:
        if not quiet:
            note(f"{mode}: {asked.ran(mode):,} requests")
        seen.append(_measure(asked, job, mode))
    return Bench(asked, job, seen)


def _measure(asked: Asked, job: Job, mode: Mode) -> Measured:
    local, n = asked.local, asked.ran(mode)
    made = Measured(mode, n, loads=0 if local else None)
    step = n
    if mode is Mode.baseline and local:
        step = -(-n // max(round(n * asked.loads / 100), 1))
    with tempfile.TemporaryDirectory() as folder:
        for begin in range(0, n, step):
            started = time.perf_counter()
            with asked.open() as engine:
                _loaded(made, time.perf_counter() - started)
                part = run_part(
                    engine.backend, job, made, begin, min(begin + step, n), Path(folder),
                    local=local,
                )  # fmt: skip
                engine.run(part)
    return made


def _loaded(made: Measured, seconds: float) -> None:
    """A model was opened."""
    made.seconds += seconds
    if made.loads is not None:
        made.loads += 1
        made.load_s += seconds
    if made.mode is not Mode.baseline:
        made.once_s += seconds


def show(made: Bench) -> None:
    """For people, on stdout."""
    asked, job = made.asked, made.job
    work = f"{job.out} tokens out" if job.out else "a label chosen in one forward"
    print(
        f"{asked.requests:,} requests of {job.shared:,} shared + {job.own} own tokens, {work}; "
        f"{job.model}{f' at {asked.backend}' if asked.backend else ''}\n"
    )
    table(HEADERS, _rows(made, asked.requests, claims=asked.as_planned))
    print(f"\n{TABLE:,} requests, extrapolated: what is done once stays, the rest grows")
    table(HEADERS, _rows(made, TABLE, claims=asked.as_planned))
    print()
    if (share := made.share()) is not None:
        print(f"full computes {share:.2%} of the baseline's prompt tokens")
    for mode in (Mode.baseline, Mode.keep_alive):
        if (gain := made.gain(mode)) is not None:
            print(f"full is {gain:.1f} x as fast as {mode}")
    if asked.as_planned:
        print(_notes(made))


def _notes(made: Bench) -> str:
    prompt, computed = TABLE * (SHARED + OWN), SHARED + TABLE * OWN
    lines = [
        "expected: as the plan says, corrected: its own arithmetic done right. It counts 2 ms to",
        "tokenize and 100 ms to answer, not the reading of the prompt, which is what reuse saves;",
        "a server with a 5 min keep-alive loads a model once in a run without gaps, not 6 times;",
        f"{TABLE:,} such requests at {PRICE:g} per million tokens cost {prompt / 1e6 * PRICE:,.2f} "
        f"without reuse and {computed / 1e6 * PRICE:,.2f} where",
        "cached tokens are free, a thousandth of what it says.",
    ]
    if made.asked.local and any(one.mode is Mode.baseline for one in made.seen):
        lines.append(
            f"baseline: the model was loaded {made.asked.loads} times per 100 requests on purpose, "
            "as the plan expects"
        )
    return "\n".join(lines)


def _rows(made: Bench, requests: int, *, claims: bool) -> list[tuple[str, ...]]:
    rows = []
    for one in made.seen:
        if claims:
            rows.append(
                _expected(one.mode.value, "expected", claimed(one.mode, requests), requests)
            )
            rows.append(_expected("", "corrected", corrected(one.mode, requests), requests))
        name = "" if claims else one.mode.value
        figures = "measured" if one.ran == requests else f"measured on {one.ran:,}"
        at = one.at(requests)
        loads = "" if at.loads is None else f"{at.loads:,.0f}"
        rows.append((
            name, figures, f"{at.computed:,}", f"{at.cached:,}", f"{at.hit_rate:.1%}", loads,
            _time(at.seconds), f"{at.per_s:,.2f}",
        ))  # fmt: skip
    return rows


def _expected(name: str, what: str, said: Expected, requests: int) -> tuple[str, ...]:
    return (
        name, what,
        "" if said.computed is None else f"{said.computed:,}", "",
        "" if said.hit_rate is None else f"{said.hit_rate:.1%}",
        "" if said.loads is None else f"{said.loads:,.0f}",
        "" if said.seconds is None else _time(said.seconds),
        "" if not said.seconds else f"{requests / said.seconds:,.2f}",
    )  # fmt: skip


def _time(seconds: float) -> str:
    if seconds < 300:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 18_000 else f"{seconds / 3600:,.1f} h"
