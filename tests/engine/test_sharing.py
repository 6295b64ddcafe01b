"""Of the processes that want a prefix at once, one computes it. Processes are backends with an
engine, a store and an owner of their own on one disk; and, at the end, real ones."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preread.contexts.claims.files import FileClaims
from preread.engine import sharing
from preread.engine.caller import Caller
from preread.engine.local import LocalBackend
from preread.engine.sharing import Sharing
from preread.errors import Cancelled, HomeError
from preread.metrics import Metrics
from preread.models.load import LoadedModel, load_model
from preread.store.claims import Claims
from preread.store.tiers.disk import DiskTier
from preread.testing.models import write_tiny_model
from tests.engine.helpers import Gated
from tests.engine.test_local import CONFIG, store_of

TOKENS = np.random.default_rng(5).integers(1, 250, 640).astype(np.int32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = write_tiny_model(tmp_path_factory.mktemp("sharing") / "tiny", "qwen3")
    return load_model(str(folder), dtype="float32", device="cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LOOK_S", 0.02)
    monkeypatch.setattr("preread.engine.build.LOOK_S", 0.02)


class Host:
    """A process, as far as the others can tell."""

    def __init__(self, model: LoadedModel, place: Path, claims: Claims | None = None) -> None:
        self.gate = Gated(model.decoder)
        gated = replace(model, decoder=self.gate)
        self.claims = claims or FileClaims(place / "claims")
        # Computing so small a model is quicker than loading what it computed.
        store = store_of(model, DiskTier(place / "kv"), always=True)
        self.backend = LocalBackend(gated, store, CONFIG, claims=self.claims)

    def count(self, name: str) -> float:
        return self.backend.metrics.snapshot().get(name, 0)

    def waits(self) -> None:
        """Return when it has looked in vain."""
        until(lambda: self.count("engine.waits_for_others") > 1)

    def close(self) -> None:
        self.gate.open()
        asyncio.run(self.backend.close())


def until(true) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


class Stubborn:
    """Somebody else always has it, until they die."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def take(self, key: str, ttl_s: float) -> bool:
        return self.free.is_set()

    def drop(self, key: str) -> None: ...


class Gone(Stubborn):
    def take(self, key: str, ttl_s: float) -> bool:
        raise HomeError("The server is gone.")


def test_one_computes_and_the_others_load(model, tmp_path):
    hosts = [Host(model, tmp_path) for _ in range(4)]
    try:
        with ThreadPoolExecutor(len(hosts)) as pool:
            first = pool.submit(hosts[0].backend.prefill, TOKENS)
            hosts[0].gate.held.acquire()  # it computes
            rest = [pool.submit(host.backend.prefill, TOKENS) for host in hosts[1:]]
            for host in hosts[1:]:
                host.waits()
            hosts[0].gate.open()
            built = [future.result(60) for future in (first, *rest)]
        assert [b.computed_tokens for b in built] == [len(TOKENS), 0, 0, 0]
        assert [b.loaded_tokens for b in built] == [0, *[len(TOKENS)] * 3]
        assert not list((tmp_path / "claims").iterdir())
        assert not any(t.name == "preread-claim" for t in threading.enumerate())
    finally:
        for host in hosts:
            host.close()


def test_who_dies_leaves_it_to_the_others(model, tmp_path):
    """What the dead one had kept is loaded; the rest is computed."""
    claims = Stubborn()
    host, dead = Host(model, tmp_path, claims), Host(model, tmp_path)
    try:
        with ThreadPoolExecutor(1) as pool:
            built = pool.submit(host.backend.prefill, TOKENS)
            host.waits()
            dead.gate.open()
            dead.backend.prefill(TOKENS[:320])  # as far as it came
            until(lambda: host.count("engine.prefix_loaded_tokens") == 320)
            host.gate.open()
            claims.free.set()
            report = built.result(60)
        assert (report.loaded_tokens, report.computed_tokens) == (320, 320)
    finally:
        host.close()
        dead.close()


def test_patience_ends(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "LEAST_WAIT_S", 0.2)
    host = Host(model, tmp_path, Stubborn())
    host.gate.open()
    try:
        assert host.backend.prefill(TOKENS).computed_tokens == len(TOKENS)
        assert host.count("engine.waits_given_up") == 1
    finally:
        host.close()


def test_nobody_waits_for_a_medium_that_cannot_be_asked(model, tmp_path, caplog):
    host = Host(model, tmp_path, Gone())
    host.gate.open()
    try:
        assert host.backend.prefill(TOKENS).computed_tokens == len(TOKENS)
        assert host.count("engine.waits_for_others") == 0
        assert "The server is gone" in caplog.text
    finally:
        host.close()


def test_nobody_waits_while_the_epochs_are_not_known(model, tmp_path):
    """Then nothing is kept that others could load, and the prefix has no keys."""
    store = store_of(model, DiskTier(tmp_path / "kv"), epochs=lambda: None)
    backend = LocalBackend(model, store, CONFIG, claims=FileClaims(tmp_path / "claims"))
    try:
        built = backend.prefill(TOKENS)
        assert (built.computed_tokens, built.stored) == (len(TOKENS), False)
    finally:
        asyncio.run(backend.close())


def test_who_leaves_while_waiting_holds_nothing(model, tmp_path):
    host = Host(model, tmp_path, Stubborn())
    caller = Caller()
    try:
        with ThreadPoolExecutor(1) as pool:
            wanted = pool.submit(host.backend._builder.build, TOKENS, 0.0, caller)
            host.waits()
            caller.leave()
            with pytest.raises(Cancelled):
                wanted.result(60)
        host.backend._thread.call(lambda engine: engine.check())
        assert host.backend._thread.call(lambda engine: engine.idle)
    finally:
        host.close()


def test_a_claim_is_taken_only_where_it_pays(model, tmp_path):
    store, claims = store_of(model), FileClaims(tmp_path)
    share = Sharing(store, claims, Metrics())
    assert share.turn(TOKENS, len(TOKENS)) is None  # nothing is missing
    assert Sharing(store, None, Metrics()).turn(TOKENS, 0) is None
    assert share.turn(TOKENS, 0) is not None  # nobody knows how long it takes
    for start in range(0, 640, 64):
        store.computed(start, start + 64, 1e-3)
    assert share.turn(TOKENS, 0) is None  # 10 ms


@pytest.mark.slow
def test_processes_that_start_cold_at_once(model, tmp_path):
    """Whatever their order: right answers, and never more than one reading at a time."""
    command = [sys.executable, "-m", "tests.engine.cold_start", str(model.folder), str(tmp_path)]
    root = Path(__file__).parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    running = [
        subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(20)
    ]
    said = [json.loads(process.communicate(timeout=240)[0]) for process in running]
    assert all(process.returncode == 0 for process in running)
    assert len({json.dumps(one["tokens"]) for one in said}) == 1
    assert sum(one["computed"] for one in said) == said[0]["prefix"]


def test_a_claim_that_no_thread_can_renew_is_a_claim(monkeypatch: pytest.MonkeyPatch):
    """As where a container may have no more threads: it runs out by itself."""

    class Free:
        def take(self, key: str, ttl_s: float) -> bool:
            return True

        def drop(self, key: str) -> None:
            raise AssertionError("it may be another's by now")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    turn = sharing.Turn(Free(), "key", Metrics(), 1.0)
    assert turn.ours()
    turn.leave()
