"""What a run has cost and saved, beside what was foreseen, and why not more was reused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from preread.batch.forecast import Forecast
from preread.batch.journal import Journal
from preread.batch.keys import alike, prefix_of
from preread.batch.tally import Tally

WHY = 3  # misses that are explained
LOOKED_AT = 2048  # prefixes compared, those of most rows first
AROUND = 24  # characters shown on each side

_PREFIXES = """
SELECT prefix_key, count(*), min(file), min(line) FROM line JOIN requests USING (idx)
  GROUP BY prefix_key ORDER BY count(*) DESC LIMIT ?
"""


class Miss(NamedTuple):
    """Two beginnings that are alike up to a character, and then are read apart. at: that character
    of the one in row `line`; lost: characters behind it that are read again."""

    file: int
    line: int
    other_file: int
    other_line: int
    at: int
    here: str
    there: str
    lost: int


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
        tally, prompt = self.tally, self.tally.cached + self.tally.computed
        value: dict[str, Any] = {
            "requests": self.requests,
            "run": tally.done,
            "twins": self.twins,
            "failed": tally.failed,
            "cut_off": self.cut_off,
            "from_response_cache": tally.responses,
            "tokens": {
                "prompt": prompt,
                "cached": tally.cached,
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
                "currency": tally.prices.currency,
                "as_of": tally.prices.as_of,
            }
        return value


def make_report(
    journal: Journal, tally: Tally, forecasts: Sequence[Forecast], tokens_per_s: float
) -> Report:
    """tokens_per_s: at which a prefix was read without reuse; 0: not measured."""
    saved = tally.cached / tokens_per_s if tokens_per_s else None
    return Report(
        tally=tally,
        requests=journal.count("requests"),
        twins=journal.count("twins"),
        cut_off=journal.count("results", "finish = 'length'"),
        seconds=float(journal.get("seconds") or 0),
        saved_s=saved,
        forecasts=forecasts,
        misses=misses(journal),
    )


def misses(journal: Journal) -> list[Miss]:
    """The beginnings that are most alike and yet apart: what one might mend."""
    rows = journal.read(_PREFIXES, LOOKED_AT)
    texts = sorted((_text(journal, key), n, file, line) for key, n, file, line in rows)
    found = []
    for (one, _, file, line), (two, _, other_file, other_line) in pairwise(texts):
        at = alike(one, two)
        lost = len(two) - at
        if lost and at < len(one):  # else the one only goes on where the other ends
            here, there = _around(one, at), _around(two, at)
            found.append(Miss(file, line, other_file, other_line, at, here, there, lost))
    return sorted(found, key=lambda miss: -min(miss.at, miss.lost))[:WHY]


def _text(journal: Journal, key: bytes) -> str:
    prefix = prefix_of(journal.body("prefixes", key))
    return "\n".join([prefix.system, *(turn.content for turn in prefix.history)])


def _around(text: str, at: int) -> str:
    return text[max(at - AROUND, 0) : at + AROUND]
