"""The parts of an engine's store that ask the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preread.app.storing import COOL_S, Since, open_stores
from preread.config import load_config
from preread.contexts.catalog.scopes import model_scope
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.errors import HomeError
from preread.metrics import Metrics
from preread.store.keys import Epochs, Geometry, fingerprint
from preread.testing.conformance_tier import Clock


def test_epochs_of_a_catalog_that_hangs_are_asked_for_once_a_second(tmp_path: Path) -> None:
    asked: list[str] = []

    class Away(SqliteCatalog):
        def epochs(self, scopes: Sequence[str]) -> list[int]:
            asked.append(scopes[0])
            if len(asked) == 1:
                raise HomeError("no answer within 2 s.", hint="Start it.")
            return super().epochs(scopes)

    clock, catalog = Clock(), Away(tmp_path / "catalog.sqlite")
    catalog.bump("model:f0")
    since = Since(catalog, ("tenant:a", "model:f0@tenant:a", "model:f0"), clock)
    assert [since() for _ in range(10)] == [None] * 10 and asked == ["tenant:a"]
    clock.tick(COOL_S)
    assert since() == Epochs(0, 1)
    catalog.bump("tenant:a")
    assert since() == Epochs(1, 1)
    catalog.bump("model:f0@tenant:a")
    assert since() == Epochs(1, 2)


def test_a_model_is_erased_whole(tmp_path: Path) -> None:
    """Also where it keeps its KV under several fingerprints."""
    catalog = SqliteCatalog(tmp_path / "catalog.sqlite")
    kinds = [fingerprint({"regime": n}) for n in range(3)]
    geometry = Geometry(1, 1, 8, "float32")
    stores = open_stores(load_config(tmp_path), geometry, kinds, catalog, Metrics(), "cpu")
    before = [store.keys(range(300)) for store in stores]
    catalog.bump(model_scope(kinds[0]))
    after = [store.keys(range(300)) for store in stores]
    assert len({*sum(before + after, ())}) == 2 * len(kinds) * len(before[0]) > 0
