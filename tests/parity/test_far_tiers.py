"""Laws 1 and 2 through the tiers that other machines share, plain and sealed: what comes back is
what was read, and what was changed on the way is no part of an answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from preread.backend import RequestBatch
from preread.contexts.rows import collect
from preread.engine.local import LocalBackend
from preread.metrics import Metrics
from preread.models.load import LoadedModel, load_model
from preread.store.keys import Geometry, fingerprint
from preread.store.seal import Keyring
from preread.store.store import Store
from preread.store.tiers.base import Tier
from preread.store.tiers.object import open_object
from preread.store.tiers.redis import open_redis
from preread.store.tiers.urls import parse_tiers
from preread.testing.questions import BOOK, QUESTIONS, SHORT
from tests.parity.tools import CONFIG
from tests.servers import s3_server
from tests.store.valkey import cluster, running

Open = Callable[[], Tier]
KEYS = {"plain": None, "sealed": Keyring((bytes(range(32)),))}


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> LoadedModel:
    return load_model(str(folders["qwen3"]), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def truth(model: LoadedModel) -> Callable[[], object]:
    async def computed() -> list[list[int]]:
        return await answers(LocalBackend(model, None, CONFIG), reuse=False)

    return computed


@pytest.fixture(scope="module", params=["redis", "redis list", "redis cluster", "folder", "s3"])
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Open]:
    """Opens the same place again each time."""
    folder = tmp_path_factory.mktemp("far")
    with ExitStack() as stack:
        if request.param == "folder":
            text = f"file://{folder}/kv?window=4"
        elif request.param == "s3":
            endpoint = stack.enter_context(s3_server("bucket"))
            text = f"s3://id:secret@bucket/{uuid4().hex}?endpoint={endpoint}&deadline=20s"
        elif request.param == "redis cluster":
            node = stack.enter_context(cluster(folder))[0]
            text = f"redis+cluster://127.0.0.1:{node.port}?deadline=20s"
        else:
            count = 3 if request.param == "redis list" else 1
            servers = [stack.enter_context(running(folder / str(n))) for n in range(count)]
            hosts = ";".join(f"127.0.0.1:{server.port}" for server in servers)
            text = f"redis://{hosts}?deadline=20s"
        (url,) = parse_tiers(text)
        yield partial(open_redis if "redis" in url.scheme else open_object, url)


def store(model: LoadedModel, tier: Tier, keyring: Keyring | None, metrics: Metrics) -> Store:
    config = model.config
    geometry = Geometry(config.layers, config.kv_heads, config.head_dim, model.dtype, 64, 40_000)
    identity = fingerprint(model.fingerprint_parts)
    return Store([tier], geometry, identity, metrics=metrics, keyring=keyring, always=True)


async def answers(backend: LocalBackend, *, reuse: bool = True) -> list[list[int]]:
    """And the end of the backend."""
    batch = RequestBatch(SHORT, list(QUESTIONS), (BOOK,), reuse=reuse)
    rows = await collect(backend, batch)
    await backend.close()
    return [row.tokens for row in rows]


@pytest.mark.parametrize("keys", KEYS)
async def test_what_comes_back_is_what_was_read(model, truth, opened: Open, keys: str):
    keyring, metrics = KEYS[keys], Metrics()
    opened().remove([entry.key for entry in opened().scan()])
    first = LocalBackend(model, store(model, opened(), keyring, metrics), CONFIG)
    built = await first.build(BOOK)
    assert built.stored and built.computed_tokens == built.tokens
    here = await answers(first)
    second = LocalBackend(model, store(model, opened(), keyring, metrics), CONFIG)
    loaded = await second.build(BOOK)
    assert (loaded.loaded_tokens, loaded.computed_tokens) == (built.tokens, 0)
    assert await answers(second) == here == await truth()
    assert not [name for name in metrics.snapshot() if "fault" in name or "errors" in name]


@pytest.mark.parametrize("keys", KEYS)
async def test_what_was_changed_on_the_way_is_read_again(model, truth, opened: Open, keys: str):
    keyring, metrics, want = KEYS[keys], Metrics(), await truth()
    opened().remove([entry.key for entry in opened().scan()])
    first = LocalBackend(model, store(model, opened(), keyring, metrics), CONFIG)
    await first.build(BOOK)
    await first.close()
    rng, tier = random.Random(keys), opened()
    held = [entry.key for entry in tier.scan()]
    values = list(tier.read(held))
    swapped = values[1:] + values[:1]
    for kind in ("flipped", "cut", "swapped", "emptied"):
        for key, value, other in zip(held, values, swapped, strict=True):
            assert isinstance(value, memoryview) and isinstance(other, memoryview)
            data = bytearray(other if kind == "swapped" else value)
            if kind == "flipped":
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            elif kind in ("cut", "emptied"):
                del data[rng.randrange(len(data)) if kind == "cut" else 0 :]
            assert tier.write(key, [data])
        again = Metrics()
        backend = LocalBackend(model, store(model, opened(), keyring, again), CONFIG)
        built = await backend.build(BOOK)
        assert built.loaded_tokens == 0 and built.stored  # and so mended
        assert await answers(backend) == want
        faults = sum(n for name, n in again.snapshot().items() if name.startswith("store.fault."))
        assert faults == len(held), kind
    last = LocalBackend(model, store(model, opened(), keyring, Metrics()), CONFIG)
    assert (await last.build(BOOK)).computed_tokens == 0
    assert await answers(last) == want
