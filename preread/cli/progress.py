"""How far a batch is: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from preread.batch.tally import Tally
from preread.cli.output import ago, note

EVERY_S = 10.0  # between plain lines


def line(tally: Tally) -> str:
    """`1,200 of 5,000 · 340.0 req/s · 97.1 % cached · 11 s left · 2 failed · 0.41 USD`."""
    parts = [f"{tally.done:,} of {tally.total:,}", f"{tally.per_s:,.1f} req/s"]
    if tally.prompt:
        parts.append(f"{tally.cached_share:.1%} cached")
    if tally.left_s is not None and tally.done < tally.total:
        parts.append(f"{ago(tally.left_s)} left")
    if tally.failed:
        parts.append(f"{tally.failed:,} failed")
    if tally.prices is not None:
        parts.append(f"{tally.money:,.4f} {tally.prices.currency}")
    return " · ".join(parts)


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[Tally], None]]:
    """What to tell the tally to, from any thread."""
    if quiet:
        yield lambda tally: None
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("begins") as status:
            yield lambda tally: status.update(line(tally))
    else:
        told = time.monotonic()

        def tell(tally: Tally) -> None:
            nonlocal told
            if time.monotonic() - told >= EVERY_S:
                told = time.monotonic()
                note(line(tally))

        yield tell
