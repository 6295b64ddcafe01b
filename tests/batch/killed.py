"""Runs a batch again and again, each time in a process that is killed (-9) at a random moment,
until it was killed often enough; whenever a run comes to its end, its output must be the
undisturbed one's, and the next begins. `python -m tests.batch.killed FILE KILLS SEED`."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from preread.backend import RequestBatch, ResultBatch
from preread.batch.job import begin, models, tallied
from preread.batch.journal import Journal
from preread.batch.output import write_in_order
from preread.batch.run import Runner, Stop
from preread.testing.instant import InstantBackend

from .made import batch_table, form_of

ROWS, PIECE = 5000, 50
REPEATED = 9  # exit code


class OnlyNew(InstantBackend):
    """Ends the process when it is asked what was finished before."""

    def __init__(self, done: set[str]) -> None:
        super().__init__(piece=PIECE, pause_s=0.001)
        self._done = done

    async def submit(self, batch: RequestBatch) -> AsyncGenerator[ResultBatch, None]:
        if not self._done.isdisjoint(batch.prompts):  # type: ignore[arg-type]
            os._exit(REPEATED)
        async for news in super().submit(batch):
            yield news


def life(source: Path, folder: Path) -> None:
    """One process: begin or go on, run, write."""
    journal = Journal.open(folder / "journal", commit_s=0.005)
    begin(journal, batch_table(source), resume=True)
    done = journal.read("SELECT requests.text FROM requests JOIN results USING (idx)")
    backend = OnlyNew({text for (text,) in done})
    for model, _ in models(journal):
        asyncio.run(Runner(journal, backend, model, tallied(journal), Stop()).run())
    write_in_order(journal, form_of(journal, folder / "out.jsonl"), folder / "out.jsonl",
                   folder / "errors.jsonl")  # fmt: skip
    journal.close()


def lived(source: Path, folder: Path, seconds: float) -> bool:
    """Whether it came to its end before it was killed."""
    child = os.fork()
    if not child:
        try:
            life(source, folder)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    end, ended, status = time.monotonic() + seconds, 0, 0
    while not ended and time.monotonic() < end:
        time.sleep(0.001)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)  # it is ours and not yet waited for
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        sys.exit(f"a run ended with {os.WEXITSTATUS(status)} ({REPEATED}: it repeated something)")
    return True


def main(source: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    folder = source.parent / "whole"
    folder.mkdir()
    lived(source, folder, 600)
    expected = {name: (folder / name).read_bytes() for name in ("out.jsonl", "errors.jsonl")}
    assert expected["out.jsonl"].count(b"\n") + expected["errors.jsonl"].count(b"\n") == ROWS
    killed = runs = 0
    while killed < kills:
        folder = source.parent / f"run{runs}"
        folder.mkdir()
        while not lived(source, folder, chance.uniform(0, 0.3) if killed < kills else 600):
            killed += 1
        for name, data in expected.items():
            assert (folder / name).read_bytes() == data, f"{folder / name} differs"
        assert not list(folder.glob(".*")), "a part of a file was left behind"
        runs += 1
    print(f"killed {killed} times in {runs} runs")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
