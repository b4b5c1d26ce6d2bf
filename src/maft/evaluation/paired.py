"""Two methods on the same questions: the difference, its interval and its p-value.

One seed: the questions are drawn anew (paired bootstrap). Several seeds: seeds and questions are both taken for draws
from many, crossed, since the seeds share the questions. How much each varies is estimated from the mean squares; the
interval is Student's with the degrees of freedom of Satterthwaite. (A bootstrap over so few seeds does not hold what it
promises: with three of them, its 95 % were anything from 80 %, where seeds differ much, to 99.7 %, where they do not.)
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from maft.evaluation.metrics import interval, wilson
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
    if np.ptp(gaps) < 1e-12:
        return _without_spread(float(gaps.mean()), n, num_seeds)
    spread = _spread(gaps)
    if spread is not None:
        mean, error = float(gaps.mean()), float(np.sqrt(spread.variance))
        quantile, p_value = _student(spread.freedom, abs(mean) / error)
        low, high = max(-1.0, mean - quantile * error), min(1.0, mean + quantile * error)
        return Difference(mean=mean, low=low, high=high, p_value=p_value, n=n, num_seeds=num_seeds)
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


def _without_spread(gap: float, n: int, num_seeds: int) -> Difference:
    """Return the difference where it is the same on every question: that n agree does not say that all would.

    The share of questions with another difference is at most 1 - 0.025^(1/n) (Clopper and Pearson, 1934).

    >>> round(_without_spread(0.0, 12, 1).high, 3)
    0.265
    """
    others = 1 - 0.025 ** (1 / n)
    p_value = 1.0 if gap == 0 else min(1.0, 2 * 0.5**n)
    low, high = gap - others * (gap + 1), gap + others * (1 - gap)
    return Difference(mean=gap, low=low, high=high, p_value=p_value, n=n, num_seeds=num_seeds)


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

    The interval is Wilson's with effective sample size n = p(1-p)/variance.
    """
    import numpy as np

    found = difference(answers, [dict.fromkeys(of_seed, 0.0) for of_seed in answers])
    if found is None:
        return None
    shared = sorted(set.intersection(*map(set, answers)))
    accuracies = np.array([[of_seed[q] for q in shared] for of_seed in answers])
    spread = _spread(accuracies)
    if spread is None or found.mean in (0, 1):
        low, high = interval(list(accuracies.mean(axis=0)))
    else:
        quantile, _ = _student(spread.freedom, 0)
        low, high = wilson(found.mean, found.mean * (1 - found.mean) / spread.variance, quantile)
    return found.model_copy(update={"low": low, "high": high})


class _Spread(NamedTuple):
    """How much a mean over seeds and questions would vary if both were drawn anew."""

    variance: float
    freedom: float
    """Degrees of freedom of the variance, as Satterthwaite (1946) has them."""


def _spread(values: Any) -> _Spread | None:
    """Return the spread of the mean of values by seed and question; None where it cannot be told from these."""
    num_seeds, n = values.shape
    if num_seeds == 1 or n == 1:
        return None
    of_seeds, of_questions = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    rest = values - of_seeds - of_questions + values.mean()
    free = (n - 1, num_seeds - 1, (n - 1) * (num_seeds - 1))
    squares = (num_seeds * of_questions.var(ddof=1), n * of_seeds.var(ddof=1), (rest**2).sum() / free[2])
    total = squares[0] + squares[1] - squares[2]
    if squares[1] <= squares[2]:  # the seeds do not differ by more than chance
        total, squares = squares[0], (squares[0], 0.0, 0.0)
    if total < 1e-12:
        return None
    freedom = total**2 / sum(square**2 / number for square, number in zip(squares, free, strict=True))
    return _Spread(float(total / values.size), float(min(max(freedom, 1.0), 10_000.0)))


def _student(freedom: float, t: float) -> tuple[float, float]:
    """Return the quantile of Student's distribution that 95 % lie below, both signs, and the two-sided p-value of t.

    >>> [round(x, 3) for x in _student(2, 4.303)]
    [4.303, 0.05]
    """
    import numpy as np

    # With t = sqrt(freedom) * tan(angle), the density of the angle is a power of its cosine.
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    below /= below[-1]
    quantile = np.sqrt(freedom) * np.tan(np.interp(0.95, below, angle))
    return float(quantile), float(1 - np.interp(np.arctan(t / np.sqrt(freedom)), angle, below))
