"""Counters as Prometheus reads them.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

TYPE = "text/plain; version=0.0.4; charset=utf-8"


# Of a context, whose name may hold dots; see contexts/counting.py.
CONTEXT = re.compile(
    r"context\.(.+)\.(?:(hit_tokens|hit_bytes|hit_ms|miss)\.([^.]+)|(rows|\w+_tokens))"
)


def exposition(counters: Mapping[str, float], gauges: Mapping[str, float]) -> str:
    """`engine.rows_kept` becomes `preread_engine_rows_kept_total`, what is counted of each context
    `preread_context_rows_total{context="handbook"}`."""
    samples: dict[str, list[str]] = {}
    for dotted, value in counters.items():
        name, labels = _labelled(dotted)
        samples.setdefault(f"{name}_total", []).append(f"{labels} {float(value)!r}\n")
    lines = [line for name, rows in samples.items() for line in _lines(name, "counter", rows)]
    for name, value in gauges.items():
        lines += _lines(_name(name), "gauge", [f" {float(value)!r}\n"])
    return "".join(lines)


def _lines(name: str, kind: str, samples: Sequence[str]) -> list[str]:
    """All of one name stand together."""
    return [f"# TYPE {name} {kind}\n", *(f"{name}{sample}" for sample in samples)]


def _labelled(dotted: str) -> tuple[str, str]:
    """Names of contexts, tiers and reasons need no escapes."""
    if (found := CONTEXT.fullmatch(dotted)) is None:
        return _name(dotted), ""
    context, kind, which, plain = found.groups()
    if plain:
        return _name(f"context.{plain}"), f'{{context="{context}"}}'
    label = "reason" if kind == "miss" else "tier"
    return _name(f"context.{kind}"), f'{{context="{context}",{label}="{which}"}}'


def _name(dotted: str) -> str:
    return "preread_" + re.sub(r"[^A-Za-z0-9_]", "_", dotted)
