"""Building: what is computed, reused, published, and what the report says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preread.contexts.build import BuildOutcome, BuildRequest, build_context
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.contexts.layout import DEFAULT_INSTRUCTIONS
from preread.contexts.shard import Plan
from preread.errors import ContextTooLong, SourceError, UsageError
from preread.testing.backend import FakeBackend
from preread.types import Brought, Built, Prefix
from tests.contexts.made import NOW, config, folder


class Bench:
    """A home, a folder of documents and a backend."""

    def __init__(self, place: Path, *, files: int = 4, **backend: Any) -> None:
        self.place = place
        self.backend = FakeBackend(**backend)
        self.catalog = SqliteCatalog(place / "home" / "catalog.sqlite")
        self.config = config(place / "home", answer_room=10, max_tokens=10)
        self.docs = place / "docs"
        self.write(**{f"f{n}": f"file {n} says {n} " + "and more " * 20 for n in range(files)})

    def write(self, **texts: str) -> None:
        folder(self.place, **{f"{name}__md": text for name, text in texts.items()})

    async def build(self, now: float = NOW, **request: Any) -> BuildOutcome:
        asked = BuildRequest("handbook", (str(self.docs),), **request)
        return await build_context(self.backend, self.catalog, asked, self.config, now=lambda: now)


async def test_a_first_build_is_published_and_reported(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    outcome = await bench.build()
    record = outcome.record
    assert bench.catalog.get("handbook") == record
    assert (record.version, record.created_at, record.expires_at) == (1, NOW, None)
    assert (record.model, record.fingerprint, record.dtype) == ("fake", "fa" * 32, "none")
    assert record.patterns == (str(bench.docs),) and record.instructions == DEFAULT_INSTRUCTIONS
    assert [s.path for s in record.sources] == [f"docs/f{n}.md" for n in range(4)]
    (shard,) = record.shards
    assert shard.system.startswith(DEFAULT_INSTRUCTIONS + "\n\n[docs/f0.md]\nfile 0")
    assert shard.sources == (0, 1, 2, 3) and len(shard.parts) == 4 and shard.chunk_keys
    assert outcome.tokens == outcome.computed_tokens == record.tokens
    assert outcome.kv_bytes == outcome.tokens * 64
    assert record.prefill_tok_s == pytest.approx(1000)
    assert (outcome.changes, outcome.unchanged, outcome.notes) == (None, False, ())


async def test_the_json_report_is_as_documented(tmp_path: Path) -> None:
    outcome = await Bench(tmp_path).build()
    report = json.loads(json.dumps(outcome.to_json()))
    documented = {"name", "version", "tokens", "reused_tokens", "computed_tokens", "kv_bytes"}
    assert documented | {"seconds", "fits"} <= set(report)
    assert report["fits"] == {"limit": 4096, "effective": 4096, "room": 4096 - outcome.tokens}


async def test_the_plan_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    plans: list[Plan] = []

    def look(plan: Plan) -> None:
        assert all(call.kind == "count" for call in bench.backend.calls)
        plans.append(plan)

    outcome = await bench.build(on_plan=look)
    assert plans[0].fit == outcome.fit


async def test_an_edit_recomputes_from_the_first_change_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = await bench.build()
    bench.write(f2="file 2 changed", f0a="new, but goes to the end")
    second = await bench.build()
    assert (
        second.record.version == 2
        and second.computed_tokens + second.reused_tokens == second.tokens
    )
    text = second.record.shards[0].system
    assert text.index("f3.md") < text.index("f0a.md")
    before = len(first.record.shards[0].system.split("file 2")[0].split()) + 1
    assert second.reused_tokens == pytest.approx(before, abs=2)
    assert second.changes and second.changes.changed == ("docs/f2.md",)
    assert second.changes.added == ("docs/f0a.md",)
    share = round(100 * second.reused_tokens / second.tokens)
    assert second.describe() == f"1 of 5 files changed, 1 added: {share} % reused"


async def test_a_removed_file_is_reported(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.build()
    (bench.docs / "f3.md").unlink()
    outcome = await bench.build()
    assert outcome.changes and outcome.changes.removed == ("docs/f3.md",)
    assert "1 removed" in outcome.describe()


async def test_a_build_of_the_same_is_no_new_version(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = await bench.build(ttl_s=100.0)
    again = await bench.build(ttl_s=100.0, now=NOW + 50)
    assert again.unchanged and again.record == first.record
    assert (again.computed_tokens, again.reused_tokens) == (0, again.tokens)
    assert "nothing changed: version 1 is kept" in again.describe()


@pytest.mark.parametrize("why", ["force", "ttl", "expired", "invalidated", "instructions", "model"])
async def test_what_makes_a_new_version(tmp_path: Path, why: str) -> None:
    bench = Bench(tmp_path)
    await bench.build(ttl_s=100.0)
    request: dict[str, Any] = {"ttl_s": 100.0}
    now = NOW + 1
    if why == "force":
        request["force"] = True
    elif why == "ttl":
        request["ttl_s"] = None
    elif why == "expired":
        now = NOW + 100
    elif why == "invalidated":
        bench.catalog.invalidate("handbook", "prices changed")
    elif why == "instructions":
        request["instructions"] = "Answer in verse."
    else:
        bench.backend = FakeBackend(fingerprint="bb" * 32)
    outcome = await bench.build(now=now, **request)
    assert (outcome.record.version, outcome.unchanged) == (2, False)
    assert outcome.record.invalidated == "" and bench.catalog.get("handbook") == outcome.record


async def test_what_the_tiers_hold_of_another_model_is_said(tmp_path: Path) -> None:
    class Tiered(FakeBackend):
        async def build(self, *args: Any, **more: Any) -> Built:
            built = await super().build(*args, **more)
            return replace(built, brought=Brought(miss="never_stored"))

    bench = Bench(tmp_path)
    bench.backend = Tiered()
    assert (await bench.build()).brought.miss == "never_stored"
    bench.backend = Tiered(fingerprint="bb" * 32)
    outcome = await bench.build(now=NOW + 1)
    assert outcome.brought.miss == outcome.to_json()["brought"]["miss"] == "other_fingerprint"


async def test_expiry_counts_from_creation(tmp_path: Path) -> None:
    outcome = await Bench(tmp_path).build(ttl_s=60.0)
    assert outcome.record.expires_at == NOW + 60


async def test_progress_covers_all_shards(tmp_path: Path) -> None:
    bench = Bench(tmp_path, limit=110)
    seen: list[tuple[int, int]] = []
    request = BuildRequest("handbook", (str(bench.docs),))
    outcome = await build_context(
        bench.backend, bench.catalog, request, bench.config, lambda *step: seen.append(step)
    )
    assert len(outcome.record.shards) > 1 and "shards" in outcome.fit.describe()
    assert [ready for ready, _ in seen] == sorted(ready for ready, _ in seen)
    assert seen[-1] == (outcome.tokens, outcome.tokens)
    assert len(bench.backend.calls) < 20


async def test_an_edit_of_a_split_context_rebuilds_one_shard(tmp_path: Path) -> None:
    bench = Bench(tmp_path, files=9, limit=160)
    first = await bench.build()
    assert len(first.record.shards) >= 4
    bench.write(f8="file 8 is short now")
    second = await bench.build()
    same = {s.system for s in first.record.shards} & {s.system for s in second.record.shards}
    assert len(same) == len(first.record.shards) - 1
    assert second.computed_tokens < 80


async def test_a_short_rebuild_keeps_the_measured_rate(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = await bench.build()
    bench.write(f3="one more word at the end")
    second = await bench.build()
    assert second.computed_tokens < second.tokens / 2
    assert second.record.prefill_tok_s == first.record.prefill_tok_s > 0


async def test_kv_that_was_not_stored_is_said(tmp_path: Path) -> None:
    outcome = await Bench(tmp_path, stored=False).build()
    assert "not every tier keeps all of the KV: preread show" in outcome.notes[0]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (BuildRequest("../evil", ("x",)), UsageError),
        (BuildRequest("ok", ("/nowhere/at/all",)), SourceError),
        (BuildRequest("ok", ()), SourceError),
    ],
)
async def test_a_bad_request_computes_nothing(
    tmp_path: Path, request_: BuildRequest, error: type[Exception]
) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(error):
        await build_context(bench.backend, bench.catalog, request_, bench.config)
    assert bench.backend.calls == [] and bench.catalog.summaries() == []


async def test_a_model_too_small_for_anything(tmp_path: Path) -> None:
    with pytest.raises(ContextTooLong):
        await Bench(tmp_path, limit=20).build()


async def test_builders_of_the_same_agree_on_one_version(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    outcomes = await asyncio.gather(*(bench.build() for _ in range(4)))
    assert {o.record.version for o in outcomes} == {1}
    assert sum(not o.unchanged for o in outcomes) == 1


async def test_builders_of_different_things_go_on_top_of_each_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    outcomes = await asyncio.gather(*(bench.build(instructions=f"By {n}.") for n in range(4)))
    assert sorted(o.record.version for o in outcomes) == [1, 2, 3, 4]
    for outcome in outcomes:
        assert bench.catalog.get("handbook", outcome.record.version) == outcome.record


async def test_vectors_are_kept_with_the_context(tmp_path: Path) -> None:
    calls: list[int] = []

    class Lengths:
        name = "lengths"

        def __call__(self, texts: Sequence[str]) -> list[list[float]]:
            calls.append(len(texts))
            return [[1.0, float(len(text))] for text in texts]

    bench = Bench(tmp_path)
    outcome = await bench.build(embedder=Lengths())
    kept = bench.catalog.get("handbook")
    assert kept and kept.embedding == outcome.record.embedding
    assert kept.embedding and kept.embedding.embedder == "lengths" and calls == [4]


async def test_standard_input_is_a_source(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    request = BuildRequest("piped", ("-",), stdin=b"opening time: 9")
    outcome = await build_context(bench.backend, bench.catalog, request, bench.config)
    assert outcome.record.shards[0].system.endswith("\n\n[stdin]\nopening time: 9")


async def test_the_prefix_is_leased(tmp_path: Path) -> None:
    leases: list[float] = []

    class Leasing(FakeBackend):
        async def build(self, prefix: Prefix, *, lease_s: float = 0.0, progress: Any = None) -> Any:
            leases.append(lease_s)
            return await super().build(prefix, lease_s=lease_s, progress=progress)

    bench = Bench(tmp_path)
    bench.backend = Leasing()
    await bench.build()
    assert leases == [replace(bench.config).engine.lease_s]
