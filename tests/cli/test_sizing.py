"""`plan`, `tune` and `bench sequences`, on a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import Result

import preread
from preread.app.measuring import bytes_used, device_name, measured_rates
from preread.capacity.machine import this_machine
from preread.capacity.remembered import Remembered
from preread.capacity.trial import Sample
from preread.capacity.tuning import Tuned
from preread.cli import sequences
from preread.cli.breakeven import pace_text, time_text
from preread.cli.plots import BOTTOM, LEFT, RIGHT, TOP, line_plot, text_bars
from preread.cli.sampled import HEADERS, Report
from preread.config import SEQUENCES
from preread.store.rates import Pace
from tests.cli.conftest import one_json
from tests.cli.test_comparing import Page
from tests.foreign.made import write_foreign_model

Call = Callable[..., Result]
WHEN = datetime(2026, 1, 2)
GPU = ("--machine", "l4")
SMALL = ("--context", "64", "--question", "8", "--output", "4", "--rounds", "1")


def samples(*rates: float) -> tuple[Sample, ...]:
    return tuple(
        Sample(2**i, 2**i / r, 0.25, 0.5, 0.75, 8, 4, peak=1024 * 2**i) for i, r in enumerate(rates)
    )


# ---- plan ----


def test_plan_is_one_object_from_the_config_alone(call: Call, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no-weights"
    folder.mkdir()
    shutil.copy(tiny / "config.json", folder)
    value = one_json(call("plan", "--model", folder, *GPU, "--json"))
    assert value["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert value["sequences"] > 1 and value["limited_by"] in ("memory", "compute", "bandwidth")
    assert value["requests_per_s"] > 0 and value["tokens_per_s"] == 128 * value["requests_per_s"]
    assert value["machine"] == "NVIDIA L4" and value["dtype"] == "float32"
    assert value["load"] == {"context": 2000, "contexts": 1, "question": 50, "output": 128}
    assert value["by_sequences"][0]["sequences"] == 1
    assert value["by_sequences"][-1]["sequences"] == value["sequences"]


def test_plan_knows_kv_in_eight_bits(
    call: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREREAD_MODEL_KV_PRECISION", "fp8")
    value = one_json(call("plan", "--model", tiny, *GPU, "--json"))
    assert value["kv_bytes_per_token"] == 2 * 2 * 2 * (16 + 4) and value["kv_precision"] == "fp8"
    assert "160 bytes of KV in fp8 a token" in call("plan", "--model", tiny, *GPU).stdout
    monkeypatch.setenv("PREREAD_MODEL_KV_PRECISION", "fp4")
    refused = call("plan", "--model", tiny, *GPU)
    assert refused.exit_code == 2 and "full, int8, fp8" in str(refused.exception)


def test_plan_imports_nothing_heavy_and_answers_at_once(tiny: Path) -> None:
    code = (
        "import sys\nsys.argv = ['preread', *sys.argv[1:]]\n"
        "from preread.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tokenizers', 'jinja2', 'pydantic'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    asked = [
        "plan",
        "--model",
        str(tiny),
        "--memory",
        "8GB",
        "--flops",
        "1T",
        "--bandwidth",
        "20GB",
    ]
    done = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True)
    assert done.stderr.strip().endswith("heavy: []"), done.stderr
    assert "sequences fit, limited by" in done.stdout


def test_plan_says_what_fits_and_which_settings_make_it_so(call: Call) -> None:
    result = call("plan", *GPU)
    assert result.exit_code == 0
    for said in ("weights", "left for sequences", "limited by", "At most", "requests/s", "█",
                 "[engine]", "max_sequences = "):  # fmt: skip
        assert said in result.stdout
    assert "keeps no KV" in call("plan", *GPU, "--output", "1").stdout


def test_plan_of_what_does_not_fit_ends_with_code_3(call: Call) -> None:
    result = call("plan", *GPU, "--memory", "1MB")
    assert result.exit_code == 3
    assert "0 sequences fit: one needs" in result.stdout
    result = call("plan", *GPU, "--memory", "1MB", "--json")
    assert result.exit_code == 3 and json.loads(result.stdout)["sequences"] == 0


def test_given_figures_replace_the_machines(call: Call) -> None:
    value = one_json(call("plan", *GPU, "--memory", "12GB", "--flops", "5T", "--json"))
    assert value["memory"]["total"] == 12 * 10**9 and value["flops_per_s"] == 5e12
    given = ("--memory", "12GB", "--flops", "5T", "--bandwidth", "50GB/s")
    value = one_json(call("plan", *given, "--json"))
    assert value["rates_from"] == "as given" and value["bytes_per_s"] == 5e10


def test_a_machine_is_measured_once(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measured(dtype: str, device: str) -> tuple[float, float]:
        asked.append(dtype)
        return 1e12 * len(asked), 2e10

    monkeypatch.setattr("preread.app.measuring.measured_rates", measured)
    monkeypatch.setenv("PREREAD_MODEL_DEVICE", "cpu")
    for measure, flops in (([], 1e12), ([], 1e12), (["--measure"], 2e12), ([], 2e12)):
        value = one_json(call("plan", *measure, "--json"))
        assert (value["flops_per_s"], value["rates_from"]) == (flops, "measured here")
    assert asked == ["float32", "float32"]
    value = one_json(call("plan", "--bandwidth", "1GB/s", "--json"))
    assert (value["flops_per_s"], value["bytes_per_s"]) == (2e12, 1e9)


def test_a_gpu_of_the_table_needs_no_measuring_but_may_have_it(
    call: Call, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA L4, 23034"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    value = one_json(call("plan", "--json"))
    assert value["machine"] == "NVIDIA L4" and "maker" in value["rates_from"]
    Remembered(home).keep_rates("NVIDIA L4", "float32", 2e12, 3e11)
    value = one_json(call("plan", "--json"))
    assert (value["flops_per_s"], value["rates_from"]) == (2e12, "measured here")
    result = call("plan", "--measure", "--machine", "l4")
    assert result.exit_code == 2 and "--measure" in result.message  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--machine", "h1000"], "not in the table"),
        (["--memory", "lots"], "--memory lots"),
        (["--bandwidth", "fast"], "--bandwidth fast"),
        (["--context", "5000"], "5,000 + 50 + 128"),
        (["--dtype", "int3"], "--dtype int3"),
        (["--model", "/no/such/folder"], "neither a folder nor a hub id"),
    ],
)
def test_what_is_wrong_is_said(call: Call, options: list[str], said: str) -> None:
    result = call("plan", *GPU, *options)
    assert result.exit_code == 2
    assert said in result.message  # type: ignore[attr-defined]


def test_rates_of_this_machine_are_plausible() -> None:
    flops, bandwidth = measured_rates("float32", "cpu", rounds=1)
    assert 1e8 < flops < 1e15 and 1e8 < bandwidth < 1e14
    assert bytes_used("cpu") > 1 << 20


# ---- tune ----


def test_tune_finds_a_limit_that_engines_then_use(
    call: Call, tiny: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with preread.open(str(tiny)) as engine:
        assert engine.config.engine.max_sequences == SEQUENCES["cpu"]
        fingerprint = engine.info.fingerprint
    value = one_json(call("tune", "--most", "4", *SMALL, "--json"))
    assert value["sequences"] in (2, 4) and value["ended"] in ("flat", "most")
    assert [s["sequences"] for s in value["samples"]] == [2, 4]
    assert all(s["computed_tokens"] == 8 for s in value["samples"])  # the context was there
    assert Remembered(home).limit(device_name("cpu"), fingerprint) == value["sequences"]
    with preread.open(str(tiny)) as engine:
        assert engine.config.engine.max_sequences == value["sequences"]
    with preread.open(str(tiny), dtype="bfloat16") as engine:  # another model
        assert engine.config.engine.max_sequences == SEQUENCES["cpu"]
    assert not (home / "kv").exists()  # its made-up context is not kept
    text = Page(Path(value["html"]).read_text("utf-8")).text
    assert "How many sequences at once?" in text and "64 shared + 8 own tokens" in text


def test_what_is_configured_or_asked_for_wins(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with preread.open(str(tiny)) as engine:
        Remembered(home).keep_limit(device_name("cpu"), engine.info.fingerprint, 7, {})
    with preread.open(str(tiny)) as engine:
        assert engine.config.engine.max_sequences == 7
    with preread.open(str(tiny), sequences=3) as engine:
        assert engine.config.engine.max_sequences == 3
        prompts = [[i, 1, 2] for i in range(9)]
        assert len(engine.generate(prompts, max_tokens=2, ignore_eos=True)) == 9
    monkeypatch.setenv("PREREAD_ENGINE_MAX_SEQUENCES", "5")
    with preread.open(str(tiny)) as engine:
        assert engine.config.engine.max_sequences == 5


def test_memory_that_runs_out_ends_the_doubling(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages for a few rows only: more are taken back while they run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREREAD_ENGINE_SUFFIX_MEMORY_MB", "1")
    monkeypatch.setenv("PREREAD_ENGINE_PREFIX_MEMORY_MB", "16")
    options = ("--context", "32", "--question", "8", "--output", "400", "--rounds", "1")
    value = one_json(call("tune", "--most", "32", *options, "--json"))
    assert value["ended"] == "memory"
    strained = [s["sequences"] for s in value["samples"] if s["strained"]]
    assert strained == [value["samples"][-1]["sequences"]]
    assert value["sequences"] < strained[0]


def test_tune_shows_a_plot_and_what_it_kept(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(
        sequences, "tune", lambda measure, most, tell: Tuned(2, "flat", samples(10, 20, 20.5))
    )
    monkeypatch.setenv("PREREAD_ENGINE_MAX_SEQUENCES", "9")
    result = call("tune", *SMALL, "--html", tmp_path / "t.html")
    assert result.exit_code == 0
    assert f"2 {'█' * 39} 1,200.0 requests/min <-" in result.stdout
    assert "2 sequences: 1,200.0 requests/min; more sequences bring no more." in result.stdout
    assert str(home / "capacity.json") in result.stdout
    assert "engine.max_sequences = 9 is configured, and wins" in result.stderr
    cells = [mark["cx"] for mark in Page((tmp_path / "t.html").read_text()).named("circle")]
    assert cells == [str(LEFT + (RIGHT - LEFT) / 2)]  # the second of three doublings


def test_a_model_of_transformers_is_measured_but_not_tuned(call: Call, tmp_path: Path) -> None:
    folder = write_foreign_model(tmp_path / "m", "mistral")
    options = ("--model", folder, *SMALL, "--html", tmp_path / "x.html")
    result = call("tune", *options)
    assert result.exit_code == 2
    assert "preread bench sequences" in result.message  # type: ignore[attr-defined]
    value = one_json(call("bench", "sequences", "--counts", "1,2", *options, "--json"))
    assert [row["sequences"] for row in value["rows"]] == [1, 2]


# ---- bench ----


def test_bench_measures_the_table_of_sequences(call: Call, tmp_path: Path) -> None:
    html = tmp_path / "b.html"
    value = one_json(
        call("bench", "sequences", "--counts", "2,1,4", *SMALL, "--html", html, "--json")
    )
    assert value["benchmark"] == "sequences" and value["machine"] == device_name("cpu")
    assert [row["sequences"] for row in value["rows"]] == [1, 2, 4]
    for row in value["rows"]:
        assert row["requests_per_min"] > 0 and row["computed_tokens"] == 8
        assert row["tokens_per_s"] == pytest.approx(4 * row["requests_per_min"] / 60)
        assert 0 < row["first_token_s"] <= row["request_s"] <= row["request_p95_s"]
        assert row["limit_share"] == pytest.approx(
            row["requests_per_min"] / row["limit_requests_per_min"]
        )
        assert row["kv_bytes_per_sequence"] == 16 * value["kv_bytes_per_token"]
    assert value["html"] == str(html)
    table = call("bench", "sequences", "--counts", "1,2", *SMALL, "--html", html).stdout
    assert "requests/min" in table and "KV/sequence" in table and "█" in table


def test_answers_of_one_token_keep_nothing(call: Call, tmp_path: Path) -> None:
    options = ("--context", "0", "--output", "1", "--rounds", "1", "--html", tmp_path / "b.html")
    value = one_json(call("bench", "sequences", "--counts", "2", *options, "--json"))
    assert value["rows"][0]["kv_bytes_per_sequence"] == 0
    assert value["rows"][0]["computed_tokens"] == 50


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "prefill"], "No such command 'prefill'"),
        (["bench", "sequences", "--counts", "1,two"], "--counts 1,two"),
        (["bench", "sequences", "--counts", "0,1"], "--counts 0,1"),
        (["bench", "sequences", "--html", "/no/such/page.html"], "cannot be written"),
        (["tune", "--html", "/no/such/page.html"], "cannot be written"),
        (["tune", "--output", "9999"], "limit of 4,096"),
    ],
)
def test_wrong_calls_end_with_code_2(call: Call, arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.message  # type: ignore[attr-defined]


# ---- plots ----


def test_the_page_escapes_and_draws_within_its_frame() -> None:
    load = {"context": 64, "question": 8, "output": 4}
    about = {"model": "a/b&c", "dtype": "float32", "machine": "<b>", "load": load}
    limits = (20.0, 40.0, 60.0)
    html = Report("<script>", about, samples(10, 20, 30), 4096, limits, ["a & b"], 2).page(WHEN)
    made = Page(html)
    assert len(made.cells) == 4 * len(HEADERS) and made.cells.count("50%") == 3
    assert "<script>" in made.text and "<script" not in html
    assert "1,800.0" in made.cells and "3.00" in made.cells and "4.0 KiB" in made.cells
    assert len(made.named("polyline")) == 4 and len(made.named("circle")) == 1
    for line in made.named("polyline"):
        points = [tuple(map(float, p.split(","))) for p in (line["points"] or "").split()]
        assert [x for x, _ in points] == [LEFT, (LEFT + RIGHT) / 2, RIGHT]
        assert all(TOP <= y <= BOTTOM for _, y in points)


def test_an_unknown_limit_is_left_open() -> None:
    load = {"context": 64, "question": 8, "output": 4}
    about = {"model": "m", "dtype": "float32", "machine": "box", "load": load}
    report = Report("t", about, samples(10, 20), 4096, (), ())
    assert [row[3] for row in report.rows()] == ["-", "-"]
    assert [row["limit_share"] for row in report.to_json()] == [None, None]
    assert [line.label for line in next(report.plots()).lines] == ["measured"]


def test_one_count_is_drawn_too() -> None:
    plot = line_plot("t", "a", [("all", [5.0])], [4])
    assert plot.lines[0].points.startswith(f"{LEFT},")


def test_bars_for_a_terminal_are_as_long_as_their_values() -> None:
    assert text_bars([("1", 2.0, "x"), ("16", 1.0, "y"), ("2", 0.125, "z")], width=4) == [
        " 1 ████ x",
        "16 ██ y",
        " 2 ▎ z",
    ]
    assert text_bars([("1", 0.0, "x")]) == ["1  x"]


def test_where_loading_beats_computing(
    call: Callable[..., Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "was never loaded from here" in call("plan", "--tiers").stdout
    remembered = Remembered(home)
    machine = this_machine("auto").name
    remembered.keep_measured(
        f"{machine} | tier disk", [[1e4, 1.0, 0.002, 0.0], [1e9, 500.0, 1.001, 0.0]]
    )
    name = os.environ["PREREAD_MODEL_MODEL"]
    rows = [[0.0, 100.0, 0.01, 0.0], [0.0, 10_000.0, 1.0, 0.0]]
    remembered.keep_measured(f"{machine} | prefill {name} auto full", rows)
    value = one_json(call("plan", "--tiers", "--json"))["tiers"]
    assert value["compute_measured"] and value["compute_s"]["1024"] == pytest.approx(0.1024)
    (disk,) = value["tiers"]
    assert disk["place"] == "disk" and disk["bytes_per_s"] == pytest.approx(1e9, rel=0.1)
    assert 0 < disk["from_tokens"] <= 1024
    said = call("plan", "--tiers").stdout
    assert "loads faster than computing from" in said and " *" in said
    assert value["tiers"][0]["both_s"]["65536"] is None  # loading takes next to nothing
    assert value["layer_groups"] == 1 and "ranges of layers" not in said
    monkeypatch.setenv("PREREAD_STORE_CHUNK_BYTES", "40000")
    assert one_json(call("plan", "--tiers", "--json"))["tiers"]["layer_groups"] == 2
    assert "KV comes in 2 ranges of layers" in call("plan", "--tiers").stdout


def test_where_both_at_once_beats_either(call: Callable[..., Result], home: Path) -> None:
    """A tier that takes as long as computing: both take half; where they slow each other, more."""
    remembered = Remembered(home)
    machine, name = this_machine("auto").name, os.environ["PREREAD_MODEL_MODEL"]
    rows = [[0.0, 100.0, 0.01, 0.0], [0.0, 10_000.0, 1.0, 0.0]]
    remembered.keep_measured(f"{machine} | prefill {name} auto full", rows)
    each = one_json(call("plan", "--tiers", "--json"))["tiers"]["token_bytes"]
    sizes = [each * n for n in (100, 10_000)]
    remembered.keep_measured(
        f"{machine} | tier disk", [[size, 1.0, size / each * 1e-4, 0.0] for size in sizes]
    )
    (disk,) = one_json(call("plan", "--tiers", "--json"))["tiers"]["tiers"]
    assert disk["both_s"]["16384"] == pytest.approx(0.8192, rel=0.1)
    for kind in ("loading", "computing"):
        remembered.keep_measured(f"{machine} | {kind}-beside disk", [[1.0, 1.5, 0.0]] * 3)
    (disk,) = one_json(call("plan", "--tiers", "--json"))["tiers"]["tiers"]
    assert disk["both_s"]["16384"] == pytest.approx(1.5 * 0.8192, rel=0.1)
    header, *lines = call("plan", "--tiers").stdout.split("tokens  KV")[-1].splitlines()
    assert header.split() == ["computing", "disk", "both"] and lines[4].rstrip().endswith("*")
    assert call("plan", "--tiers", "--machine", "h100").exit_code == 2


def test_a_bandwidth_that_nobody_measured_is_not_said() -> None:
    assert pace_text(Pace(1.2e-3, 5e-10)) == "1.2 ms + 2 GB/s"
    assert pace_text(Pace(1.2e-3, 5e-10, 3e-4)) == "1.2 ms + 0.3 ms a chunk + 2 GB/s"
    assert pace_text(Pace(1.2e-3, 1e-18)).startswith("1.2 ms whatever the size")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00258, "2.58 ms"),
        (0.16, "160 ms"),
        (2.56, "2.56 s"),
        (40.9, "40.9 s"),
        (12345, "12,345 s"),
    ],
)
def test_times_are_no_powers_of_ten(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
