"""Samples of trials for people: a table, a plot for the terminal, a page, rows of JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from preread.capacity.trial import Sample
from preread.cli.output import size, table
from preread.cli.pages import page
from preread.cli.plots import Plot, line_plot, text_bars

HEADERS = ("sequences", "requests/min", "gain", "of limit", "tokens/s", "first token s",
           "request s", "p95 s", "KV/sequence", "process")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """about: model, machine and load, see `Trials.about`; own: bytes of one sequence's KV; limits:
    requests a second that the roofline allows, for each sample, empty where unknown; chosen: the
    number of sequences to mark, 0: none."""

    title: str
    about: dict[str, Any]
    samples: Sequence[Sample]
    own: int
    limits: Sequence[float]
    said: Sequence[str]
    chosen: int = 0

    @property
    def headline(self) -> str:
        about, load = self.about, self.about["load"]
        return (
            f"{Path(about['model']).name}, {about['dtype']}, on {about['machine']}: "
            f"{load['context']:,} shared + {load['question']:,} own tokens, {load['output']:,} "
            "tokens out"
        )

    def shares(self) -> list[float | None]:
        """Of the limit, for each sample."""
        limits = self.limits or [0.0] * len(self.samples)
        return [
            s.requests_per_s / limit if limit else None
            for s, limit in zip(self.samples, limits, strict=True)
        ]

    def rows(self) -> list[tuple[str, ...]]:
        """Seed 3's table, in the order of HEADERS."""
        first = self.samples[0].requests_per_s
        return [
            (
                f"{s.sequences:,}",
                f"{60 * s.requests_per_s:,.1f}",
                f"{s.requests_per_s / first:.2f}",
                "-" if share is None else f"{share:.0%}",
                f"{s.tokens_per_s:,.1f}",
                f"{s.first_token_s:.3f}",
                f"{s.request_s:.3f}",
                f"{s.request_p95_s:.3f}",
                size(self.own),
                size(s.peak),
            )
            for s, share in zip(self.samples, self.shares(), strict=True)
        ]

    def to_json(self) -> list[dict[str, Any]]:
        """An object for each sample."""
        limits = self.limits or [0.0] * len(self.samples)
        return [
            {
                **s.to_json(),
                "kv_bytes_per_sequence": self.own,
                "limit_requests_per_min": 60 * limit if limit else None,
                "limit_share": share,
            }
            for s, limit, share in zip(self.samples, limits, self.shares(), strict=True)
        ]

    def plots(self) -> Iterator[Plot]:
        """Requests per minute and seconds of a request, by sequences at once."""
        counts = [s.sequences for s in self.samples]
        rates = [60 * s.requests_per_s for s in self.samples]
        marks = [
            (float(n), r, f"{n}") for n, r in zip(counts, rates, strict=True) if n == self.chosen
        ]
        lines = [("measured", rates)]
        if self.limits:
            lines.append(("limit", [60 * limit for limit in self.limits]))
        about = "By sequences at once; limit: what products and memory allow on this machine."
        yield line_plot("Requests per minute", about, lines, counts, marks[0] if marks else None)
        times = [
            ("last token", [s.request_s for s in self.samples]),
            ("first token", [s.first_token_s for s in self.samples]),
        ]
        yield line_plot("Seconds of a request", "Medians, by sequences at once.", times, counts)

    def page(self, when: datetime) -> str:
        """See assets/sequences.html.jinja."""
        return page(
            "sequences",
            when=when,
            title=self.title,
            headline=self.headline,
            sentences=self.said,
            headers=HEADERS,
            rows=self.rows(),
            plots=list(self.plots()),
        )

    def show(self) -> None:
        """On a terminal."""
        print(self.headline)
        table(HEADERS, self.rows())
        print()
        bars = [
            (
                f"{s.sequences:,}",
                s.requests_per_s,
                f"{60 * s.requests_per_s:,.1f} requests/min"
                + (" <-" if s.sequences == self.chosen else ""),
            )
            for s in self.samples
        ]
        for line in (*text_bars(bars), "", *self.said):
            print(line)
