"""What the tiers gave, and why not more, is counted for each context."""

from __future__ import annotations

from pathlib import Path

import pytest

import preread


def counted(engine: preread.Engine, name: str) -> dict[str, float]:
    head = f"context.{name}."
    return {k.removeprefix(head): v for k, v in engine.metrics.items() if k.startswith(head)}


def test_hits_and_misses_of_each_context(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREREAD_STORE_LOAD", "always")
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"{name} " * 200)
        (tmp_path / name).rename(tmp_path / f"{name}.md")
    with preread.open(str(folder), dtype="float32") as first:
        first.build("one", tmp_path / "one.md")
        tokens = first.build("two", tmp_path / "two.md").tokens
        first.open("two").ask_many(["Who?", "Where?"])
        assert counted(first, "two")["rows"] == 2 and "miss.gone" not in counted(first, "two")
    with preread.open(str(folder), dtype="float32") as second:
        two = second.open("two")
        two.ask_many(["Who?", "Where?", "When?"])
        two.choose("Who?", ["a", "b"])
        list(two.stream("Why?"))
        second.open("one").warm()
        of_two, of_one = counted(second, "two"), counted(second, "one")
    assert of_two["rows"] == 5 and of_two["cached_tokens"] >= 5 * (tokens - 4)
    assert 0 < of_two["hit_tokens.disk"] <= tokens and of_two["hit_bytes.disk"] > 0
    assert of_two["hit_ms.disk"] > 0
    assert of_one["hit_tokens.disk"] > 0 and "rows" not in of_one
    for chunk in (preread.config.load_config().home / "kv" / "chunks").rglob("*.kv"):
        chunk.unlink()
    with preread.open(str(folder), dtype="float32") as third:
        third.open("two").ask("Who?")
        assert counted(third, "two")["miss.never_stored"] == 1
