"""Counters as Prometheus reads them.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(counters: Mapping[str, float], gauges: Mapping[str, float]) -> str:
    """`engine.rows_kept` becomes `preread_engine_rows_kept_total`."""
    lines = []
    for name, value in counters.items():
        lines += _lines(f"{_name(name)}_total", "counter", value)
    for name, value in gauges.items():
        lines += _lines(_name(name), "gauge", value)
    return "".join(lines)


def _lines(name: str, kind: str, value: float) -> list[str]:
    return [f"# TYPE {name} {kind}\n", f"{name} {float(value)!r}\n"]


def _name(dotted: str) -> str:
    return "preread_" + re.sub(r"[^A-Za-z0-9_]", "_", dotted)
