"""`preread doctor`: this machine, the home, and law 1 on the user's own weights."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass

from preread.cli.output import FAILURES, emit, size
from preread.config import Config, load_config
from preread.errors import PrereadError


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. ok None: worth knowing, neither good nor bad. advice: what to do when not ok."""

    what: str
    ok: bool | None
    detail: str
    advice: str = ""


def doctor_command(model: str, *, prompts: int, json: bool) -> None:
    """Exit code 3 when something is wrong."""
    config = load_config()
    checks: tuple[Callable[[], list[Finding]], ...] = (
        _versions,
        lambda: _home(config),
        _search,
        lambda: _tiers(config),
        lambda: _chunks(config),
        lambda: _resident(config),
        lambda: _model(model, prompts),
        lambda: _agreement(model),
    )
    findings = []
    for check in checks:
        for finding in _guarded(check):
            findings.append(finding)
            if not json:
                mark = {True: "ok  ", False: "BAD ", None: "    "}[finding.ok]
                print(f"{mark}{finding.what:12} {finding.detail}")
                if finding.ok is False and finding.advice:
                    print(f"    {'':12} {finding.advice}")
    bad = [f for f in findings if f.ok is False]
    if json:
        emit({"ok": not bad, "findings": [asdict(f) for f in findings]})
    if bad:
        raise SystemExit(FAILURES)


def _guarded(check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except PrereadError as exc:
        return [Finding(type(exc).__name__, False, exc.message, exc.hint)]


def _versions() -> list[Finding]:
    import numpy
    import torch

    import preread

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return [
        Finding("preread", None, f"{preread.__version__}, Python {platform.python_version()}"),
        Finding("torch", None, f"{torch.__version__}, numpy {numpy.__version__}, {gpu}"),
        Finding("processor", None, f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"),
    ]


def _home(config: Config) -> list[Finding]:
    home = config.home
    there = home
    while not there.exists():
        there = there.parent
    writable = os.access(there, os.W_OK | os.X_OK)
    free = shutil.disk_usage(there).free
    detail = f"{home}: {size(free)} free"
    advice = "Make it writable, or set PREREAD_HOME to a folder that is."
    budget = config.store.disk_budget_mb * 1024 * 1024
    room = Finding(
        "disk budget",
        free > min(budget, 2**30) or None,
        f"{size(budget)} for kept KV",
        "Lower store.disk_budget_mb in config.toml.",
    )
    return [Finding("home", writable, detail, advice), _catalog(config), room]


def _catalog(config: Config) -> Finding:
    """Asked what it holds, so one that cannot be reached is found."""
    from preread.home import open_catalog

    try:
        contexts = len(open_catalog(config).summaries())
    except PrereadError as exc:
        return Finding("catalog", False, exc.message, exc.hint)
    where = "shared, by store.catalog" if config.store.catalog else "of this home"
    return Finding("catalog", True, f"{contexts} context(s), {where}")


def _search() -> list[Finding]:
    try:
        with sqlite3.connect(":memory:") as db:
            db.execute("CREATE VIRTUAL TABLE t USING fts5(x)")
        db.close()
    except sqlite3.OperationalError as exc:
        return [Finding("search", False, f"SQLite has no FTS5: {exc}", "Use a Python with FTS5.")]
    return [Finding("search", True, f"SQLite {sqlite3.sqlite_version} with FTS5")]


def _tiers(config: Config) -> list[Finding]:
    """Each is asked what it holds, so one that cannot be reached is found."""
    from preread.home import open_tiers

    findings = []
    for tier in open_tiers(config):
        try:
            usage = tier.usage()
        except PrereadError as exc:
            findings.append(Finding(f"tier {tier.name}", False, exc.message, exc.hint))
            continue
        room = f" of {size(usage.budget)}" if usage.budget else ""
        detail = f"{usage.chunks:,} chunks, {size(usage.nbytes)}{room}"
        findings.append(Finding(f"tier {tier.name}", True, detail))
    return [
        *(findings or [Finding("tiers", None, "none: KV is kept in memory only")]),
        _seal(config),
    ]


def _seal(config: Config) -> Finding:
    """Which keys there are shows in nothing but their number."""
    from preread.home import open_keyring

    if (ring := open_keyring(config)) is None:
        return Finding("seal", None, "none: kept KV can be read by who can read a tier")
    ring.seal(b"")  # is the package there?
    return Finding("seal", True, f"kept KV is sealed; {len(ring.keys)} key(s), the first one seals")


def _chunks(config: Config) -> list[Finding]:
    from preread.home import open_upkeep

    report = open_upkeep(config).verify()
    if not report.checked and not report.errors:
        return [Finding("chunks", None, "none yet")]
    detail = f"{report.ok:,} of {report.checked:,} sound, {size(report.nbytes)}"
    advice = "Damaged ones were set aside and will be recomputed."
    return [Finding("chunks", not report.bad and not report.errors, detail, advice)]


def _resident(config: Config) -> list[Finding]:
    from preread.cli.client import status

    running = status(config.home, config.resident.connect_timeout_s)
    if running is None:
        return [Finding("resident", None, "not running (`preread up` starts one)")]
    return [Finding("resident", True, f"pid {running['pid']}, model {running['model']}")]


def _model(model: str, prompts: int) -> list[Finding]:
    from preread.app import open as open_engine

    with open_engine(model) as engine:
        info = engine.info
        known = "" if info.effective_known else " (not measured)"
        described = (
            f"{info.model}: {engine.parameters / 1e6:,.1f} M parameters, {info.dtype} on "
            f"{info.device}, limit {info.limit:,}, effective {info.effective_limit:,}{known}"
        )
        notes = [Finding("note", None, note) for note in engine.notes]
    findings = [Finding("model", True, described), *notes]
    findings.append(Finding("fingerprint", None, info.fingerprint))
    return [*findings, *([_parity(model, prompts)] if prompts else [])]


def _agreement(model: str) -> list[Finding]:
    """What weights_precision and kv_precision change, on a page of plain English."""
    from preread.app.compose import check_agreement
    from preread.cli.demo import demo_folder

    pages = sorted(demo_folder().glob("*.md"))
    measured = check_agreement(model, "\n\n".join(p.read_text(encoding="utf-8") for p in pages))
    return [] if measured is None else [Finding("agreement", None, str(measured))]


def _parity(model: str, prompts: int) -> Finding:
    """Law 1: cached equals uncached, on these weights."""
    from preread.app.compose import check_parity

    report = check_parity(model, prompts=prompts)
    advice = "Please report this with your model, torch version and processor."
    return Finding("parity", report.ok, f"cached = uncached: {report}", advice)
