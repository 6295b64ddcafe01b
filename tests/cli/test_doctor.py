"""`preread doctor` measures law 1 on the model it is given, and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from preread.cli import doctor
from preread.tokens.parity import ParityReport
from tests.cli.conftest import one_json
from tests.foreign.made import write_foreign_model


def test_a_sound_machine(call: Callable[..., Result], home: Path) -> None:
    value = one_json(call("doctor", "--prompts", "4", "--json"))
    found = {finding["what"]: finding for finding in value["findings"]}
    assert value["ok"] and found["parity"]["ok"]
    assert "cached = uncached" in found["parity"]["detail"]
    assert found["search"]["ok"] and found["home"]["ok"]


def test_a_tier_that_is_down_is_a_finding(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREREAD_TIERS", "disk,redis://someone:hush@127.0.0.1:1")
    result = call("doctor", "--prompts", "0")
    assert result.exit_code == 3 and "ok  tier disk" in result.stdout
    assert "BAD tier redis" in result.stdout and "hush" not in result.output


def test_a_key_is_counted_and_not_shown(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREREAD_KEY", "ab12" * 16 + "," + "cd34" * 16)
    result = call("doctor", "--prompts", "0")
    assert "kept KV is sealed; 2 key(s)" in result.stdout and "ab12" not in result.output
    monkeypatch.setenv("PREREAD_KEY", "ab12")
    result = call("doctor", "--prompts", "0")
    assert result.exit_code == 3 and "24 bits, not 256" in result.stdout


def test_a_catalog_that_is_down_is_a_finding(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREREAD_STORE_CATALOG", "redis://someone:hush@127.0.0.1:1")
    result = call("doctor", "--prompts", "0")
    assert result.exit_code == 3 and "BAD catalog" in result.stdout
    assert "redis-cli -h 127.0.0.1 -p 1 ping" in result.stdout and "hush" not in result.output


@pytest.mark.parametrize(("knob", "what"), [("WEIGHTS", "int8 weights"), ("KV", "int8 KV")])
def test_what_eight_bits_change_is_measured(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, knob: str, what: str
) -> None:
    monkeypatch.setenv(f"PREREAD_MODEL_{knob}_PRECISION", "int8")
    monkeypatch.setenv("PREREAD_MODEL_DEVICE", "cpu")
    value = one_json(call("doctor", "--prompts", "4", "--json"))
    found = {finding["what"]: finding["detail"] for finding in value["findings"]}
    assert f"{what} against full precision, 512 tokens" in found["agreement"]
    assert value["ok"] and "cached = uncached" in found["parity"]


def test_a_model_that_breaks_law_1_is_told(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ParityReport(8, 64, 0, 3, 1.0, 0.1, 0.0)
    monkeypatch.setattr("preread.app.compose.check_parity", lambda model, prompts: broken)
    assert not doctor._parity("", 8).ok
    result = call("doctor")
    assert result.exit_code == 3 and "BAD parity" in result.stdout


def test_a_model_of_transformers_is_measured_and_said(
    call: Callable[..., Result], tmp_path: Path
) -> None:
    folder = write_foreign_model(tmp_path / "m", "mistral")
    result = call("doctor", "--model", folder, "--prompts", "4", "--json")
    value = one_json(result)
    found = {finding["what"]: finding for finding in value["findings"]}
    assert value["ok"] and found["parity"]["ok"]
    assert "cached = uncached: 9 rows" in found["parity"]["detail"]
    assert "slower" in found["note"]["detail"] and "sliding_window" in found["note"]["detail"]


def test_a_missing_model_is_a_finding(call: Callable[..., Result]) -> None:
    result = call("doctor", "--model", "/no/such/folder")
    assert result.exit_code == 3 and "ModelNotFound" in result.stdout
