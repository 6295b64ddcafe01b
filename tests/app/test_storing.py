"""The parts of an engine's store that ask the catalog."""

from __future__ import annotations

from pathlib import Path

from preread.app.storing import COOL_S, Since
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.errors import HomeError
from preread.store.keys import Epochs
from preread.testing.conformance_tier import Clock


def test_epochs_of_a_catalog_that_hangs_are_asked_for_once_a_second(tmp_path: Path) -> None:
    asked: list[str] = []

    class Away(SqliteCatalog):
        def epoch(self, scope: str) -> int:
            asked.append(scope)
            if len(asked) == 1:
                raise HomeError("no answer within 2 s.", hint="Start it.")
            return super().epoch(scope)

    clock, catalog = Clock(), Away(tmp_path / "catalog.sqlite")
    catalog.bump("model:f0")
    since = Since(catalog, ("tenant:a", "model:f0"), clock)
    assert [since() for _ in range(10)] == [None] * 10 and asked == ["tenant:a"]
    clock.tick(COOL_S)
    assert since() == Epochs(0, 1)
    catalog.bump("tenant:a")
    assert since() == Epochs(1, 1)
