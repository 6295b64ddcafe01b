"""What a run will take, from its plan and a few counted samples: no tokenizer pass over the input.

Prefixes are counted exactly where they are few, and as many as matter otherwise; the rows' own
texts are estimated from rows that stand evenly over the line; cached is what a row has in common
with the one before it in the line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from preread.backend import Backend, BackendInfo
from preread.batch.journal import Journal
from preread.batch.keys import alike, model_digest, prefix_of
from preread.prices import Prices
from preread.types import Prefix

WALKED = 4096  # prefixes looked at in the order of the line; the rest is taken to be like them
COUNTED = 256  # of those, counted exactly
SAMPLES = 64  # rows whose own tokens are counted
LEAST = 32  # tokens in common that a texts' beginning must have to be worth sharing
SHOWN = 12  # groups

_RUNS = """
SELECT prefix_key, count(*), sum(chars), min(line.no) FROM line JOIN requests USING (idx)
  WHERE line.model = ? GROUP BY prefix_key ORDER BY min(line.no) LIMIT ?
"""
_WHOLE = """
SELECT count(*), coalesce(sum(chars), 0), count(DISTINCT prefix_key), min(line.no), max(line.no)
  FROM line JOIN requests USING (idx) WHERE line.model = ?
"""
_OUTPUT = """
SELECT order_key, count(*) FROM line JOIN requests USING (idx) WHERE line.model = ?
  GROUP BY order_key
"""
_PAIR = """
SELECT prefix_key, requests.text FROM line JOIN requests USING (idx)
  WHERE line.no >= ? AND line.no <= ? AND line.model = ? ORDER BY line.no LIMIT 2
"""


class Group(NamedTuple):
    """Requests that begin with the same messages. begins: of those, for people."""

    begins: str
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one model. Tokens; prompt = cached + computed. output: at most. money: at most, None
    where nothing is paid; whole: without reuse. notes: what is not as one may think."""

    model: str
    requests: int
    prompt: int
    cached: int
    output: int
    groups: tuple[Group, ...]
    group_count: int
    prices: Prices | None
    notes: tuple[str, ...] = ()
    per_char: float = 0.25  # tokens of a character of the rows' own texts
    per_row: float = 0.0  # tokens that a row has besides
    seconds: float | None = None  # at most, at the speed of an earlier run; None: there was none

    @property
    def computed(self) -> int:
        return self.prompt - self.cached

    @property
    def money(self) -> float | None:
        if self.prices is None:
            return None
        return self.prices.of(self.computed, self.cached, self.output)

    @property
    def whole(self) -> float | None:
        return None if self.prices is None else self.prices.of(self.prompt, 0, self.output)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Forecast:
        fields = {name: value[name] for name in Forecast.__slots__}
        fields["groups"] = tuple(Group(**group) for group in value["groups"])
        fields["notes"] = tuple(value["notes"])
        fields["prices"] = Prices(**value["prices"]) if value["prices"] else None
        return Forecast(**fields)

    def to_json(self) -> dict[str, Any]:
        value = asdict(self) | {"computed": self.computed, "money": self.money, "whole": self.whole}
        value["groups"] = [group._asdict() for group in self.groups]
        return value


@dataclass(slots=True)
class _Seen:
    """What the walk over the prefixes finds, in tokens."""

    head: int = 0  # of all rows
    once: int = 0  # of each prefix, what the one before it does not have
    groups: list[Group] = field(default_factory=list)


class _Sampled(NamedTuple):
    """Of rows: tokens besides their text, tokens per character of it, and what they have in common
    with the one before in the line where the messages before are the same: at their beginning, at
    their end."""

    per_row: float
    per_char: float
    begin: float
    end: float


