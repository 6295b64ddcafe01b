"""`list`, `show`, `verify`, `invalidate`, `rm`, `gc`: the catalog and the chunks, no model."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from preread.cli.output import FAILURES, ago, emit, note, size, table
from preread.config import load_config
from preread.contexts import manage
from preread.contexts.names import parse_ttl
from preread.errors import UsageError

if TYPE_CHECKING:
    from preread.contexts.catalog.base import ContextSummary
    from preread.store.upkeep import VerifyReport


def list_command(*, json: bool) -> None:
    from preread.home import open_catalog

    config = load_config()
    now = time.time()
    listed = manage.list_contexts(open_catalog(config), now, config.context)
    if json:
        contexts = [_summary(item.summary) | asdict(item.state) for item in listed]
        emit({"home": str(config.home), "contexts": contexts})
        return
    if not listed:
        print("No contexts yet. Make one: preread build NAME PATH…")
        return
    headers = ("name", "version", "tokens", "KV", "sources", "shards", "model", "used", "state")
    rows = []
    for item in listed:
        s, state = item.summary, item.state
        words = f"{state.label}: {state.reason}" if state.reason else state.label
        counts = (f"{s.tokens:,}", size(s.kv_bytes), str(s.sources), str(s.shards))
        used = f"{ago(now - s.last_used)} ago"
        rows.append((s.name, str(s.version), *counts, os.path.basename(s.model), used, words))
    table(headers, rows)


def _summary(summary: ContextSummary) -> dict[str, Any]:
    times = {key: _utc(getattr(summary, key)) for key in ("created_at", "expires_at", "last_used")}
    return asdict(summary) | times


def _utc(seconds: float | None) -> str | None:
    return (
        None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat("T", "seconds")
    )


def show_command(name: str, *, json: bool) -> None:
    from preread.cli.holding import kept_in
    from preread.home import open_catalog, open_tiers
    from preread.store.tiers.memory import MemoryTier

    config = load_config()
    catalog = open_catalog(config)
    shown = manage.show_context(catalog, name, time.time(), config.context)
    used = next((s.last_used for s in catalog.summaries() if s.name == name), 0.0)
    # Memory is that of a process, and this one has just begun.
    tiers = [tier for tier in open_tiers(config) if not isinstance(tier, MemoryTier)]
    kept = [kept_in(tier, shown.record.chunk_keys, used) for tier in tiers]
    value = _described(shown) | {"tiers": [asdict(one) for one in kept]}
    if json:
        emit(value)
    else:
        _print_described(shown, value)
        for one in kept:
            print(f"  {one.tier:12} {one}")


def _described(shown: manage.Shown) -> dict[str, Any]:
    """The documented object of `show --json`."""
    record = shown.record
    return {
        "name": record.name,
        "version": record.version,
        "versions": list(shown.versions),
        "state": asdict(shown.state),
        "model": record.model,
        "dtype": record.dtype,
        "codec": record.codec,
        "fingerprint": record.fingerprint,
        "tokens": record.tokens,
        "kv_bytes": sum(shard.kv_bytes for shard in record.shards),
        "created_at": _utc(record.created_at),
        "expires_at": _utc(record.expires_at),
        "instructions": record.instructions,
        "sources": [
            {
                "path": s.path,
                "origin": s.origin,
                "sha256": s.digest,
                "lines": s.text.count("\n") + 1,
            }
            for s in record.sources
        ],
        "shards": [
            {"tokens": s.tokens, "sources": [record.sources[i].path for i in s.sources]}
            for s in record.shards
        ],
        "sessions": list(shown.sessions),
    }


def _print_described(shown: manage.Shown, value: dict[str, Any]) -> None:
    record, state = shown.record, shown.state
    print(f"{record.name}, version {record.version}: {state.label} {state.reason}".rstrip())
    for key in ("model", "dtype", "codec", "fingerprint", "created_at", "expires_at"):
        if value[key]:
            print(f"  {key.replace('_', ' '):12} {value[key]}")
    kept = ", ".join(map(str, shown.versions))
    print(f"  {'tokens':12} {record.tokens:,} ({size(value['kv_bytes'])} of KV)")
    print(f"  {'versions':12} {kept}")
    print(f"  {'sessions':12} {', '.join(shown.sessions) or 'none'}")
    for i, shard in enumerate(record.shards):
        paths = ", ".join(record.sources[j].path for j in shard.sources)
        print(f"  {f'shard {i + 1}':12} {shard.tokens:,} tokens: {paths}")


def verify_command(name: str, *, json: bool) -> None:
    from preread.home import open_catalog, open_upkeep

    config = load_config()
    keys = None
    if name:
        record = manage.known(open_catalog(config), name)
        keys = record.chunk_keys
    tell_verified(open_upkeep(config).verify(keys), json=json)


def tell_verified(
    report: VerifyReport, left: Sequence[tuple[str, str]] = (), *, json: bool
) -> None:
    """left: (name, why) of contexts that were not looked at. Exits with FAILURES where anything is
    wrong."""
    if json:
        emit(report._asdict() | {"left": [{"name": name, "why": why} for name, why in left]})
    else:
        print(f"{report.ok:,} of {report.checked:,} chunks are sound ({size(report.nbytes)})")
        for tier, key, reason in report.bad:
            note(f"  {tier}: {key[:16]}… {reason}; set aside")
        if report.missing:
            note(f"  {len(report.missing):,} chunks are missing; they will be computed again")
        for error in report.errors:
            note(f"  {error}")
        for name, why in left:
            note(f"  {name} was left out: {why}")
    if report.bad or report.missing or report.errors:
        raise SystemExit(FAILURES)


def invalidate_command(name: str, reason: str, *, json: bool) -> None:
    from preread.home import open_catalog

    names = manage.invalidate_context(open_catalog(load_config()), name, reason)
    if json:
        emit({"name": name, "invalidated": reason, "joined": list(names[1:])})
    else:
        print(f"{', '.join(names)} will be rebuilt before the next use")


def erase_command(model_of: str, all_tenants: bool, *, json: bool) -> None:
    from preread.contexts.catalog.scopes import model_scope, owner_scope
    from preread.home import open_catalog

    if all_tenants and not model_of:
        raise UsageError("--all-tenants goes with a model.", hint="Give --model-of NAME, too.")
    config = load_config()
    catalog = open_catalog(config)
    scope = owner = owner_scope(config.store)
    if model_of:
        fingerprint = manage.known(catalog, model_of).fingerprint
        scope = model_scope(fingerprint, "" if all_tenants else owner)
    epoch = manage.erase(catalog, scope)
    if json:
        emit({"scope": scope, "epoch": epoch})
    else:
        print(f"{scope}: all KV kept so far is void; contexts are read again at their next use")


def rm_command(name: str, *, json: bool) -> None:
    from preread.home import open_catalog

    catalog = open_catalog(load_config())
    joined = manage.joining(catalog, name)
    versions = manage.remove_context(catalog, name)
    if json:
        emit({"name": name, "versions_removed": versions, "joined": list(joined)})
    else:
        print(f"{name}: {versions} version(s) forgotten. Free the disk: preread gc")
        for other in joined:
            note(f"  its documents are still part of {other}: preread rm {other}")


def gc_command(grace: str, *, shared: bool, json: bool) -> None:
    from preread.home import open_catalog, open_sweeper

    config = load_config()
    grace_s = 0.0 if grace in ("0", "0s") else parse_ttl(grace)
    kept = config.context.versions_kept
    collected = manage.collect_garbage(open_catalog(config), kept, time.time())
    sweeper, left = open_sweeper(config, shared=shared)
    swept = sweeper.sweep(collected.live_chunks, grace_s)
    if json:
        emit(
            {
                "expired": list(collected.expired),
                "versions_removed": collected.versions,
                **swept._asdict(),
                "tiers_left": list(left),
            }
        )
    else:
        print(
            f"{swept.removed:,} chunks freed ({size(swept.nbytes)}), {swept.kept:,} kept; "
            f"{collected.versions} old version(s) forgotten"
        )
        for name in collected.expired:
            note(f"  expired, its KV may go (texts and sessions stay): {name}")
        for place in left:
            note(
                f"  {place} was left alone: homes with other catalogs may use it. Share the "
                "catalog (store.catalog), or, if nobody does: preread gc --shared"
            )
        for error in swept.errors:
            note(f"  {error}")
    if swept.errors:
        raise SystemExit(FAILURES)
