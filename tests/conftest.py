"""Every test gets a home of its own, so that none can touch the user's."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    monkeypatch.setenv("PREREAD_HOME", str(path))
    # A tiny model computes about as fast as a disk reads: which it was must not hang on chance.
    monkeypatch.setenv("PREREAD_STORE_LOAD", "always")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """CUDA tests skip without a GPU; torch is imported only if some were collected."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
