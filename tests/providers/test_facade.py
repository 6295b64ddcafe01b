"""Contexts over somebody else's server: named here, read there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import preread
from preread.app.compose import open_backend
from preread.errors import ConfigError
from preread.testing.provider import Profile, Provider


@contextmanager
def served(**profile: object) -> Iterator[Provider]:
    """A provider in a thread of its own."""
    server, loop = Provider(Profile(**profile)), asyncio.new_event_loop()  # type: ignore[arg-type]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_context_over_a_server(tmp_path, monkeypatch, how):
    book = tmp_path / "shop.md"
    book.write_text("# Shop\nopening time: 9 sharp\nowner of the shop: Ann Lee\n" * 3)
    with served(server="vllm", limit=4096, min_prefix=16, block=16) as server:
        spec = f"openai:{server.url}"
        if how == "environment":
            monkeypatch.setenv("PREREAD_MODEL_BACKEND", spec)
        given = {"backend": spec} if how == "argument" else {}
        with preread.open(home=tmp_path / "home", **given) as engine:
            assert engine.info.name == "openai" and engine.parameters == 0
            assert "are sent there" in engine.notes[0]
            shop = engine.context("shop", book)
            answer = shop.ask("Who is the owner?")
            assert "Ann Lee" in answer.text
            assert answer.usage.cached_tokens >= answer.usage.context_tokens - 32 > 0
            likely = shop.choose("Is it open?", ["yes", "no"])
            assert set(likely.probabilities) == {"yes", "no"}
        with preread.open(home=tmp_path / "home", **given) as engine:
            assert "Ann Lee" in engine.context("shop").ask("Who is the owner?").text


def test_a_backend_alone(tmp_path):
    with served(server="vllm") as server:
        assert open_backend(f"openai:{server.url}", home=tmp_path).info.model == "simulated"


def test_an_unknown_backend_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"docs/backends\.md"):
        preread.open(home=tmp_path, backend="opnai:http://x")
