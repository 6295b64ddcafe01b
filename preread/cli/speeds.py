"""How fast a model ran a batch here, for the next forecast."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from preread.backend import BackendInfo
from preread.batch.forecast import Forecast
from preread.batch.tally import Tally
from preread.capacity.remembered import Remembered
from preread.config import load_config

LEAST = 16  # requests of a run that says something


def foreseen_s(forecast: Forecast, info: BackendInfo) -> float | None:
    """Seconds at most: tokens computed and written out take as long as in the last run."""
    rows = Remembered(load_config().home).measured(_key(info))
    if not rows or len(rows[0]) != 2 or rows[0][0] <= 0:
        return None
    tokens, seconds = rows[0]
    return (forecast.computed + forecast.output) * seconds / tokens


@contextmanager
def remembered(info: BackendInfo, tally: Tally) -> Iterator[None]:
    """What runs inside is measured and kept."""
    began, rows, tokens = time.monotonic(), tally.now, tally.computed + tally.output
    yield
    seconds, tokens = time.monotonic() - began, tally.computed + tally.output - tokens
    if tally.now - rows >= LEAST and tokens:
        Remembered(load_config().home).keep_measured(_key(info), [[float(tokens), seconds]])


def _key(info: BackendInfo) -> str:
    return f"batch | {info.name} {info.device} | {info.fingerprint}"
