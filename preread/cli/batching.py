"""`preread batch` and what it has in common with `preread score`: read, foresee, run,
write, bill."""

from __future__ import annotations

import json as json_module
import signal
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from preread.backend import Backend, BackendInfo
from preread.batch.budget import Budget
from preread.batch.forecast import Forecast, forecast
from preread.batch.forms import Form
from preread.batch.job import begin, models, priced, same_model, tallied, warm
from preread.batch.journal import Journal
from preread.batch.misfits import check_asked, check_fit
from preread.batch.misses import WHY, Miss, misses
from preread.batch.output import write_errors, write_in_order
from preread.batch.report import Report, make_report
from preread.batch.run import Runner, Stop
from preread.batch.streamed import Streamed
from preread.batch.table import Table
from preread.batch.tally import Tally
from preread.cli.billing import show_forecast, show_report
from preread.cli.output import FAILURES, OK, RESUMABLE, note
from preread.cli.places import Places
from preread.cli.progress import progress
from preread.cli.speeds import foreseen_s, remembered
from preread.config import load_config, local_model
from preread.errors import RequestError

T = TypeVar("T")
LEAVE_S = 5.0  # for what runs to be given up
Open = Callable[[str], Any]  # model -> context manager of an Opened


@dataclass(frozen=True, slots=True)
class Options:
    """How a batch is run, apart from what it asks."""

    output: Path
    journal: Path | None = None
    errors: Path | None = None
    report: Path | None = None
    resume: bool = False
    retry: bool = False
    fresh: bool = False
    dry_run: bool = False
    json: bool = False
    backend: str = ""  # "": as configured
    budget_money: float | None = None  # None: no limit
    budget_tokens: int | None = None
    cache: bool = False  # answer from the response cache; else as configured
    by_completion: bool = False  # else the output is in the order of the input
    quiet: bool = False  # nothing on stdout: the caller has more to say
    reads: tuple[Path, ...] = ()  # files that are read beside the table
    page: Path | None = None  # written by the caller

    @property
    def labels_responses(self) -> bool:
        """Whether the response cache may answer."""
        chosen = load_config().responses
        return self.cache or chosen.keep or bool(chosen.embeddings)

    @property
    def journal_path(self) -> Path:
        return self.journal or self.output.with_name(self.output.name + ".journal")

    @property
    def errors_path(self) -> Path:
        return self.errors or self.output.with_name(self.output.name + ".errors.jsonl")

    def places(self, inputs: Sequence[str]) -> Places:
        written = {
            "--output": self.output,
            "--journal": self.journal_path,
            "--error-file": self.errors_path,
            "--report": self.report,
            "--html": self.page,
        }
        named = {option: path for option, path in written.items() if path}
        return Places([*inputs, *self.reads], named)


class Opened(NamedTuple):
    """A backend, and how to run a coroutine on its loop."""

    backend: Backend
    run: Callable[[Coroutine[Any, Any, Any]], Any]


def opener(backend: str, cache: bool = False) -> Open:
    """Engines in this process, or somebody else's server. See `preread.open`. cache: with the
    response cache."""

    @contextmanager
    def opened(model: str) -> Iterator[Opened]:
        from preread.app import open as open_engine

        with open_engine(model, backend=backend, responses=cache) as engine:
            yield Opened(engine.backend, engine.run)

    return opened


