"""Output in the order of completion: every row once, whatever happens in between."""

from __future__ import annotations

import asyncio
import errno
import random
from pathlib import Path

import pytest

from preread.batch.forms import OpenAILines
from preread.batch.job import begin, models, tallied
from preread.batch.journal import Journal
from preread.batch.run import Runner, Stop
from preread.batch.streamed import Streamed
from preread.errors import Resumable
from preread.testing.instant import InstantBackend

from .made import batch_table, chat, objects, written

LINES = [chat(f"r{i}", f"{'fail' if i % 50 == 3 else 'c'} {i % 900}") for i in range(1000)]


def go(journal: Journal, out: Path, backend: InstantBackend) -> None:
    with Streamed(journal, OpenAILines(journal, 0), out):
        for model, _ in models(journal):
            asyncio.run(Runner(journal, backend, model, tallied(journal), Stop()).run())
        journal.commit()


def begun(tmp_path: Path, **how: bool) -> Journal:
    journal = Journal.open(tmp_path / "journal", commit_s=0.01)
    begin(journal, batch_table(written(tmp_path / "in.jsonl", LINES)), **how)
    return journal


def names(out: Path) -> list[str]:
    return [line["custom_id"] for line in objects(out)]


GOOD = sorted(line["custom_id"] for line in LINES
              if "fail" not in line["body"]["messages"][-1]["content"])  # fmt: skip


def test_every_row_is_written_once_as_it_comes(tmp_path: Path) -> None:
    journal, out = begun(tmp_path), tmp_path / "out.jsonl"
    backend = InstantBackend(piece=20, pause_s=0.002)
    go(journal, out, backend)
    assert sorted(names(out)) == GOOD  # twins too, failed ones in the error file only
    journal.close()


@pytest.mark.parametrize("seed", range(5))
def test_what_was_written_past_the_last_commit_is_cut_off(tmp_path: Path, seed: int) -> None:
    """A process may die between a line and the commit that says how far they go: put it back there,
    with any number of bytes more than it knows of."""
    chance = random.Random(seed)
    journal, out = begun(tmp_path), tmp_path / "out.jsonl"
    go(journal, out, InstantBackend(piece=20))
    whole, lines = out.read_bytes(), names(out)
    journal.put("streamed seq", "0")
    journal.put("streamed bytes", "0")
    done = chance.randrange(1, 400)  # results that were known to be written
    rows = journal.read("SELECT seq, idx FROM finished WHERE seq <= ? ORDER BY seq", done)
    keys = [idx for _, idx in rows]
    twins = {
        i: [j for (j,) in journal.read("SELECT idx FROM twins WHERE first = ?", i)] for i in keys
    }
    known = {f"r{i}" for key in keys for i in (key, *twins[key])}
    end = sum(len(line) + 1 for line, name in zip(whole.splitlines(), lines, strict=True)
              if name in known)  # fmt: skip
    if end:
        journal.put("streamed seq", str(done))
        journal.put("streamed bytes", str(end))
    out.write_bytes(whole[: end + chance.randrange(0, len(whole) - end)])
    go(journal, out, InstantBackend())
    assert out.read_bytes() == whole
    journal.close()


def test_a_file_that_is_gone_is_written_again(tmp_path: Path) -> None:
    journal, out = begun(tmp_path), tmp_path / "out.jsonl"
    go(journal, out, InstantBackend())
    out.unlink()
    go(journal, out, InstantBackend())
    assert sorted(names(out)) == GOOD
    journal.close()


def test_failed_rows_that_run_again_are_added(tmp_path: Path) -> None:
    class Mended(InstantBackend):
        async def submit(self, batch):  # type: ignore[no-untyped-def, override]
            from dataclasses import replace

            texts = [text.replace("fail", "good") for text in batch.prompts]
            async for news in super().submit(replace(batch, prompts=texts)):
                yield news

    journal, out = begun(tmp_path), tmp_path / "out.jsonl"
    go(journal, out, InstantBackend())
    journal.close()
    journal = begun(tmp_path, retry=True)
    go(journal, out, Mended())
    assert sorted(names(out)) == sorted(line["custom_id"] for line in LINES)
    out.unlink()
    go(journal, out, Mended())
    assert sorted(names(out)) == sorted(line["custom_id"] for line in LINES)
    journal.close()


def test_results_from_before_are_written_too(tmp_path: Path) -> None:
    journal, out = begun(tmp_path), tmp_path / "out.jsonl"
    asyncio.run(Runner(journal, InstantBackend(), "m", tallied(journal), Stop()).run())
    go(journal, out, InstantBackend())
    assert sorted(names(out)) == GOOD
    journal.close()


def test_a_full_disk_stops_it_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, out = begun(tmp_path), tmp_path / "out.jsonl"

    def full(self: OpenAILines, groups: object) -> tuple[str, int]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(OpenAILines, "lines", full)
        with pytest.raises(Resumable, match="full"):
            go(journal, out, InstantBackend())
    go(journal, out, InstantBackend())
    assert sorted(names(out)) == GOOD
    journal.close()
