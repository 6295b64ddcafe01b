"""The scoring half of `preread demo`, on a tiny model; the rest is `make demo` itself."""

from __future__ import annotations

import csv
from pathlib import Path

import preread
from preread.cli.demo import demo_folder
from preread.cli.demo_scores import score_applicants


def test_applicants_are_scored_and_billed(tiny: Path, tmp_path: Path) -> None:
    with preread.open(str(tiny), home=tmp_path / "home") as engine:
        first = score_applicants(engine, tmp_path / "demo", 30)
        again = score_applicants(engine, tmp_path / "demo", 30)
    rows = list(csv.DictReader(first.output.read_text().splitlines()))
    assert len(rows) == first.requests == sum(first.counts.values()) == 30
    assert not any(row["error"] for row in rows)
    assert (tmp_path / "demo" / "scores.html").exists()
    assert first.whole == again.whole > 5 * first.computed  # what was read before is reused again
    assert again.computed < first.computed and again.counts == first.counts
    assert f"{first.computed:,} tokens computed of {first.whole:,}" in first.lines()
    assert first.to_json()["prompt_tokens"] == first.whole


def test_the_handbook_is_there() -> None:
    assert any(demo_folder().glob("*.md"))