@dataclass(slots=True)
class Batch:
    """One run, from a table to its output. form: what the lines of the output are made by."""

    table: Table
    options: Options
    form: Callable[[Journal], Form]
    open: Open
    stop: Stop = field(default_factory=Stop)
    forecasts: list[Forecast] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    rate: float = 0.0  # tokens a second at which the longest prefix was read
    _backends: ExitStack = field(default_factory=ExitStack)
    _held: dict[str, Opened] = field(default_factory=dict)

    def run(self) -> tuple[int, Report | None]:
        """The exit code, and the report of a run that came as far as running."""
        options = self.options
        options.places(self.table.files).check()
        with ExitStack() as stack:
            path = options.journal_path
            if options.dry_run:  # nothing is kept of it
                path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "journal"
            journal = Journal.open(path)
            stack.callback(journal.close)
            stack.enter_context(self._backends)
            self._begin(journal)
            self._foresee(journal)
            if options.dry_run:
                show_forecast(journal, self.forecasts, self.misses, json=options.json)
                return OK, None
            return self._go(journal)

    def _begin(self, journal: Journal) -> None:
        how = self.options
        if (how.resume or how.retry) and not journal.planned:
            note(f"note: {journal.path} holds no run to go on with; it begins anew")
        notes = begin(journal, self.table, resume=how.resume, retry=how.retry, fresh=how.fresh)
        for text, n in notes.items():
            note(f"note: {n:,} x {text}")

    def _foresee(self, journal: Journal) -> None:
        """Look at every model's requests before the first is run; a run that goes on does so with
        what was foreseen when it began."""
        kept = journal.get("forecasts")
        if kept:
            self.forecasts = [Forecast.from_json(value) for value in json_module.loads(kept)]
            told = json_module.loads(journal.get("misses") or "[]")
            self.misses = [Miss(**value) for value in told]
            return
        todo = models(journal)
        for model, _ in todo:
            with ExitStack() as stack:
                held = stack.enter_context(self.open(model))
                held.run(check_asked(journal, held.backend, model))
                held.run(check_fit(journal, held.backend, model))
                made = held.run(forecast(journal, held.backend, model))
                self.forecasts.append(replace(made, seconds=foreseen_s(made, held.backend.info)))
                self.misses += held.run(misses(journal, held.backend, model))
                if len(todo) == 1:  # it runs next
                    self._held[model] = held
                    self._backends.push(stack.pop_all())
        values = [made.to_json() for made in self.forecasts]
        journal.put("forecasts", json_module.dumps(values))
        self.misses = sorted(self.misses, key=lambda miss: -miss.size)[:WHY]
        journal.put("misses", json_module.dumps([miss._asdict() for miss in self.misses]))

    def _go(self, journal: Journal) -> tuple[int, Report]:
        tally, options = tallied(journal), self.options
        with ExitStack() as stack:
            if options.by_completion:
                form = self.form(journal)
                stack.enter_context(Streamed(journal, form, options.output))
            self._run_all(journal, tally)
        left = journal.count("line") - journal.count("results")
        report = make_report(journal, tally, self.forecasts, self.rate, self.misses)
        if not left:
            self._write(journal)
        if not options.quiet:
            show_report(report, options.output, left, self.stop.reason, json=options.json)
        if options.report:
            text = json_module.dumps(report.to_json(), ensure_ascii=False, indent=1)
            options.report.write_text(text + "\n", encoding="utf-8")
        return RESUMABLE if left else FAILURES if tally.failed else OK, report

    def _run_all(self, journal: Journal, tally: Tally) -> None:
        before = float(journal.get("seconds") or 0)
        quiet = self.options.json or self.options.quiet
        try:
            with interruptible(self.stop), progress(quiet=quiet) as tell:
                for model, _ in models(journal):
                    if not self.stop.reason:
                        self._run(journal, model, tally, tell)
        except KeyboardInterrupt:
            self.stop.ask("Ctrl-C")
        finally:
            journal.put("seconds", str(before + tally.seconds))
            journal.commit()

    def _run(
        self, journal: Journal, model: str, tally: Tally, tell: Callable[[Tally], None]
    ) -> None:
        with ExitStack() as stack:
            held = self._held.get(model) or stack.enter_context(self.open(model))
            info = held.backend.info
            same_model(journal, model, info.fingerprint)
            priced(journal, tally, model, info.prices)
            budget = self._budget(model, info)
            if not (budget.limited or self.options.labels_responses):
                self.rate = held.run(warm(journal, held.backend, model, tally)) or self.rate
            runner = Runner(journal, held.backend, model, tally, self.stop, tell, budget)
            with remembered(info, tally):
                try:
                    held.run(runner.run())
                except KeyboardInterrupt:
                    runner.wait(LEAVE_S)  # it writes down what was sent
                    raise

    def _budget(self, model: str, info: BackendInfo) -> Budget:
        """Raises RequestError for money where nothing is paid."""
        options = self.options
        money = options.budget_money
        if money is not None and not 0 < money < inf:
            raise RequestError(f"--budget-money is {money:g}.", hint="Give a sum above 0.")
        if money is not None and info.prices is None:
            raise RequestError(
                f"--budget-money: {info.name} has no prices for {info.model}.",
                hint="Give --budget-tokens.",
            )
        made = Budget(options.budget_money, options.budget_tokens)
        for foreseen in self.forecasts:
            if foreseen.model == model:
                made.per_char, made.per_row = foreseen.per_char, foreseen.per_row
        return made

    def _write(self, journal: Journal) -> None:
        form, options = self.form(journal), self.options
        if options.by_completion:
            write_errors(journal, form, options.errors_path)
        else:
            write_in_order(journal, form, options.output, options.errors_path)


@contextmanager
def interruptible(stop: Stop) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) lets what runs end, the second does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def asked(number: int, frame: object) -> None:
        if stop.reason:
            raise KeyboardInterrupt
        stop.ask(signal.Signals(number).name)
        note("stopping: what runs is waited for (Ctrl-C again: not)")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, asked) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def model_of(model: str, backend: str) -> str:
    """What rows of a table are asked of: as given, else as configured; "" where a server has but
    one."""
    from preread.app.compose import remote

    config = load_config().model
    if model:
        return local_model(model)
    return "" if remote(backend or config.backend) else local_model(config.model)


def read_text(path: Path, option: str) -> str:
    """Raises RequestError naming the option."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise RequestError(f"{option} {path}: {exc}.", hint="Give a text file.") from exc
