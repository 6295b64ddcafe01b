"""A line through measurements of which some are wild."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ROUNDS = 24
SHARE = 0.35  # of slow measurements' weight: what else runs makes them slower, never quicker
PREFER_FEWER = 0.05  # of the error: what one more coefficient must at least save


def fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, ...]:
    """Coefficients c >= 0 so that rows · c (all > 0) is about the measured seconds (> 0): the least
    mean of |log(predicted / measured)|, those that took longer weighted a little less. So 1 ms
    counts as 1 s does, twice too much as half, and a wild one moves nothing: with one coefficient
    it is a quantile (Koenker and Bassett, Econometrica 1978). The first is always positive; of
    every set of others that may be so the best, and where they fit alike the smaller set."""
    import numpy as np

    matrix, target = np.asarray(rows, np.float64), np.log(np.asarray(seconds, np.float64))
    width = matrix.shape[1]
    best, least = np.zeros(width), np.inf
    for count in range(width):
        for columns in ([0, *rest] for rest in combinations(range(1, width), count)):
            found = _positive(matrix[:, columns], target)
            error = float(_loss(target - np.log(matrix[:, columns] @ found)).mean())
            cost = error + PREFER_FEWER * count * (error + 1e-3)
            if cost < least * (1 - 1e-9):
                least, best = cost, np.zeros(width)
                best[columns] = found
    return tuple(map(float, best))


def _positive(matrix: Array, target: Array) -> Array:
    """Gauss-Newton steps in the logarithms of the coefficients, each reweighted for the least
    absolute error (Schlossmacher, JASA 1973), small ones more and more alike; begun where each
    column does an equal share alone."""
    import numpy as np

    width = matrix.shape[1]
    logs = np.median(target[:, None] - np.log(matrix), axis=0) - np.log(width)
    for n in range(ROUNDS):
        parts = matrix * np.exp(logs)
        whole = parts.sum(axis=1)
        error = target - np.log(whole)
        slopes = parts / whole[:, None]
        weighted = slopes.T * _loss(error) / np.maximum(error**2, max(1e-3, 0.6**n) ** 2)
        ridge = np.eye(width) * 1e-9 * len(target)
        step = np.linalg.solve(weighted @ slopes + ridge, weighted @ error).clip(-2, 2)
        logs = logs + step
    found: Array = np.exp(logs)
    return found


def _loss(error: Array) -> Array:
    """What is left of a measurement counts less where it took longer than predicted."""
    import numpy as np

    lost: Array = np.where(error > 0, SHARE * error, (SHARE - 1) * error)
    return lost
