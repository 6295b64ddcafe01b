"""What was sent and not answered may have been billed: it is reserved before it is sent, counted
in the budget, and known to the next session, however the one before has ended."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preread.backend import Billed
from preread.batch.budget import Budget
from preread.batch.job import begin, priced, tallied
from preread.batch.journal import Journal
from preread.batch.ledger import Bills, Ledger
from preread.batch.slate import Slate, path_of, settle
from preread.batch.tally import Tally
from preread.errors import StateError

from .billing import PRICES, Bank, as_killed, ran
from .made import RUBRIC, batch_table, chat, written

ROWS, MOST = 40, 8
DEAREST = PRICES.most(500, MOST)  # of one request, more than any takes
fates = st.tuples(st.integers(1, 12), *[st.integers(0, 3)] * 6).map(list)
quickly = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def planned(folder: Path) -> Journal:
    systems = [f"Rubric {i}. {RUBRIC}" for i in range(2)]
    lines = [
        chat(f"r{i}", f"candidate {i} " * (1 + i % 5), systems[i % 2], max_tokens=MOST)
        for i in range(ROWS)
    ]
    journal = Journal.open(folder / "b.journal", commit_s=0.25)
    begin(journal, batch_table(written(folder / "in.jsonl", lines)))
    return journal


@quickly
@given(fates, st.integers(0, 2**32), st.floats(0.2, 4.0), st.integers(1, 12), st.integers(1, 6))
def test_no_budget_is_exceeded_by_attempts_that_may_have_been_billed(
    fates: list[int], seed: int, share: float, at_once: int, attempts: int
) -> None:
    """At no moment has the provider billed more than the limit; and what is left at the end is
    too little for one request more."""
    limit = share * 0.0031  # what the rows cost when all goes well
    with tempfile.TemporaryDirectory() as folder:
        journal, bank = planned(Path(folder)), Bank(fates, seed)

        def seen() -> None:
            assert bank.money <= limit

        bank.seen = seen
        tally, stop = ran(journal, bank, Budget(money=limit), at_once, attempts)
        assert bank.money <= tally.money + tally.unsure_money + 1e-12 <= limit + 2e-12
        if stop.reason:
            assert stop.reason.startswith("the budget is used up") and tally.done < ROWS
            assert tally.money + tally.unsure_money > limit - 2 * DEAREST
        else:
            assert tally.done == ROWS
        assert not path_of(journal).exists()
        journal.close()


@quickly
@given(
    fates, st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 100),
    st.integers(800, 15_000),
)  # fmt: skip
def test_what_a_killed_run_may_have_been_billed_is_known_to_the_next(
    fates: list[int], seed: int, at_once: int, moment: int, limit: int
) -> None:
    """To the token: answers as they were, whether or not their results were kept, and all others
    at their most. The next session keeps to the same budget."""
    with tempfile.TemporaryDirectory() as folder:
        journal, bank = planned(Path(folder)), Bank(fates, seed)
        left: list[tuple[Path, dict[str, int], int, int]] = []

        def seen() -> None:
            assert bank.tokens <= limit
            if bank.requests >= moment and not left:
                path = as_killed(journal, Path(folder, "killed"))
                left.append((path, dict(bank.answered), bank.doubted, bank.tokens))

        bank.seen = seen
        ran(journal, bank, Budget(tokens=limit), at_once, 3)
        journal.close()
        if not left:
            return
        ((path, answered, doubted, billed),) = left
        journal = Journal.open(path)
        tally = tallied(journal)
        told = {name: getattr(tally, name) for name in ("cached", "computed", "output")}
        assert told == {name: answered.get(name, 0) for name in told}
        unsure = tally.unsure
        assert unsure >= doubted and bool(unsure) == bool(doubted)
        assert tally.computed + tally.output + unsure >= billed
        priced(journal, tally, "m", PRICES)
        assert tally.unsure_money >= unsure * PRICES.computed / 1e6
        journal.close()
        journal = Journal.open(path)  # it is told once
        assert tallied(journal).unsure == unsure and not path_of(journal).exists()
        bank.tokens = billed
        bank.seen = lambda: None
        ran(journal, bank, Budget(tokens=limit), at_once, 3)
        assert bank.tokens <= limit
        journal.check()
        journal.close()


def test_one_row_with_many_attempts_keeps_to_the_budget(tmp_path: Path) -> None:
    journal, bank = planned(tmp_path), Bank([0, 1, 0, 0, 0, 0, 0], 1)
    limit = 3.5 * PRICES.most(355, MOST)
    tally, stop = ran(journal, bank, Budget(money=limit), 1, 6)
    assert bank.requests == 3 and bank.money <= limit
    assert stop.reason.startswith("the budget is used up") and tally.done == 0
    assert tally.unsure_money <= limit and tally.money == 0
    bank.fates = [1, 0, 0, 0, 0, 0, 0]
    tally, stop = ran(journal, bank, Budget(money=1.0), 1, 6)  # a larger one goes on
    assert tally.done == ROWS and not tally.failed and tally.unsure_money <= limit
    journal.close()


def test_a_slate_that_is_gone_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = planned(tmp_path)
    Slate.open(journal, b"m" * 8).add([100, 8, 0, 0, 0, 0])
    path_of(journal).unlink()
    assert tallied(journal).unsure == 0 and "is not known" in caplog.text
    caplog.clear()
    assert tallied(journal).unsure == 0 and not caplog.text
    journal.close()


def test_a_slate_of_another_run_counts_nowhere(tmp_path: Path) -> None:
    """It was begun anew, or killed between the two files."""
    journal = planned(tmp_path)
    Slate.open(journal, b"m" * 8).add([100, 8, 0, 0, 0, 0])
    journal.clear()
    assert tallied(journal).unsure == 0 and not path_of(journal).exists()
    journal.close()


def test_a_file_that_is_no_slate_is_left_alone(tmp_path: Path) -> None:
    journal = planned(tmp_path)
    path_of(journal).write_text("mine")
    with pytest.raises(StateError, match="no file of a run"):
        tallied(journal)
    assert path_of(journal).read_text() == "mine"
    journal.close()


async def test_what_was_answered_counts_where_no_result_does(tmp_path: Path) -> None:
    """A row of several requests that stopped between them has paid for the first."""
    journal, tally = planned(tmp_path), Tally(1, prices=PRICES)
    slate = Slate.open(journal, b"m" * 8)
    ledger = Ledger(Budget(tokens=1000), tally, slate, lambda: None, lambda exc: None)
    bills = Bills(ledger)
    for counts in (Billed(300, 20, 1, 20), Billed(320, 2, 1)):
        attempt = await bills.attempt(0, (330, 8))
        assert attempt is not None and attempt.sent()
        attempt.billed(counts)
        attempt.over()
    bills.settle(0, Billed(300, 20, 0, 20))  # a result that counts the first, and no output
    assert (tally.cached, tally.computed, tally.output, tally.written) == (320, 2, 2, 0)
    assert tally.money == PRICES.of(2, 320, 2) and not tally.unsure
    owed = ledger.owed()
    assert owed is not None and ledger.owed() is None
    settle(journal, b"m" * 8, owed)
    journal.commit()
    slate.close(journal)
    assert journal.read("SELECT * FROM lost") == [(b"m" * 8, 320, 2, 2, 0)]
    assert not path_of(journal).exists()
    journal.close()


async def test_nothing_is_sent_that_cannot_be_written_down(tmp_path: Path) -> None:
    journal, failed = planned(tmp_path), list[Exception]()
    slate = Slate.open(journal, b"m" * 8)
    ledger = Ledger(Budget(), Tally(1), slate, lambda: None, failed.append)
    bills = Bills(ledger)
    attempt = await bills.attempt(0, (100, 8))
    assert attempt is not None

    def full() -> None:
        raise OSError(28, "No space left on device")

    slate._write = full  # type: ignore[method-assign]
    assert not attempt.sent() and str(failed[0]).startswith("[Errno 28]")
    attempt.over()
    assert slate.sums == [0] * 6 and await bills.attempt(0, (1, 1)) is None
    journal.close()
