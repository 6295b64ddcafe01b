"""`preread build`: the fit report before any compute, a bar while it reads, then the bill."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from preread.cli.output import emit, note, progress_bar, size

if TYPE_CHECKING:
    from preread.contexts.build import BuildOutcome
    from preread.contexts.shard import Plan


def build_command(
    name: str,
    paths: list[str],
    *,
    model: str,
    ttl: str,
    system: str,
    codec: str,
    force: bool,
    json: bool,
) -> None:
    from preread.app import open as open_engine
    from preread.cli.target import meant

    stdin = sys.stdin.buffer.read() if "-" in paths else None
    _, model, kept = meant(name, model)
    with (
        open_engine(model, codec=codec or kept) as engine,
        progress_bar("reading", quiet=json) as bar,
    ):
        outcome = engine.build(
            name,
            *paths,
            ttl=ttl,
            system=system,
            force=force,
            stdin=stdin,
            progress=bar,
            on_plan=None if json else _announce,
        )
    if json:
        emit(outcome.to_json())
    else:
        _report(outcome)


def _announce(plan: Plan) -> None:
    note(plan.fit.describe())
    if len(plan.shards) > 1:
        for i, (layout, tokens) in enumerate(zip(plan.shards, plan.tokens, strict=True), 1):
            note(f"  shard {i}: {tokens:,} tokens, {len(layout.parts)} parts of documents")


def _report(outcome: BuildOutcome) -> None:
    record = outcome.record
    for text in outcome.notes:
        note(f"note: {text}")
    rate = outcome.computed_tokens / outcome.seconds if outcome.seconds else 0.0
    print(
        f"{record.name}, version {record.version}: {len(record.sources)} document(s), "
        f"{outcome.tokens:,} tokens, {size(outcome.kv_bytes)} of KV in {outcome.seconds:.1f} s"
    )
    print(
        f"{outcome.computed_tokens:,} computed ({rate:,.0f} tok/s) + "
        f"{outcome.reused_tokens:,} reused; {outcome.describe()}"
    )
