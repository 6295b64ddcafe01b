"""What a run has cost and saved, beside what was foreseen, and why not more was reused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preread.batch.forecast import Forecast
from preread.batch.journal import Journal
from preread.batch.misses import Miss
from preread.batch.tally import Tally


@dataclass(frozen=True, slots=True)
class Report:
    """tally: all sessions; seconds: of all sessions; saved_s: what the cached tokens would have
    taken at the rate at which a prefix was read, None where that was not measured."""

    tally: Tally
    requests: int
    twins: int
    cut_off: int
    seconds: float
    saved_s: float | None
    forecasts: Sequence[Forecast]
    misses: Sequence[Miss]

    def to_json(self) -> dict[str, Any]:
        """The documented object of `--report` and `--json`."""
        tally = self.tally
        value: dict[str, Any] = {
            "requests": self.requests,
            "run": tally.done,
            "twins": self.twins,
            "failed": tally.failed,
            "cut_off": self.cut_off,
            "from_response_cache": tally.responses,
            "tokens": {
                "prompt": tally.prompt,
                "cached": tally.reused,
                "computed": tally.computed,
                "written": tally.written,
                "output": tally.output,
                "unsure": tally.unsure,
            },
            "hit_rate": round(tally.cached_share, 5),
            "seconds": round(self.seconds, 3),
            "requests_per_s": round(tally.now / max(tally.seconds, 1e-9), 2),
            "saved_s": None if self.saved_s is None else round(self.saved_s, 1),
            "money": None,
            "predicted": [forecast.to_json() for forecast in self.forecasts],
            "misses": [miss._asdict() for miss in self.misses],
        }
        if tally.prices is not None:
            value["money"] = {
                "spent": round(tally.money, 6),
                "saved": round(tally.whole - tally.money, 6),
                "unsure": round(tally.unsure_money, 6),
                "currency": tally.prices.currency,
                "as_of": tally.prices.as_of,
            }
        return value


def make_report(
    journal: Journal, tally: Tally, forecasts: Sequence[Forecast], tokens_per_s: float,
    misses: Sequence[Miss] = (),
) -> Report:  # fmt: skip
    """tokens_per_s: at which a prefix was read without reuse; 0: not measured."""
    saved = tally.reused / tokens_per_s if tokens_per_s else None
    return Report(
        tally=tally,
        requests=journal.count("requests"),
        twins=journal.count("twins"),
        cut_off=journal.count("results", "finish = 'length'"),
        seconds=float(journal.get("seconds") or 0),
        saved_s=saved,
        forecasts=forecasts,
        misses=misses,
    )
