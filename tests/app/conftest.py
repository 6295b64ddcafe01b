from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import preread
from preread.testing.models import write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "m", "qwen3")


@pytest.fixture
def engine(folder: Path) -> Iterator[preread.Engine]:
    with preread.open(str(folder), dtype="float32") as made:
        yield made
