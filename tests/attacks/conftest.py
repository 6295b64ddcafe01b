from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.tools import Den, recorded


@pytest.fixture
def den(tmp_path: Path) -> Den:
    return Den(tmp_path / "kv")


@pytest.fixture
def log() -> Iterator[list[logging.LogRecord]]:
    with recorded("preread.store") as records:
        yield records
