"""Law 1 through every kind of tier, alone and in a list: what one engine kept another answers from,
plain and sealed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from preread.backend import RequestBatch
from preread.config import Config
from preread.contexts.rows import collect
from preread.engine.local import LocalBackend
from preread.home import open_tiers
from preread.models.load import LoadedModel, load_model
from preread.store.keys import Geometry, fingerprint
from preread.store.saving import Manner
from preread.store.seal import Keyring
from preread.store.store import Store
from preread.store.tiers.base import Tier
from preread.testing.questions import BOOK, QUESTIONS, SHORT
from preread.types import Fingerprint
from tests.parity.test_processes import truth
from tests.parity.tools import CONFIG
from tests.store.valkey import Valkey

SEAL = Keyring.parse(sha256(b"a test").hexdigest(), "a test")


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> LoadedModel:
    return load_model(str(folders["qwen3"]), dtype="float32", device="cpu")


def identity(model: LoadedModel) -> tuple[Geometry, Fingerprint]:
    shape = model.config
    geometry = Geometry(shape.layers, shape.kv_heads, shape.head_dim, model.dtype, 64, 40_000)
    return geometry, fingerprint(model.fingerprint_parts)


@contextmanager
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(
            Bucket="kept"
        )
        yield f"s3://kept/x?endpoint={endpoint.replace(':', '%3A')}&region=us-east-1&http=1"
    finally:
        server.stop()


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    server = Valkey(folder)
    try:
        yield f"{server.url}?deadline=10s"
    finally:
        server.kill()


@pytest.fixture(params=["ram", "disk", "redis", "s3", "file", "all"])
def tiers(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Tier]]:
    def opened(text: str) -> list[Tier]:
        config = Config(home=tmp_path / "home")
        return open_tiers(replace(config, store=replace(config.store, tiers=text)))

    file = f"file://{tmp_path / 'objects'}"
    kind: str = request.param
    if kind == "redis":
        with valkey(tmp_path / "valkey") as url:
            yield opened(url)
    elif kind == "s3":
        with bucket(monkeypatch) as url:
            yield opened(url)
    elif kind == "all":
        with valkey(tmp_path / "valkey") as url:
            yield opened(f"ram:100kB,disk,{url},{file}")
    else:
        yield opened({"ram": "ram:1GB", "disk": "disk?window=2", "file": file}[kind])


@pytest.mark.parametrize("keyring", [None, SEAL], ids=["plain", "sealed"])
async def test_cached_equals_uncached_through_every_tier(model, tiers, keyring):
    manners = {tier.name: Manner(behind=tier.name not in ("ram", "disk")) for tier in tiers}

    def backend() -> LocalBackend:
        store = Store(tiers, *identity(model), keyring=keyring, manners=manners, always=True)
        return LocalBackend(model, store, CONFIG)

    want = await truth(model)
    first = backend()
    built = await first.build(BOOK)
    assert built.stored == (tiers[0].name != "ram" or len(tiers) == 1) and built.brought.tokens == 0
    assert built.brought.miss == "never_stored"
    await first.close()  # what is written behind is written
    for _ in range(2):
        again = backend()
        rows = await collect(again, RequestBatch(SHORT, list(QUESTIONS), (BOOK,)))
        built = await again.build(BOOK)
        await again.close()
        assert [row.tokens for row in rows] == want
        assert rows[0].timing.load_ms > 0 and built.computed_tokens == 0


async def test_each_tier_says_what_it_gave_and_near_ones_get_it(model, tmp_path):
    """Near holds the beginning, far all of it; then near holds all."""
    config = Config(home=tmp_path)
    text = f"disk,file://{tmp_path / 'objects'}"
    near, far = open_tiers(replace(config, store=replace(config.store, tiers=text)))

    def backend() -> LocalBackend:
        return LocalBackend(model, Store([near, far], *identity(model), always=True), CONFIG)

    first = backend()
    built = await first.build(BOOK)
    await first.close()
    gone = [bytes.fromhex(key) for key in built.chunk_keys[-6:]]
    assert near.remove(gone) == 6
    for step in range(2):
        again = backend()
        built = await again.build(BOOK)
        await again.close()
        names = [row.tier for row in built.brought.served]
        assert names == (["disk"] if step else ["disk", "file"])
        assert sum(row.tokens for row in built.brought.served) == built.tokens
        assert built.brought.tokens == built.loaded_tokens == built.tokens
        assert built.brought.ms >= sum(row.ms for row in built.brought.served) > 0
