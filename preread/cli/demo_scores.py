"""The second half of `preread demo`: applicants, scored by a rubric that is read once."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.backend import Choose, RequestBatch
from preread.batch.applicants import COLUMNS, LABELS, applicants, rubric
from preread.batch.journal import Journal
from preread.batch.score import Scoring, labelled
from preread.cli.batching import Opened, Options
from preread.cli.scoring import Asked, run_score
from preread.contexts.rows import collect
from preread.errors import PrereadError

if TYPE_CHECKING:
    from preread.app import Engine

APPLICANTS = 1000
RUBRIC_WORDS, PROFILE_WORDS = 600, 6
ITEM = "{name}: {profile}"
AFRESH = 4  # applicants scored without reuse, for the time that it takes


@dataclass(frozen=True, slots=True)
class Scores:
    """Of all applicants. whole: tokens of their prompts, what it takes without reuse; afresh_s: of
    one with its whole prompt computed."""

    requests: int
    whole: int
    cached: int
    computed: int
    seconds: float
    afresh_s: float
    counts: dict[str, int]
    mass: float
    output: Path

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "prompt_tokens": self.whole,
            "cached_tokens": self.cached,
            "computed_tokens": self.computed,
            "seconds": round(self.seconds, 3),
            "seconds_recomputed": round(self.afresh_s * self.requests, 1),
            "counts": self.counts,
            "mass": self.mass,
            "output": str(self.output),
        }

    def lines(self) -> str:
        counts = " · ".join(f"{name} {n:,}" for name, n in self.counts.items() if n)
        afresh_s = self.afresh_s * self.requests
        return (
            f"   {counts}   (the bundled model reads; it is too small to judge anybody)\n"
            f"   {self.requests:,} forwards, {self.computed:,} tokens computed of {self.whole:,}: "
            f"{self.computed / self.whole:.1%}\n"
            f"   {self.seconds:.1f} s; {afresh_s:,.0f} s with the rubric read each time "
            f"(measured on {AFRESH}): {afresh_s / self.seconds:.1f} x\n"
            f"   {self.output} and a page beside it"
        )


def score_applicants(engine: Engine, folder: Path, number: int = APPLICANTS) -> Scores:
    """Through `preread score`'s own code. Raises PrereadError if a row fails."""
    folder.mkdir(parents=True, exist_ok=True)
    items, rules, output = (folder / n for n in ("applicants.csv", "rubric.md", "scores.csv"))
    text = rubric(RUBRIC_WORDS)
    rules.write_text(text + "\n", encoding="utf-8")
    with items.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *applicants(0, number, PROFILE_WORDS)])
    labels = ",".join(LABELS)
    asked = Asked(
        [str(items)], rules, labels, "", None, ITEM, "auto", engine.info.model, False, False, None
    )

    @contextmanager
    def opened(model: str) -> Iterator[Opened]:
        yield Opened(engine.backend, engine.run)

    options = Options(output, fresh=True, quiet=True)
    started = time.perf_counter()
    code, report, scored, _ = run_score(asked, options, opened)
    seconds = time.perf_counter() - started
    if code or report is None:
        raise PrereadError(f"{scored.failed} rows failed: see {output}.", hint="preread doctor")
    (question,) = scored.to_json()
    done = report.tally
    return Scores(
        done.done, _whole(options.journal_path), done.cached, done.computed, seconds,
        _afresh(engine, text), question["counts"], question["mass"], output,
    )  # fmt: skip


def _whole(path: Path) -> int:
    journal = Journal.open(path)
    try:
        return int(journal.read("SELECT sum(cached + computed) FROM results")[0][0])
    finally:
        journal.close()


def _afresh(engine: Engine, rules: str) -> float:
    """Seconds of one applicant with nothing reused, several at once as above."""
    question = labelled(",".join(LABELS))
    scoring = Scoring([question], "", rules, calibrate=False, check_position=False)
    ((order, prefix, _),) = scoring.asks()
    assert isinstance(order.work, Choose)
    texts = [f"{name}: {profile}" for name, profile in applicants(0, AFRESH, PROFILE_WORDS)]
    batch = RequestBatch(order.work, texts, prefixes=(prefix,), reuse=False)
    started = time.perf_counter()
    engine.run(collect(engine.backend, batch))
    return (time.perf_counter() - started) / AFRESH
