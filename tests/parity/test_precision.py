"""Weights in eight bits: law 1 against the rounded weights, law 2 between precisions, and what the
rounding itself changes, measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import preread
from preread.app.compose import check_agreement, check_parity
from preread.engine.engine import Engine
from preread.engine.parity import forward as judged
from preread.engine.parity import observe, parity, wider
from preread.errors import ConfigError, UsageError
from preread.kernels.int8 import PlainInt8, rounded
from preread.kernels.linear import MixedForms, PlainLinear, pack
from preread.kernels.w8a8 import PlainW8A8
from preread.models.agreement import compare, logits, measure
from preread.models.load import choose_linear, load_model
from preread.testing.models import forward, load_decoder, write_tiny_model
from tests.engine.helpers import SMALL, batch, greedy
from tests.foreign.made import write_foreign_model
from tests.parity.conftest import FAMILIES, WIDER
from tests.parity.tools import CONFIG

KNOB = "PREREAD_MODEL_WEIGHTS_PRECISION"
TOKENS = np.arange(300, dtype=np.int32) % 250
ON_CPU = ("int8", "w8a8")


@pytest.fixture
def int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KNOB, "int8")


@pytest.fixture(params=ON_CPU)
def eight_bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(KNOB, request.param)
    return str(request.param)


@pytest.mark.parametrize("precision", ON_CPU)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_law_1_holds_for_rounded_weights(
    folders: dict[str, Path], family: str, dtype: str, precision: str, home: Path
) -> None:
    model = load_model(
        str(folders[family]), dtype=dtype, device="cpu", weights_precision=precision, home=home
    )
    report = parity(Engine(model.decoder, CONFIG), wider(model), prompts=12)
    print(report)
    assert report.ok, report
    assert report.exempt < 0.9 * report.steps  # a random model's margins are small


@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_activations_are_the_same_on_every_road(
    folders: dict[str, Path], family: str
) -> None:
    """In float64, where nothing else rounds: cold and resident, alone and in a crowd, in one step
    and in chunks, preempted. What one row's scale took from another row would show here."""
    decoder = load_decoder(folders[family], "float64", linear=MixedForms(PlainW8A8, PlainInt8))
    full = load_decoder(folders[family], "float64", linear=rounded)
    section = replace(SMALL, batch_tokens=40)
    engine = Engine(decoder, section, plan=replace(Engine(decoder, section).plan, pages=30))
    make = np.random.default_rng(1)
    head, *own = (make.integers(0, 320, n).tolist() for n in (100, 3, 60, 1, 17, 30))
    of = [0, 0, 0, 0, -1]
    for _ in ("cold", "resident"):
        for row in observe(engine, batch(own, greedy(12), prefixes=[head], prefix_of=of)):
            want = judged(decoder, row.tokens, len(row.logits))
            torch.testing.assert_close(row.logits, want, atol=1e-5, rtol=1e-5)
            off = row.logits - judged(full, row.tokens, len(row.logits))
            assert off.abs().max() > 1e-4, "nothing was rounded"
    assert engine.metrics.snapshot()["engine.preempted"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_and_plain_products_make_the_same_model(
    folders: dict[str, Path], family: str, dtype: str
) -> None:
    rows = [list(range(1, 40)), [7], [1, 2]]
    wide, plain, packed = (
        torch.cat(forward(load_decoder(folders[family], kind, linear=made), rows)).double()
        for kind, made in ((WIDER[dtype], PlainLinear), (dtype, PlainLinear), (dtype, pack))
    )
    error, packed_error = (float((x - wide).square().mean().sqrt()) for x in (plain, packed))
    assert packed_error <= 1.25 * error + 1e-6


def test_kv_of_one_precision_is_never_read_by_another(
    folders: dict[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(precision: str) -> tuple[str, int, tuple[str, ...]]:
        monkeypatch.setenv(KNOB, precision)
        with preread.open(str(folders["qwen3"]), dtype="float32", device="cpu") as engine:
            made = engine.prefill(TOKENS)
            return engine.info.fingerprint, made.reused_tokens, made.chunk_keys

    made = {precision: built(precision) for precision in ("full", *ON_CPU)}
    keys = [key for _, _, keys in made.values() for key in keys]
    assert len({fingerprint for fingerprint, _, _ in made.values()}) == 3
    assert len(set(keys)) == len(keys) > 2
    assert not any(reused for _, reused, _ in made.values())
    assert all(built(precision)[1] > 250 for precision in made)  # each finds its own again


def test_the_knob_as_it_was_changes_no_fingerprint(folders: dict[str, Path]) -> None:
    parts = load_model(str(folders["qwen3"]), dtype="float32", device="cpu").fingerprint_parts
    assert not any("precision" in name for name in parts)


@pytest.mark.usefixtures("eight_bits", "home")
def test_the_check_of_law_1_takes_the_configured_precision(folders: dict[str, Path]) -> None:
    assert check_parity(str(folders["qwen3"]), prompts=8).ok


@pytest.mark.usefixtures("home")
def test_agreement_is_measured(folders: dict[str, Path], eight_bits: str) -> None:
    found = check_agreement(str(folders["llama2"]), "The warranty ends after two years. " * 4)
    assert found is not None and found.tokens > 100 and found.what == f"{eight_bits} weights"
    assert 0.5 < found.equal / found.tokens <= 1 and 0 < found.divergence < 0.1
    assert eight_bits in str(found) and "KL" in str(found)


@pytest.mark.usefixtures("home")
def test_w8a8_loses_more_than_weights_alone(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = []
    for precision in ON_CPU:
        monkeypatch.setenv(KNOB, precision)
        found = check_agreement(str(folders["llama3"]), "The warranty ends after two years. " * 4)
        assert found is not None
        lost.append(found.divergence)
    assert lost[0] < lost[1]


@pytest.mark.usefixtures("home")
def test_full_weights_have_nothing_to_agree_with(folders: dict[str, Path]) -> None:
    assert check_agreement(str(folders["llama2"]), "x") is None


def test_what_agreement_counts() -> None:
    full = torch.tensor([[9.0, 0.0, 0.0], [0.1, 0.0, 0.0], [5.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    other = full.clone()
    other[1, 1], other[2, 1] = 0.4, 6.0
    found = compare(full, other, "int8")
    assert (found.tokens, found.equal) == (4, 2)
    assert found.error == pytest.approx(((0.4**2 + 6**2) / 4) ** 0.5)
    assert (found.clear, found.clear_equal) == (3, 2)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=full), torch.distributions.Categorical(logits=other)
    )
    assert found.divergence == pytest.approx(float(exact.mean()), rel=1e-4)


def test_agreement_has_the_engine_s_logits(folders: dict[str, Path]) -> None:
    decoder = load_decoder(folders["llama3"])
    [expected] = forward(decoder, [list(range(50))])
    torch.testing.assert_close(logits(decoder, torch.arange(50)), expected, atol=1e-4, rtol=1e-4)


def test_agreement_needs_weights_and_a_text(folders: dict[str, Path]) -> None:
    name, options = str(folders["llama2"]), {"device": "cpu", "weights_precision": "int8"}
    with pytest.raises(UsageError, match="Random weights"):
        measure(load_model(name, weights="random", **options), "text")
    with pytest.raises(UsageError, match="no text"):
        measure(load_model(name, **options), "")


def test_an_unknown_precision_and_the_wrong_device_are_told() -> None:
    with pytest.raises(ConfigError, match="int4") as found:
        choose_linear("int4", torch.device("cpu"))
    assert "full, int8" in str(found.value.hint)
    for precision in ON_CPU:
        with pytest.raises(ConfigError, match=f"{precision}.*for the CPU"):
            choose_linear(precision, torch.device("cuda"))
    assert choose_linear("full", torch.device("cuda")) is PlainLinear


@pytest.mark.usefixtures("int8", "home")
def test_a_model_of_transformers_says_that_it_cannot(tmp_path: Path) -> None:
    folder = write_foreign_model(tmp_path / "m", "mistral")
    with pytest.raises(ConfigError, match=r"own decoder.*sliding_window"):
        preread.open(str(folder), dtype="float32")


def test_a_tied_head_is_quantised_and_the_embedding_is_not(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", "qwen2")
    made = {
        precision: load_model(str(folder), device="cpu", weights_precision=precision).decoder
        for precision in ("full", "int8")
    }
    assert torch.equal(made["full"]._embed, made["int8"]._embed)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    error = (made["full"].logits(x) - made["int8"].logits(x)).abs().max()
    assert 0 < float(error) < 0.05 * float(made["full"].logits(x).abs().max())