async def forecast(journal: Journal, backend: Backend, model: str) -> Forecast:
    """Look at the requests of a model before they run. Computes nothing."""
    key, info = model_digest(model), backend.info
    ((rows, chars, prefixes, low, high),) = journal.read(_WHOLE, key)
    seen = await _walk(journal, backend, key)
    shown = sum(group.rows for group in seen.groups) or 1
    scale = rows / shown
    sample = await _sampled(journal, backend, key, low, high)
    shared = sample.begin
    own_total = round(sample.per_row * rows + sample.per_char * chars)
    head, once = round(seen.head * scale), round(seen.once * scale)
    by_text = round(shared * max(rows - prefixes, 0)) if shared >= LEAST else 0
    usable, notes = _usable(info, seen.groups, shared)
    cached = (head - once + by_text) if usable else 0
    if by_text and usable:
        notes.append(
            f"user texts have about {shared:,.0f} tokens in common from row to row; {info.name} "
            "finds that by itself, token by token"
        )
    if sample.end >= 2 * LEAST:
        notes.append(
            f"user texts end alike for about {sample.end:,.0f} tokens: put before what differs, in "
            "the system message, they would be read once"
        )
    if not info.exact_counts:
        notes.append(f"{info.name} counts tokens its own way: these are estimates")
    output = sum(_most(journal, order) * n for order, n in journal.read(_OUTPUT, key))
    groups = sorted(seen.groups, key=lambda group: -group.rows * group.tokens)[:SHOWN]
    return Forecast(
        model, rows, head + own_total, cached, output, tuple(groups), prefixes, info.prices,
        tuple(notes), sample.per_char, sample.per_row,
    )  # fmt: skip


def _most(journal: Journal, order: bytes) -> int:
    value = json.loads(journal.body("orders", order))
    return int(value["generate"]["max_tokens"]) if "generate" in value else 0


async def _walk(journal: Journal, backend: Backend, model: bytes) -> _Seen:
    runs = journal.read(_RUNS, model, WALKED)
    prefixes = [prefix_of(journal.body("prefixes", key)) for key, *_ in runs]
    exact = sorted(range(len(runs)), key=lambda i: -runs[i][1] * _chars(prefixes[i]))[:COUNTED]
    counts = await backend.count([prefixes[i] for i in exact])
    known = dict(zip(exact, counts, strict=True))
    ratio = sum(counts) / max(sum(_chars(prefixes[i]) for i in exact), 1)
    seen, before = _Seen(), Prefix("")
    for i, (_, n, _, _) in enumerate(runs):
        prefix = prefixes[i]
        tokens = known.get(i, round(_chars(prefix) * ratio)) if prefix != Prefix("") else 0
        kept = tokens * _common(before, prefix) // max(_chars(prefix), 1)
        seen.head += tokens * n
        seen.once += tokens - kept
        seen.groups.append(Group(_begins(prefix), n, tokens))
        before = prefix
    return seen


async def _sampled(
    journal: Journal, backend: Backend, model: bytes, low: int, high: int
) -> _Sampled:
    heads: list[Prefix] = []
    texts: list[str] = []
    begin = end = pairs = 0
    for i in range(SAMPLES):
        at = low + (high - low) * i // SAMPLES
        some = journal.read(_PAIR, at, high, model)
        heads.append(prefix_of(journal.body("prefixes", some[0][0])))
        texts.append(some[0][1])
        if len(some) == 2 and some[0][0] == some[1][0]:
            one, two = some[0][1], some[1][1]
            pairs += 1
            begin += alike(one, two)
            end += alike(one[::-1], two[::-1])
    whole = await backend.count([*heads, Prefix("")], [*texts, ""])
    before = await backend.count([*heads, Prefix("")])
    *own, besides = [a - b for a, b in zip(whole, before, strict=True)]
    per_char = max(sum(own) - besides * len(own), 0) / max(sum(map(len, texts)), 1)
    scale = per_char / max(pairs, 1)
    return _Sampled(float(besides), per_char, begin * scale, end * scale)


def _usable(info: BackendInfo, groups: Sequence[Group], shared: float) -> tuple[bool, list[str]]:
    """Whether anything that is shared is long enough for the backend to keep."""
    longest = max((group.tokens for group in groups), default=0) + shared
    if not info.min_prefix or longest >= info.min_prefix or longest < LEAST:
        return True, []
    return False, [
        f"{info.name} reuses beginnings of {info.min_prefix:,} tokens or more; what these rows "
        f"share has {longest:,.0f}: nothing will be reused. A longer shared part would be cheaper."
    ]


def _chars(prefix: Prefix) -> int:
    return len(prefix.system) + sum(len(turn.content) for turn in prefix.history)


def _common(before: Prefix, after: Prefix) -> int:
    """Characters of the messages in common at the beginning."""
    if before.system != after.system:
        return 0
    n = len(after.system)
    for old, new in zip(before.history, after.history, strict=False):
        if old != new:
            break
        n += len(new.content)
    return n


def _begins(prefix: Prefix) -> str:
    """One line of it."""
    text = prefix.system or (prefix.history[0].content if prefix.history else "")
    line = " ".join(text[:200].split())
    more = f" … +{len(prefix.history)} turns" if prefix.history else ""
    return (line if len(line) <= 60 else line[:59] + "…") + more
