from __future__ import annotations

import pytest

from preread.engine.engine import Engine
from preread.models.decoder import PackedDecoder
from preread.testing.models import load_decoder, write_tiny_model
from tests.engine.helpers import SMALL


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> PackedDecoder:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny") / "m", "qwen3", seed=0)
    return load_decoder(folder)


@pytest.fixture
def engine(decoder: PackedDecoder) -> Engine:
    return Engine(decoder, SMALL)
