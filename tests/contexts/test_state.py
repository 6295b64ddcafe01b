"""Why a context is stale."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from preread.contexts.state import reread, source_state, state_of
from tests.contexts.made import NOW, Shop


@pytest.fixture
def bench(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


async def test_states_without_looking_at_the_sources(bench: Shop) -> None:
    record = (await bench.build(ttl_s=60.0)).record
    assert state_of(record, NOW + 59).label == "fresh"
    assert state_of(record, NOW + 60).label == "expired"
    assert state_of(record, NOW - 60).label == "fresh"  # another machine's clock
    assert state_of(record, NOW - 3600).label == "expired"  # a clock that was set back
    forever = replace(record, expires_at=None)
    assert state_of(forever, NOW - 3600).label == "fresh"
    assert state_of(record, NOW, "other").label == "stale"
    spoilt = replace(record, invalidated="recall")
    assert state_of(spoilt, NOW + 99, "other") == state_of(spoilt, NOW)
    assert state_of(spoilt, NOW).reason == "recall"


async def test_states_of_the_sources(bench: Shop) -> None:
    record = (await bench.build()).record
    assert source_state(record, NOW, bench.config.context).label == "fresh"
    (bench.docs / "hours.md").write_text("opening time: 8")
    (bench.docs / "new.md").write_text("new")
    state = source_state(record, NOW, bench.config.context)
    assert (state.label, state.reason) == ("stale", "1 of 3 files changed, 1 added")
    shutil.rmtree(bench.docs)
    state = source_state(record, NOW, bench.config.context)
    assert state.label == "stale" and "no such file or folder" in state.reason


async def test_a_file_that_was_only_touched_is_fresh(bench: Shop) -> None:
    record = (await bench.build()).record
    text = (bench.docs / "hours.md").read_bytes()
    (bench.docs / "hours.md").write_bytes(text)
    assert source_state(record, NOW, bench.config.context).label == "fresh"


async def test_standard_input_never_goes_stale(bench: Shop) -> None:
    mixed = (await bench.build("-", str(bench.docs), stdin=b"typed")).record
    sources, changes, why = reread(mixed, bench.config.context)
    assert sources and sources.records == mixed.sources and not changes and not why
    piped = (await bench.build("-", stdin=b"typed")).record
    assert source_state(piped, NOW, bench.config.context).label == "fresh"
