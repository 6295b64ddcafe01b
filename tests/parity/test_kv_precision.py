"""KV in eight bits: law 1 with the same rounding on both sides, law 2 between precisions, and what
the rounding changes, measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import preread
from preread.app.compose import check_agreement, check_parity
from preread.engine.engine import Engine
from preread.engine.parity import forward, observe, parity, wider
from preread.errors import ConfigError
from preread.kernels.kv import FORMATS
from preread.models.agreement import measure
from preread.models.load import load_model
from preread.testing.models import load_decoder
from preread.tokens.batch import ChooseSpec, LikelihoodSpec
from preread.tokens.labels import label_trie
from tests.engine.helpers import SMALL, batch, drain, greedy, run
from tests.foreign.made import write_foreign_model
from tests.parity.conftest import FAMILIES
from tests.parity.tools import CONFIG

KNOB = "PREREAD_MODEL_KV_PRECISION"
TOKENS = np.arange(300, dtype=np.int32) % 250


@pytest.fixture
def int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KNOB, "int8")


def texts(seed: int, *sizes: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 320, n).tolist() for n in sizes]


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gathered", [True, False])
def test_every_road_reads_the_same_rounded_kv(
    folders: dict[str, Path], family: str, precision: str, gathered: bool
) -> None:
    """In float64, where nothing else rounds: prefixes read in chunks, nested, resident; own rows in
    one step or several, decoded, gathered, preempted. Equal to one pass over rounded KV."""
    decoder = load_decoder(folders[family], "float64")
    section = replace(SMALL, batch_tokens=40, shared_min_rows=9 if gathered else 1)
    plan = replace(Engine(decoder, section).plan, pages=30)
    engine = Engine(decoder, section, kv_precision=precision, plan=plan)
    head, *own = texts(1, 100, 3, 60, 1, 17, 30)
    prefixes = [head, head[:50] + texts(2, 20)[0], texts(3, 30)[0]]
    of = [0, 1, 2, 0, -1]
    for _ in ("cold", "resident"):
        seen = observe(engine, batch(own, greedy(12), prefixes=prefixes, prefix_of=of))
        for row in seen:
            want = forward(decoder, row.tokens, len(row.logits), precision)
            plain = forward(decoder, row.tokens, len(row.logits))
            torch.testing.assert_close(row.logits, want, atol=1e-5, rtol=1e-5)
            assert (row.logits - plain).abs().max() > 1e-4, "nothing was rounded"
    assert engine.metrics.snapshot()["engine.preempted"]


@pytest.mark.parametrize("precision", FORMATS)
def test_labels_and_likelihoods_see_rounded_kv(folders: dict[str, Path], precision: str) -> None:
    """Cached, in one pass with its prompt, and with everything recomputed in one batch."""
    decoder = load_decoder(folders["qwen3"], "float64")
    head, *own = texts(4, 90, 5, 20, 40)
    labels = ChooseSpec(label_trie([[5, 6, 7], [5, 9], [8]]))
    counts = LikelihoodSpec(np.full(3, 4, np.int32))
    for spec in (labels, counts):
        engine = Engine(decoder, SMALL, kv_precision=precision)
        warm = batch(own, spec, prefixes=[head])
        run(engine, warm)
        (cached,) = run(engine, warm)
        whole = Engine(decoder, SMALL, kv_precision=precision)
        (cold,) = run(whole, batch([head + o for o in own], spec, reuse=False))
        for row in range(3):
            np.testing.assert_allclose(cached.scores[row], cold.scores[row], atol=1e-6)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_law_1_holds(folders: dict[str, Path], home: Path, dtype: str, precision: str) -> None:
    model = load_model(
        str(folders["llama3"]), dtype=dtype, device="cpu", kv_precision=precision, home=home
    )
    engine = Engine(model.decoder, CONFIG, kv_precision=model.kv_precision)
    report = parity(engine, wider(model), prompts=12)
    print(report)
    assert report.ok, report
    assert report.exempt < report.steps


@pytest.mark.parametrize("precision", FORMATS)
def test_a_kept_turn_is_not_rounded_again(folders: dict[str, Path], precision: str) -> None:
    decoder = load_decoder(folders["qwen2"], "bfloat16")
    head, own = texts(5, 40, 30)
    kept = []
    for keep in (True, False):
        engine = Engine(decoder, SMALL, kv_precision=precision)
        (first,) = run(engine, batch([own], greedy(6), prefixes=[head], keep=keep))
        turn = own + first.tokens[0][:-1]
        reading = engine.hold(np.array(head + turn, np.int32))
        engine.read(reading)
        drain(engine)
        slots = [s for slot, n in reading.runs for s in range(slot, slot + n)]
        kept.append(engine.arena.kv.select(torch.tensor(slots))[:, :, :, : len(head)])
        assert reading.cached == (len(head + turn) if keep else len(head))
    assert torch.equal(*kept)


def test_what_is_stored_comes_back_as_it_was_and_to_its_own_precision_alone(
    folders: dict[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for precision in ("full", *FORMATS):
        monkeypatch.setenv(KNOB, precision)
        arenas = []
        for stored in (False, True):
            with preread.open(str(folders["qwen3"]), dtype="bfloat16", device="cpu") as engine:
                made = engine.prefill(TOKENS)
                assert (made.loaded_tokens > 250) == stored
                backend = engine._parts.backend
                kv = backend._builder._arena.kv
                arenas.append(kv.select(slice(0, 300)).clone())
                assert engine.info.kv_bytes_per_token == kv.shape.token_bytes
            found.setdefault(precision, (engine.info.fingerprint, *made.chunk_keys))
        loaded = made.loaded_tokens
        assert torch.equal(arenas[0][:, :, :, :loaded], arenas[1][:, :, :, :loaded])
    assert len(set().union(*found.values())) == sum(map(len, found.values()))


def test_the_knob_as_it_was_changes_no_fingerprint(folders: dict[str, Path]) -> None:
    parts = load_model(str(folders["qwen3"]), dtype="float32", device="cpu").fingerprint_parts
    assert not any("precision" in name for name in parts)


@pytest.mark.usefixtures("int8", "home")
def test_the_check_of_law_1_takes_the_configured_precision(folders: dict[str, Path]) -> None:
    assert check_parity(str(folders["qwen3"]), prompts=8).uncached_error > 1e-4


@pytest.mark.usefixtures("int8", "home")
def test_agreement_is_measured(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The warranty ends after two years. " * 4
    found = check_agreement(str(folders["llama2"]), text)
    assert found is not None and found.tokens > 100 and "int8 KV against full" in str(found)
    assert 0.5 < found.equal / found.tokens <= 1 and 0 < found.divergence < 0.1
    monkeypatch.setenv("PREREAD_MODEL_WEIGHTS_PRECISION", "int8")
    monkeypatch.setenv("PREREAD_MODEL_DEVICE", "cpu")
    both = check_agreement(str(folders["llama2"]), text)
    assert both is not None and both.what == "int8 weights and int8 KV"


def test_agreement_of_kv_alone_needs_no_other_weights(folders: dict[str, Path]) -> None:
    model = load_model(str(folders["llama2"]), weights="random", device="cpu", kv_precision="fp8")
    assert measure(model, "a text of some letters").what == "fp8 KV"


def test_what_cannot_be_is_told(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="int4") as found:
        load_model(str(folders["llama2"]), kv_precision="int4")
    assert "full, int8, fp8" in str(found.value.hint)


@pytest.mark.usefixtures("int8", "home")
def test_a_model_of_transformers_says_that_it_cannot(tmp_path: Path) -> None:
    folder = write_foreign_model(tmp_path / "m", "mistral")
    with pytest.raises(ConfigError, match=r"kv_precision.*own decoder.*sliding_window"):
        preread.open(str(folder), dtype="float32")
