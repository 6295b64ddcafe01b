"""Models of foreign families, written once per session, loaded once per precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from preread.foreign.load import ForeignModel, load_foreign
from tests.foreign.made import write_foreign_model

Folder = Callable[[str], Path]
Load = Callable[..., ForeignModel]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("foreign")
    return cache(lambda family: write_foreign_model(root / family, family))


@pytest.fixture(scope="session")
def load(folder: Folder) -> Load:
    return cache(
        lambda family, dtype="float32": load_foreign(str(folder(family)), dtype=dtype, device="cpu")
    )
