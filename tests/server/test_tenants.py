"""Tenants of one server: each has its own names, its own memory and its own counts; who is who
comes from the key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import preread
from preread.config import ServerSection
from preread.errors import ConfigError

from .conftest import Served, serving

RED, BLUE, OURS = "r" * 32, "b" * 32, "o" * 32
CHAT = "/chat/completions"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys.txt"
    path.write_text(f"red:{RED}\nblue:{BLUE}\n{OURS}\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def three(engine: preread.Engine, keys: str) -> Iterator[Served]:
    with serving(engine, ServerSection(port=0, name="tiny", keys_file=keys)) as served:
        yield served


def build(tiny: Path, tenant: str, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that tenant's own process does."""
    monkeypatch.setenv("PREREAD_STORE_TENANT", tenant)
    with preread.open(str(tiny), dtype="float32") as engine:
        engine.build("handbook", docs)
    monkeypatch.delenv("PREREAD_STORE_TENANT")


def ask(served: Served, key: str, **fields: Any) -> tuple[int, Any]:
    turn = {"role": "user", "content": "How much leave?"}
    body = {"model": "handbook", "messages": [turn], "max_tokens": 6, **fields}
    return served.post(CHAT, body, **bearer(key))


def test_names_are_a_tenants_own(
    three: Served, tiny: Path, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tiny, "red", docs / "leave.md", monkeypatch)
    status, told = ask(three, RED)
    assert status == 200 and told["preread"]["context"]["name"] == "handbook"
    for key in (BLUE, OURS):
        assert [m["id"] for m in three.get("/models", **bearer(key))[1]["data"]] == ["tiny"]
        status, told = ask(three, key)
        assert status == 404 and "close" not in told["error"]["message"]
    build(tiny, "blue", docs / "travel.md", monkeypatch)
    tokens = []
    for key in (RED, BLUE):
        models = three.get("/models", **bearer(key))[1]["data"]
        tokens += [m["context"]["tokens"] for m in models if m["id"] == "handbook"]
        assert ask(three, key)[0] == 200
    assert len(set(tokens)) == 2


def test_a_hit_tells_nothing_of_another_tenant(three: Served) -> None:
    text = "The vault opens at nine. " * 40
    turns = [{"role": "system", "content": text}, {"role": "user", "content": "When?"}]
    cached: dict[str, list[int]] = {}
    for key in (RED, BLUE, OURS, RED, BLUE, OURS):
        status, told = ask(three, key, model="tiny", messages=turns)
        assert status == 200
        details = told["usage"]["prompt_tokens_details"]
        cached.setdefault(key, []).append(details["cached_tokens"])
    assert all(first == 0 < second for first, second in cached.values())


def test_a_caller_cannot_say_who_it_is(three: Served) -> None:
    for field in ("tenant", "store"):
        status, told = ask(three, BLUE, model="tiny", **{field: "red"})
        assert status == 400 and told["error"]["param"] == field
    assert ask(three, BLUE, model="tiny", user="red")[0] == 200
    assert ask(three, BLUE, model="red@handbook")[0] == 404


def test_counts_are_a_tenants_own(three: Served) -> None:
    assert ask(three, RED, model="tiny")[0] == 200
    root = Served(three.engine, three.url.removesuffix("/v1"))
    red, blue = (root.get("/metrics", **bearer(key))[1] for key in (RED, BLUE))
    assert "preread_server_requests_total 1.0" in red
    assert "preread_server_requests_total" not in blue


def test_answers_are_the_same_for_all(three: Served) -> None:
    """The same weights: law 1 across engines."""
    said = {ask(three, key, model="tiny")[1]["choices"][0]["message"]["content"]
            for key in (RED, BLUE, OURS)}  # fmt: skip
    assert len(said) == 1


def test_a_model_that_cannot_be_shared_says_so(engine: preread.Engine, keys: str) -> None:
    from dataclasses import replace

    engine._parts = replace(engine._parts, loaded=None)
    with (
        pytest.raises(ConfigError, match="a process for each tenant"),
        serving(engine, ServerSection(port=0, keys_file=keys)),
    ):
        raise AssertionError("it listens")


def test_a_shared_namespace_is_not_opened_to_other_keys(
    tiny: Path, home: Path, keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has a key has not said that it shares anything."""
    monkeypatch.setenv("PREREAD_STORE_SHARED", "team")
    with (
        preread.open(str(tiny), dtype="float32") as engine,
        pytest.raises(ConfigError, match=r"store\.shared"),
        serving(engine, ServerSection(port=0, keys_file=keys)),
    ):
        raise AssertionError("it listens")
