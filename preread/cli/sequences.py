"""`preread tune` and `preread bench sequences`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.capacity.remembered import Remembered
from preread.capacity.roofline import Load
from preread.capacity.trial import Sample
from preread.capacity.tuning import tune
from preread.cli.output import emit, note
from preread.cli.pages import check_place, write_page
from preread.cli.sampled import Report
from preread.cli.trials import Trials
from preread.config import load_config, local_model
from preread.errors import RequestError

if TYPE_CHECKING:
    from preread.app import Engine


def parse_counts(counts: str) -> list[int]:
    """The numbers of `--counts`, rising. Raises RequestError."""
    try:
        numbers = sorted({int(part) for part in counts.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise RequestError(f"--counts {counts}: whole numbers.", hint="Give --counts 1,2,4,8")
    return numbers


def tune_command(
    model: str, load: Load, *, most: int, rounds: int, html: Path | None, json: bool
) -> None:
    """See `preread tune --help`."""
    check_place(html)
    with _opened(model, most) as engine:
        if engine.info.name != "local":
            raise RequestError(
                "transformers computes this model one sequence at a time: nothing to tune.",
                hint="Measure it: preread bench sequences",
            )
        trials = Trials(engine, load, rounds)
        found = tune(trials.sample, most, _teller(json))
        about, fingerprint = trials.about(), engine.info.fingerprint
        limits = trials.limits([sample.sequences for sample in found.samples])
        memory = Remembered(engine.config.home)
        how = {key: about[key] for key in ("date", "model", "threads", "load")}
        how |= {"ended": found.ended, "requests_per_min": 60 * found.chosen.requests_per_s}
        memory.keep_limit(about["machine"], fingerprint, found.sequences, how)
    if configured := load_config().engine.max_sequences:
        note(f"note: engine.max_sequences = {configured} is configured, and wins")
    said = (found.describe(), f"Kept in {memory.path}: engines of this model run so many at once.")
    report = Report(
        "How many sequences at once?", about, found.samples, trials.sequence_bytes(), limits, said,
        chosen=found.sequences,
    )  # fmt: skip
    value = {"sequences": found.sequences, "ended": found.ended}
    _finish(report, value, "samples", html or _place("tune", about), json=json)


def bench_command(
    model: str, load: Load, counts: Sequence[int], *, rounds: int, html: Path | None, json: bool
) -> None:
    """See `preread bench --help`."""
    check_place(html)
    tell = _teller(json)
    samples: list[Sample] = []
    with _opened(model, counts[-1]) as engine:
        trials = Trials(engine, load, rounds)
        for count in counts:
            samples.append(trials.sample(count))
            tell(samples[-1])
        about, limits = trials.about(), trials.limits(counts)
    best = max(samples, key=lambda sample: sample.requests_per_s)
    gain = best.requests_per_s / samples[0].requests_per_s
    said = (
        f"{best.sequences} at once answer {gain:.2f} times as many requests as "
        f"{samples[0].sequences}.",
    )
    report = Report("Sequences at once", about, samples, trials.sequence_bytes(), limits, said)
    value = {"benchmark": "sequences", "gain": gain}
    _finish(report, value, "rows", html or _place("bench-sequences", about), json=json)


def _finish(report: Report, value: dict[str, Any], key: str, html: Path, *, json: bool) -> None:
    """Write the page and print the rest."""
    written = write_page(html, report.page(datetime.now()))
    if json:
        emit({**value, **report.about, key: report.to_json(), "html": written})
        return
    report.show()
    if written:
        note(f"page with plots: {written}")


def _place(kind: str, about: dict[str, Any]) -> Path:
    return Path(f"{kind}-{Path(about['model']).name}.html")


@contextmanager
def _opened(model: str, most: int) -> Iterator[Engine]:
    """An engine that lets `most` sequences run."""
    from preread.app import open as open_engine

    with open_engine(local_model(model), sequences=most) as engine:
        yield engine


def _teller(quiet: bool) -> Callable[[Sample], None]:
    def tell(sample: Sample) -> None:
        if not quiet:
            strained = ", memory ran out" if sample.strained else ""
            note(f"{sample.sequences:>6}: {60 * sample.requests_per_s:,.1f} requests/min{strained}")

    return tell
