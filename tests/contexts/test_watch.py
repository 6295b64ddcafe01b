"""What happens elsewhere is seen: by a look before a use, and by the thread, hint or no hint."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest

from preread.contexts.catalog.base import Standing
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.contexts.watch import Change, Watcher
from preread.errors import HomeError
from preread.testing.conformance_catalog import record

TENANT, MODEL = "tenant:default", "model:" + "f0" * 32


class Away(SqliteCatalog):
    """A catalog that cannot be asked while `away` is set."""

    away = threading.Event()

    def standing(self, held: object) -> list[Standing]:
        if self.away.is_set():
            raise HomeError("no catalog.", hint="Mend it.")
        return super().standing(held)  # type: ignore[arg-type]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Away]:
    catalog = Away(tmp_path / "catalog.sqlite")
    catalog.put(record(), expected=0)
    yield catalog
    catalog.away.clear()


@pytest.fixture
def told() -> list[Change]:
    return []


@pytest.fixture
def watcher(catalog: Away, told: list[Change]) -> Iterator[Watcher]:
    """One whose thread looks once and then waits for an hour."""
    watcher = Watcher(catalog, told.append, scopes=(TENANT, MODEL), every_s=3600)
    watcher.hold("handbook", 1)
    watcher.look_now()
    yield watcher
    watcher.close()


def test_nothing_happened(watcher: Watcher, told: list[Change]) -> None:
    watcher.look_now()
    watcher.look_now()
    assert told == []


def test_every_kind_of_change_is_told_once(
    watcher: Watcher, catalog: Away, told: list[Change]
) -> None:
    other = SqliteCatalog(catalog.path)
    other.put(record(version=2), expected=1)
    watcher.look_now()
    other.bump(TENANT)
    watcher.look_now()
    other.put(record("other"), expected=0)  # nobody holds it
    watcher.look_now()
    other.invalidate("handbook", "recall")  # version 2: what is held is the first
    watcher.look_now()
    watcher.hold("handbook", 2)
    watcher.look_now()
    watcher.look_now()
    watcher.hold("other", 1)
    other.remove("other")
    watcher.look_now()
    watcher.look_now()
    assert told == [
        Change("published", "handbook", 2),
        Change("erased", TENANT, 1),
        Change("invalidated", "handbook", 2, "recall"),
        Change("removed", "other", 1),
    ]


def test_a_held_version_that_was_replaced_can_still_be_invalidated(
    watcher: Watcher, catalog: Away, told: list[Change]
) -> None:
    catalog.invalidate("handbook", "recall")
    catalog.put(record(version=2), expected=1)
    watcher.look_now()
    assert told == [Change("invalidated", "handbook", 1, "recall")]


def test_who_was_away_looks_before_the_next_use(catalog: Away, told: list[Change]) -> None:
    now = [100.0]
    watcher = Watcher(catalog, told.append, every_s=3600, clock=lambda: now[0])
    watcher.hold("handbook", 1)
    watcher.look_now()
    catalog.away.set()
    SqliteCatalog(catalog.path).invalidate("handbook", "recall")
    watcher.look()  # it was looked at lately
    now[0] += 10_000
    with pytest.raises(HomeError):
        watcher.look()
    assert told == []
    catalog.away.clear()
    watcher.look()
    assert told == [Change("invalidated", "handbook", 1, "recall")]
    watcher.close()


def test_the_thread_sees_it_by_itself_and_again_after_a_failure(
    catalog: Away, caplog: pytest.LogCaptureFixture
) -> None:
    changes: Queue[Change] = Queue()
    watcher = Watcher(catalog, changes.put, scopes=(TENANT,), every_s=0.01)
    watcher.hold("handbook", 1)
    watcher.look_now()
    catalog.away.set()
    with caplog.at_level(logging.WARNING):
        while not caplog.records:
            threading.Event().wait(0.01)
    threading.Event().wait(0.1)
    assert len(caplog.records) == 1  # said once
    SqliteCatalog(catalog.path).bump(TENANT)
    SqliteCatalog(catalog.path).invalidate("handbook", "recall")
    catalog.away.clear()
    got = {changes.get(timeout=60).kind for _ in range(2)}
    assert got == {"erased", "invalidated"}
    watcher.close()


def test_a_failing_listener_does_not_end_the_thread(
    catalog: Away, caplog: pytest.LogCaptureFixture
) -> None:
    changes: Queue[Change] = Queue()

    def fail(change: Change) -> None:
        changes.put(change)
        raise ValueError("of the listener")

    watcher = Watcher(catalog, fail, scopes=(TENANT,), every_s=0.01)
    watcher.hold("handbook", 1)
    watcher.look_now()
    for epoch in (1, 2):
        catalog.bump(TENANT)
        assert changes.get(timeout=60) == Change("erased", TENANT, epoch)
    watcher.close()
    assert "of the listener" in caplog.text


def test_closing_is_quick_and_final(watcher: Watcher, catalog: Away, told: list[Change]) -> None:
    watcher.close()
    watcher.close()
    watcher.hold("other", 1)
    assert told == []


def test_nothing_runs_before_something_is_held(catalog: Away) -> None:
    before = threading.active_count()
    watcher = Watcher(catalog, print)
    assert threading.active_count() == before
    watcher.close()


def test_a_catalog_that_hangs_is_waited_for_once_by_all_who_want_it(catalog: Away) -> None:
    asked, go = threading.Semaphore(0), threading.Event()

    class Hung(SqliteCatalog):
        def standing(self, held: object) -> list[Standing]:
            asked.release()
            go.wait(60)
            raise HomeError("no answer.", hint="Mend it.")

    watcher = Watcher(Hung(catalog.path), print)
    said: list[HomeError] = []

    def use() -> None:
        try:
            watcher.look()
        except HomeError as exc:
            said.append(exc)

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert asked.acquire(timeout=60)
    threading.Event().wait(0.3)  # the others have come as well
    go.set()
    for thread in threads:
        thread.join()
    assert len(said) == len(set(map(id, said))) == 5
    assert not asked.acquire(blocking=False)
