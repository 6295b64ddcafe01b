"""`preread tune` and `preread bench sequences`: some sequences at once, timed on this machine."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.capacity.remembered import Remembered
from preread.capacity.roofline import Load
from preread.capacity.trial import Sample, context_tokens, questions, run_trial
from preread.capacity.tuning import Tuned, tune
from preread.cli.output import emit, note, size, table
from preread.cli.pages import check_place, page, write_page
from preread.cli.plots import Plot, line_plot, text_bars
from preread.config import load_config, local_model
from preread.errors import RequestError

if TYPE_CHECKING:
    from preread.app import Engine

STRAIN = ("engine.preempted", "engine.steps_lowered")  # counters that say: memory ran out
HEADERS = ("sequences", "requests/min", "gain", "tokens/s", "first token s", "request s", "p95 s",
           "KV/sequence", "process")  # fmt: skip


def parse_counts(what: str, counts: str) -> list[int]:
    """The numbers of `--counts`, rising. Raises RequestError."""
    if what != "sequences":
        raise RequestError(f"bench {what!r}: unknown.", hint="Try: preread bench sequences")
    try:
        numbers = sorted({int(part) for part in counts.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise RequestError(f"--counts {counts}: whole numbers.", hint="Give --counts 1,2,4,8")
    return numbers


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
    from preread.models.folder import read_json, resolve

    raw = read_json(resolve(model, weights=False) / "config.json")
    return int({**raw, **(raw.get("text_config") or {})}.get("vocab_size") or 256)


def tune_command(
    model: str, load: Load, *, most: int, rounds: int, html: Path | None, json: bool
) -> None:
    """See `preread tune --help`."""
    from preread.app.measuring import device_name

    check_place(html)
    with _opened(model, load, rounds, most) as (engine, trials):
        if engine.info.name != "local":
            raise RequestError(
                "transformers computes this model one sequence at a time: nothing to tune.",
                hint="Measure it: preread bench sequences",
            )
        where = device_name(engine.info.device)
        found = tune(trials.sample, most, _teller(json))
        about = _about(engine, trials, where)
        memory = Remembered(engine.config.home)
        found_how = {key: about[key] for key in ("date", "model", "threads", "load")}
        found_how |= {"ended": found.ended, "requests_per_min": 60 * found.chosen.requests_per_s}
        memory.keep_limit(where, engine.info.fingerprint, found.sequences, found_how)
    configured = load_config().engine.max_sequences
    if configured:
        note(f"note: engine.max_sequences = {configured} is configured, and wins")
    said = [found.describe(), f"Kept in {memory.path}: engines of this model run so many at once."]
    mark = (found.sequences, 60 * found.chosen.requests_per_s, f"{found.sequences}")
    figures, own = list(plots(found.samples, mark)), trials.sequence_bytes()
    made = _page("How many sequences at once?", about, said, found.samples, own, figures)
    written = write_page(html or Path(f"tune-{Path(engine.info.model).name}.html"), made)
    if json:
        emit({**about, **found.to_json(), "html": written})
        return
    _print(about, said, found.samples, own, found)
    if written:
        note(f"page with plots: {written}")


def bench_command(
    model: str, load: Load, counts: Sequence[int], *, rounds: int, html: Path | None, json: bool
) -> None:
    """See `preread bench --help`."""
    from preread.app.measuring import device_name

    check_place(html)
    tell = _teller(json)
    with _opened(model, load, rounds, counts[-1]) as (engine, trials):
        samples = []
        for count in counts:
            samples.append(trials.sample(count))
            tell(samples[-1])
        about = _about(engine, trials, device_name(engine.info.device))
    own = trials.sequence_bytes()
    best = max(samples, key=lambda sample: sample.requests_per_s)
    gain = best.requests_per_s / samples[0].requests_per_s
    said = [f"{best.sequences} at once answer {gain:.2f} times as many requests as "
            f"{samples[0].sequences}."]  # fmt: skip
    title = "Sequences at once"
    made = _page(title, about, said, samples, own, list(plots(samples)))
    name = Path(engine.info.model).name
    written = write_page(html or Path(f"bench-sequences-{name}.html"), made)
    if json:
        rows = [{**sample.to_json(), "kv_bytes_per_sequence": own} for sample in samples]
        emit({"benchmark": "sequences", **about, "rows": rows, "gain": gain, "html": written})
        return
    _print(about, said, samples, own)
    if written:
        note(f"page with plots: {written}")


@contextmanager
def _opened(model: str, load: Load, rounds: int, most: int) -> Iterator[tuple[Engine, Trials]]:
    """An engine that lets `most` sequences run, and its trials."""
    from preread.app import open as open_engine

    with open_engine(local_model(model), sequences=most) as engine:
        yield engine, Trials(engine, load, rounds)


def _teller(quiet: bool) -> Callable[[Sample], None]:
    def tell(sample: Sample) -> None:
        if not quiet:
            strained = ", memory ran out" if sample.strained else ""
            note(f"{sample.sequences:>6}: {60 * sample.requests_per_s:,.1f} requests/min{strained}")

    return tell


def _load_json(load: Load) -> dict[str, int]:
    return {"context": load.context, "question": load.question, "output": load.output}


def _about(engine: Engine, trials: Trials, where: str) -> dict[str, Any]:
    from preread.app.measuring import threads

    info = engine.info
    return {
        "date": date.today().isoformat(),
        "load_average": round(os.getloadavg()[0], 1),  # above `threads`: others had the cores, too
        "machine": where,
        "threads": threads(),
        "model": info.model,
        "fingerprint": info.fingerprint,
        "dtype": info.dtype,
        "load": _load_json(trials.load),
        "kv_bytes_per_token": info.kv_bytes_per_token,
    }


def _headline(about: dict[str, Any]) -> str:
    load, name = about["load"], Path(about["model"]).name
    return (
        f"{name}, {about['dtype']}, on {about['machine']}: {load['context']:,} "
        f"shared + {load['question']:,} own tokens, {load['output']:,} tokens out"
    )


def table_rows(samples: Sequence[Sample], own: int) -> list[tuple[str, ...]]:
    """Seed 3's table. own: bytes of one sequence's KV."""
    first = samples[0].requests_per_s
    return [
        (
            f"{s.sequences:,}",
            f"{60 * s.requests_per_s:,.1f}",
            f"{s.requests_per_s / first:.2f}",
            f"{s.tokens_per_s:,.1f}",
            f"{s.first_token_s:.3f}",
            f"{s.request_s:.3f}",
            f"{s.request_p95_s:.3f}",
            size(own),
            size(s.peak),
        )
        for s in samples
    ]


def plots(
    samples: Sequence[Sample], mark: tuple[float, float, str] | None = None
) -> Iterator[Plot]:
    """Requests per minute and seconds of a request, by sequences at once."""
    counts = [s.sequences for s in samples]
    rates = [60 * s.requests_per_s for s in samples]
    yield line_plot("Requests per minute", "By sequences at once.", [("all", rates)], counts, mark)
    times = [("last token", [s.request_s for s in samples]),
             ("first token", [s.first_token_s for s in samples])]  # fmt: skip
    yield line_plot("Seconds of a request", "Medians, by sequences at once.", times, counts)


def _page(
    title: str,
    about: dict[str, Any],
    said: Sequence[str],
    samples: Sequence[Sample],
    own: int,
    figures: Sequence[Plot],
) -> str:
    return page(
        "sequences",
        when=datetime.now(),
        title=title,
        headline=_headline(about),
        sentences=said,
        headers=HEADERS,
        rows=table_rows(samples, own),
        plots=figures,
    )


def _print(
    about: dict[str, Any],
    said: Sequence[str],
    samples: Sequence[Sample],
    own: int,
    found: Tuned | None = None,
) -> None:
    print(_headline(about))
    table(HEADERS, table_rows(samples, own))
    print()
    rows = [
        (
            f"{s.sequences:,}",
            s.requests_per_s,
            f"{60 * s.requests_per_s:,.1f} requests/min"
            + (" <-" if found and s.sequences == found.sequences else ""),
        )
        for s in samples
    ]
    for line in (*text_bars(rows), "", *said):
        print(line)
