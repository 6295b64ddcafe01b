"""One job, run with and without reuse, so that the difference can be told: N requests that share
their instructions and differ in a few words."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from preread.backend import Backend, Choose, Generate
from preread.batch.applicants import LABELS, applicants, rubric
from preread.batch.intake import take_in
from preread.batch.job import warm
from preread.batch.journal import Journal
from preread.batch.order import Order
from preread.batch.run import Runner, Stop
from preread.batch.table import BLOCK, Faults, Rows
from preread.batch.tally import Tally
from preread.errors import EngineError
from preread.front import Afresh
from preread.types import Prefix

SAMPLES = 32  # applicants that are counted to find how many words make so many tokens
ROUNDS = 8


class Mode(StrEnum):
    """baseline: the whole prompt every time, the model loaded again and again; keep-alive: the
    whole prompt, the model stays; full: what is shared is read once."""

    baseline = "baseline"
    keep_alive = "keep-alive"
    full = "full"


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked. rubric_words and words make about `shared` and `own` tokens of each prompt,
    template included; out: tokens to write, 0: one forward that chooses a label."""

    model: str
    requests: int
    shared: int
    own: int
    rubric_words: int
    words: int
    run: str
    out: int = 0

    @property
    def order(self) -> Order:
        work = Generate(self.out, ignore_eos=True) if self.out else Choose(LABELS)
        return Order(self.model, work)

    @property
    def prefix(self) -> Prefix:
        return Prefix(rubric(self.rubric_words, self.run))

    def texts(self, begin: int, end: int) -> Iterator[str]:
        return (f"{name}: {profile}" for name, profile in applicants(begin, end, self.words))


async def sized(
    backend: Backend, *, requests: int, shared: int, own: int, run: str, out: int = 0
) -> Job:
    """A job with prompts of about so many tokens, as the backend counts them. run: no other run has
    the same beginnings."""
    job = Job(backend.info.model, requests, shared, own, shared // 2, max(own // 2, 1), run, out)
    for _ in range(ROUNDS):
        head, mine = await _sizes(backend, job)
        rubric_words = max(job.rubric_words + round((shared - head) * job.rubric_words / head), 8)
        words = max(job.words + round((own - mine) * job.words / mine), 1)
        if (rubric_words, words) == (job.rubric_words, job.words):
            break
        job = replace(job, rubric_words=rubric_words, words=words)
    head, mine = await _sizes(backend, job)
    return replace(job, shared=head, own=round(mine))


async def _sizes(backend: Backend, job: Job) -> tuple[int, float]:
    """Tokens of the prefix, and on average of what follows it."""
    step = max(job.requests // SAMPLES, 1)
    some = [next(job.texts(i, i + 1)) for i in range(0, job.requests, step)][:SAMPLES]
    (head,) = await backend.count([job.prefix])
    whole = await backend.count([job.prefix] * len(some), some)
    return head, sum(whole) / len(whole) - head


class Made:
    """Requests [begin, end) of a job. See batch.table.Table. apart: every prompt begins with its
    own number, so that no server finds a beginning that it knows."""

    def __init__(self, job: Job, begin: int, end: int, *, apart: bool = False) -> None:
        self._job = job
        self._span = begin, end
        self._apart = apart
        self.files = ["made"]
        self.fan = 1
        self.fixed = 0
        self.columns: Sequence[str] = ()

    def read(self, faults: Faults) -> Iterator[Rows]:
        job, (begin, end) = self._job, self._span
        order, prefix = job.order, job.prefix
        for lo in range(begin, end, BLOCK):
            rows = Rows()
            for i, text in enumerate(job.texts(lo, min(lo + BLOCK, end)), lo):
                own = Prefix(f"{i:07d} {prefix.system}") if self._apart else prefix
                rows.add((0, i + 1), order, own, text)
            yield rows


@dataclass(slots=True)
class Measured:
    """What a mode took. ran: of the requests, those that were run; loads, load_s: of the model,
    None where somebody else's server does that; once_s, once_tokens: loading and reading that is
    done once, however many requests; hits: requests that reused anything; seconds: all of it."""

    mode: Mode
    requests: int
    ran: int = 0
    loads: float | None = 0
    load_s: float = 0.0
    once_s: float = 0.0
    once_tokens: int = 0
    computed: int = 0
    cached: int = 0
    output: int = 0
    hits: int = 0
    seconds: float = 0.0

    @property
    def hit_rate(self) -> float:
        """Of the prompt tokens of the requests, those that were not computed for any."""
        prompt = self.cached + self.computed - self.once_tokens
        return 1 - self.computed / prompt if self.cached else 0.0

    @property
    def per_s(self) -> float:
        return self.requests / max(self.seconds, 1e-9)

    def at(self, requests: int) -> Measured:
        """The same for another number of requests: what is done once stays, the rest grows."""
        scale = requests / self.ran
        loads = self.loads
        if loads is not None and self.mode is Mode.baseline:
            loads *= scale
        return Measured(
            self.mode, requests, self.ran, loads,
            self.load_s * (scale if self.mode is Mode.baseline else 1), self.once_s,
            self.once_tokens, self.once_tokens + round((self.computed - self.once_tokens) * scale),
            round(self.cached * scale), round(self.output * scale), round(self.hits * scale),
            self.once_s + (self.seconds - self.once_s) * scale,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        value = {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}
        rates = {"hit_rate": round(self.hit_rate, 5), "requests_per_s": round(self.per_s, 3)}
        return value | rates | {"extrapolated": self.ran != self.requests}


async def run_part(
    backend: Backend, job: Job, seen: Measured, begin: int, end: int, folder: Path, *, local: bool
) -> None:
    """Requests [begin, end) of a job, added to what was seen. Nothing of a run is kept in `folder`.
    Raises EngineError if a request fails: what remains would be another job."""
    full = seen.mode is Mode.full
    path = folder / f"{seen.mode}-{begin}.journal"
    journal = Journal.open(path)
    try:
        started = time.perf_counter()
        take_in(journal, Made(job, begin, end, apart=not (full or local)))
        tally = Tally(total=end - begin)
        if full:
            await warm(journal, backend, job.model, tally)
            seen.once_s += time.perf_counter() - started
            seen.once_tokens += tally.computed
        asked = backend if full or not local else Afresh(backend)
        await Runner(journal, asked, job.model, tally, Stop()).run()
        seen.seconds += time.perf_counter() - started
        failed = journal.read("SELECT error FROM results WHERE finish = 'error' LIMIT 1")
        if failed or tally.done < end - begin:
            why = failed[0][0] if failed else "not all requests came back"
            raise EngineError(
                f"{seen.mode}: {why}", hint="Try a smaller --shared, or preread doctor."
            )
        seen.hits += journal.count("results", "cached > 0")
    finally:
        journal.close()
        path.unlink(missing_ok=True)
    seen.ran += end - begin
    seen.computed += tally.computed
    seen.cached += tally.cached
    seen.output += tally.output
