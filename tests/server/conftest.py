"""A real server on a free port, in front of a tiny random model."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

import preread
from preread.app.serving import serve
from preread.config import ServerSection
from preread.testing.models import write_tiny_model

ANY = ServerSection(port=0, name="tiny")


class Served(NamedTuple):
    engine: preread.Engine
    url: str

    def client(self, key: str = "any") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=120)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self._sent(urllib.request.Request(self.url + path, data, sent))

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self._sent(urllib.request.Request(self.url + path, headers=headers))

    def _sent(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                status, data, kind = response.status, response.read(), response.headers
        except urllib.error.HTTPError as exc:
            with exc:
                status, data, kind = exc.code, exc.read(), exc.headers
        return status, json.loads(data) if "json" in kind["Content-Type"] else data.decode()


@contextmanager
def serving(engine: preread.Engine, section: ServerSection = ANY) -> Iterator[Served]:
    with serve(engine, section) as url:
        yield Served(engine, url)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "m", "qwen3", seed=1)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "leave.md").write_text("# Leave\n\nStaff get 25 days of leave.\nAsk Ann.\n" * 6)
    (folder / "travel.md").write_text("# Travel\n\nTrains before planes.\n")
    return folder


@pytest.fixture
def engine(tiny: Path, home: Path) -> Iterator[preread.Engine]:
    with preread.open(str(tiny), dtype="float32") as made:
        yield made


@pytest.fixture
def served(engine: preread.Engine) -> Iterator[Served]:
    with serving(engine) as server:
        yield server


@pytest.fixture
def handbook(engine: preread.Engine, docs: Path) -> preread.Context:
    return engine.context("handbook", docs)
