"""Rows that leave at any moment: each ends once, the others are answered as if nothing was."""

from __future__ import annotations

import asyncio
import random
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from preread.backend import Generate, Leaving, RequestBatch
from preread.providers import running
from preread.types import Finish, Prefix

from ..batch.billing import Bank, backend_of
from .clock import run_virtual
from .purse import Purse

ROWS = 30


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.sets(st.integers(0, ROWS - 1)), st.integers(1, 6), st.booleans())
def test_each_row_ends_once(seed: int, gone: set[int], workers: int, shared: bool) -> None:
    bank, chance, leaving, purse = (
        Bank([9, 1, 1, 1, 1, 1, 1], seed),
        random.Random(seed),
        Leaving(),
        Purse(),
    )
    ended: list[tuple[int, Finish | None]] = []

    async def leave(row: int) -> None:
        await asyncio.sleep(chance.uniform(0, 20))
        leaving.leave(row)

    async def run() -> None:
        backend = backend_of(bank, 3, 30)
        prefixes = (Prefix("Rules. " * 40),) if shared else ()
        batch = RequestBatch(
            Generate(max_tokens=8), [f"row {i}" for i in range(ROWS)], prefixes,
            leaving=leaving, spending=purse,
        )  # fmt: skip
        leavers = [asyncio.create_task(leave(row)) for row in gone]
        async for news in backend.submit(batch):
            ended.extend(zip(news.rows.tolist(), news.finish, strict=True))
        await asyncio.gather(*leavers)
        await backend.close()

    with patch.object(running, "WORKERS", workers):
        run_virtual(run())
    assert sorted(row for row, _ in ended) == list(range(ROWS))
    assert all(finish is Finish.STOP for row, finish in ended if row not in gone)
    assert not purse.open
    assert sum(output for _, output in purse.doubts.values()) == bank.doubted
