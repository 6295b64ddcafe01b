from __future__ import annotations

from preread.contexts.counting import LATEST, Counting
from preread.metrics import Metrics
from preread.types import Brought, Served


def load(tokens: int, miss: str = "") -> Brought:
    return Brought(tokens, 2.0, 1.0, (Served("disk", 1, tokens, 4 * tokens, 2.0),), miss, tokens)


def test_a_load_counts_once_for_all_rows_that_speak_of_it() -> None:
    metrics = Metrics()
    counting = Counting(metrics, "a.b")
    one, like = load(10, "too_short"), load(10, "too_short")
    counting.brought([one, one])
    counting.brought([one, like])  # as much again, another time
    counting.asked(3, 20, 5)
    assert metrics.snapshot() == {
        "context.a.b.rows": 3,
        "context.a.b.cached_tokens": 20,
        "context.a.b.computed_tokens": 5,
        "context.a.b.hit_tokens.disk": 20,
        "context.a.b.hit_bytes.disk": 80,
        "context.a.b.hit_ms.disk": 4.0,
        "context.a.b.miss.too_short": 2,
    }


def test_it_holds_no_more_than_the_latest() -> None:
    counting = Counting(Metrics(), "a")
    counting.brought(load(n) for n in range(3 * LATEST))
    assert len(counting._counted) == LATEST
