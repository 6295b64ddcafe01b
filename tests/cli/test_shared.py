"""Two homes that share a catalog and a tier, as two machines do: what one has built, the other
asks, without the documents and without reading them again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import preread
from tests.servers import s3_server
from tests.store.valkey import Valkey, running


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server("bucket") as endpoint:
        yield endpoint


@pytest.fixture(params=["redis", "redis and s3", "s3"])
def shared(request: pytest.FixtureRequest, valkey: Valkey, endpoint: str) -> dict[str, str]:
    """The settings that both homes have in common."""
    valkey.command("FLUSHALL")
    slow = "deadline=20s"  # two cores, several processes
    place = request.node.name.replace("[", "-").replace("]", "").replace(" ", "-")
    s3 = f"s3://id:secret@bucket/{place}?endpoint={endpoint}&{slow}"
    redis = f"{valkey.url}?{slow}"
    catalog = s3 if request.param == "s3" else redis
    tiers = redis if request.param == "redis" else s3
    return {"PREREAD_STORE_CATALOG": catalog, "PREREAD_STORE_TIERS": tiers}


def told(*arguments: str | Path, **env: str) -> dict[str, Any]:
    """The object a command printed in a process of its own."""
    done = preread(*arguments, "--json", **env)
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@pytest.mark.slow
def test_a_machine_that_did_not_build_it_answers(
    shared: dict[str, str], tiny: Path, docs: Path, tmp_path: Path
) -> None:
    common = shared | {"PREREAD_MODEL_MODEL": str(tiny), "PREREAD_CONTEXT_MAX_TOKENS": "8"}
    here = common | {"PREREAD_HOME": str(tmp_path / "here")}
    there = common | {"PREREAD_HOME": str(tmp_path / "there")}
    built = told("build", "handbook", docs, **here)
    assert built["computed_tokens"] == built["tokens"] > 0
    want = told("ask", "handbook", "How many days?", **here)
    shutil.rmtree(docs)
    got = told("ask", "handbook", "How many days?", **there)
    assert got["answer"] == want["answer"]
    assert got["usage"]["cached_tokens"] == want["usage"]["cached_tokens"] > built["tokens"] - 64
    assert got["timing"]["load_ms"] > 0
    assert sum(row["tokens"] for row in got["brought"]["tiers"]) == built["tokens"]
    (listed,) = told("list", **there)["contexts"]
    assert (listed["name"], listed["version"], listed["tokens"]) == ("handbook", 1, built["tokens"])
    assert not (tmp_path / "there" / "kv").exists()
    assert not (tmp_path / "there" / "catalog.sqlite").exists()


def test_commands_without_a_model_work_from_anywhere(
    shared: dict[str, str], tiny: Path, docs: Path, tmp_path: Path
) -> None:
    common = shared | {"PREREAD_MODEL_MODEL": str(tiny)}
    here = common | {"PREREAD_HOME": str(tmp_path / "here")}
    there = common | {"PREREAD_HOME": str(tmp_path / "there")}
    told("build", "handbook", docs, **here)
    told("invalidate", "handbook", "--reason", "recall", **there)
    shown = told("show", "handbook", **here)
    assert shown["state"] == {"label": "invalidated", "reason": "recall"}
    verified = told("verify", **there)
    assert verified["ok"] == verified["checked"] > 0
    assert told("gc", "--grace", "0", **there)["removed"] == verified["checked"]
    assert told("rm", "handbook", **there)["versions_removed"] == 1
    assert told("list", **here)["contexts"] == []
