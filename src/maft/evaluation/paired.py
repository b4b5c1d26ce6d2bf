"""Two methods on the same questions: the difference, its interval and its p-value.

One seed: the questions are drawn anew (paired bootstrap). Several seeds: first the seeds are drawn anew, then the
questions, the same ones for every drawn seed, since the seeds share them (hierarchical bootstrap). `mcnemar` is the
exact test for one seed and answers that are right or wrong.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import comb
from typing import Any

from maft.evaluation.metrics import wilson
from maft.records import Record

Accuracies = Mapping[str, float]
"""Accuracy of a method on each question, by problem id."""

RESAMPLES = 10_000


class Difference(Record):
    """By how much one method is better than another."""

    mean: float
    """Mean difference of accuracy, over questions and seeds."""
    low: float
    high: float
    """Bounds of the 95 % interval."""
    p_value: float
    """Two-sided, of no difference."""
    n: int
    """Questions."""
    num_seeds: int


def difference(mine: Sequence[Accuracies], other: Sequence[Accuracies], seed: int = 0) -> Difference | None:
    """Return mine minus other, or None if there is no question that all have answered.

    Args:
        mine: one entry for each seed.
        other: the same seeds, in the same order.
        seed: draws the resamples.

    >>> found = difference([{"a": 1, "b": 1, "c": 0}], [{"a": 1, "b": 1, "c": 0}])
    >>> found.mean, found.p_value
    (0.0, 1.0)
    """
    import numpy as np

    shared = sorted(set.intersection(*(set(answers) for answers in (*mine, *other))))
    if not shared:
        return None
    gaps = np.array([[a[q] - b[q] for q in shared] for a, b in zip(mine, other, strict=True)])
    num_seeds, n = gaps.shape
    seeds, questions = _drawn(num_seeds, n, seed)
    means = ((seeds @ gaps) * questions).sum(axis=1)
    # A difference of nothing must come out as nothing, whatever the order of summation.
    means[np.abs(means) < 1e-12] = 0.0
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p_value = min(1.0, 2 * (tail + 1) / (RESAMPLES + 1))
    return Difference(
        mean=float(gaps.mean()), low=float(low), high=float(high), p_value=float(p_value), n=n, num_seeds=num_seeds
    )


@lru_cache(maxsize=2)
def _drawn(num_seeds: int, n: int, seed: int) -> tuple[Any, Any]:
    """Return how often each seed and each question is drawn, as shares; the mean of a resample is then a product.

    A table of methods compares all of them by the same draws.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=RESAMPLES) / num_seeds
    return seeds, rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n


def accuracy_over(answers: Sequence[Accuracies]) -> Difference | None:
    """Return the mean accuracy over questions and seeds, as a difference to nothing, with its 95 % interval.

    The interval is Wilson's for one seed, and never narrower than that of as many questions alone.
    """
    found = difference(answers, [dict.fromkeys(of_seed, 0.0) for of_seed in answers])
    if found is None:
        return None
    low, high = wilson(found.mean, found.n)
    if len(answers) > 1:
        low, high = min(low, found.low), max(high, found.high)
    return found.model_copy(update={"low": low, "high": high})


def mcnemar(won: int, lost: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    Args:
        won: questions that only the first method has right.
        lost: questions that only the second has right.

    >>> round(mcnemar(8, 1), 4)
    0.0391
    """
    n = won + lost
    tail: int = sum(comb(n, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2.0 * tail / 2.0**n)
