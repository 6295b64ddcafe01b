"""A provider that bills what it reads, whether or not its answer arrives, in virtual time; and a
run of a batch against it."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from preread.batch.budget import Budget
from preread.batch.job import priced, tallied
from preread.batch.journal import Journal
from preread.batch.run import Runner, Stop
from preread.batch.tally import Tally
from preread.prices import Prices
from preread.providers.backend import RemoteBackend
from preread.providers.dialect import Facts
from preread.providers.gate import Gate
from preread.providers.http import Broken, Reply, Unsent
from preread.providers.lanes import Lane, Limits
from preread.providers.limits import Limiter
from preread.providers.openai import OpenAI
from preread.providers.retry import Retry
from preread.providers.sender import Sender

from ..providers.clock import LoopClock, run_virtual

PRICES = Prices(computed=1.0, cached=0.1, written=1.25, output=4.0)
FATES = ("ok", "lost", "half", "gateway", "busy", "error", "unsent")
FREE = ("busy", "error", "unsent")  # nothing is billed
OUTPUT = 3  # tokens of an answer; its request allows a few more


class Bank:
    """See preread.providers.http.Http. What it has billed is the truth. fates: how likely each of
    FATES is; seen: called with it at every arrival and before every answer."""

    base = "http://bank"

    def __init__(self, fates: list[int], seed: int) -> None:
        self.fates = fates
        self.chance = random.Random(seed)
        self.money, self.tokens = 0.0, 0
        self.answered = Counter[str]()  # tokens of answers that have arrived
        self.doubted = 0  # output tokens allowed to requests whose answer has not
        self.requests = 0
        self.seen: Callable[[], None] = lambda: None
        self._read: set[str] = set()

    async def post(self, path: str, headers: Mapping[str, str], body: Any) -> Reply:
        fate = self.chance.choices(FATES, self.fates)[0]
        counts = self._bill(body, fate)
        self.doubted += body["max_tokens"]
        self.requests += 1
        self.seen()
        await LoopClock().sleep(self.chance.uniform(0.01, 2.0))
        self.seen()
        if fate not in ("lost", "half", "gateway"):
            self.doubted -= body["max_tokens"]
        if fate == "ok":
            self.answered.update(counts)
            return _reply(200, counts)
        if fate in ("lost", "unsent"):
            raise (Broken if fate == "lost" else Unsent)("gone")
        if fate == "half":
            return Reply(200, {}, b'{"choices": [{"mess')
        return _reply({"gateway": 504, "busy": 429, "error": 500}[fate], {})

    async def send(self, method: str, path: str, headers: Any, data: Any) -> Reply:
        return _reply(404, {})

    async def close(self) -> None:
        return

    def _bill(self, body: Any, fate: str) -> dict[str, int]:
        sizes = [int(len(turn["content"].encode()) * 0.25) + 4 for turn in body["messages"]]
        head = body["messages"][0]["content"]
        cached = sizes[0] if head in self._read else 0
        if fate not in FREE:
            self._read.add(head)
            self.money += PRICES.of(sum(sizes) - cached, cached, OUTPUT)
            self.tokens += sum(sizes) - cached + OUTPUT
        return {"cached": cached, "computed": sum(sizes) - cached, "output": OUTPUT}


def _reply(status: int, counts: dict[str, int]) -> Reply:
    body: dict[str, Any] = {"error": {"message": "no"}}
    if status == 200:
        usage = {
            "prompt_tokens": counts["cached"] + counts["computed"],
            "completion_tokens": counts["output"],
            "prompt_tokens_details": {"cached_tokens": counts["cached"]},
        }
        said = {"role": "assistant", "content": "yes"}
        body = {"choices": [{"message": said, "finish_reason": "stop"}], "usage": usage}
    return Reply(status, {}, json.dumps(body).encode())


class Inline(Executor):
    """Does it at once, so that a run is the same every time."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as exc:
            future.set_exception(exc)
        return future


def backend_of(bank: Bank, at_once: int, attempts: int) -> RemoteBackend:
    dialect, clock = OpenAI("m", bank.base), LoopClock()
    lanes = [Lane("", [""], Limits())]
    retry = Retry(attempts, random=random.Random(1))
    sender = Sender(bank, Limiter(lanes, clock), Gate(at_once), retry, dialect.headers, clock)  # type: ignore[arg-type]
    facts = Facts("m", 10**6)
    return RemoteBackend(dialect, sender, facts, base=bank.base, prices=PRICES, clock=clock)


def ran(
    journal: Journal, bank: Bank, budget: Budget, at_once: int, attempts: int
) -> tuple[Tally, Stop]:
    """A session, to its end. Commits now and then."""
    tally, stop = tallied(journal), Stop()
    priced(journal, tally, "m", PRICES)

    def commit(tally: Tally) -> None:
        if bank.chance.random() < 0.3:
            journal.commit()

    async def session() -> None:
        backend = backend_of(bank, at_once, attempts)
        runner = Runner(journal, backend, "m", tally, stop, commit, budget)
        runner._aside = Inline()  # type: ignore[assignment]
        await runner.run()
        await backend.close()

    run_virtual(session())
    return tally, stop


def as_killed(journal: Journal, folder: Path) -> Path:
    """What a kill -9 leaves at this moment."""
    folder.mkdir()
    for path in journal.path.parent.glob(journal.path.name + "*"):
        shutil.copy(path, folder / path.name)
    return folder / journal.path.name
