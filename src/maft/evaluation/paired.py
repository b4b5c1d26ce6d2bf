"""Two methods on the same questions: the difference, its interval and its p-value.

Intervals and tests are Student's. One seed: questions are a draw from many. Several seeds: seeds and questions both
are, crossed, since the seeds share the questions; how much each varies is estimated from the mean squares, with the
degrees of freedom of Satterthwaite. (A bootstrap over three seeds does not hold what it promises, see docs/log.md.)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from maft.evaluation.metrics import interval, wilson
from maft.records import Record, Score

Accuracies = Mapping[str, float]
"""Accuracy of a method on each question, by problem id."""


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
    detectable: float | None = None
    """The true difference that four of five such comparisons would find (two-sided, 5 %); None where the spread cannot
    be told."""

    @property
    def verdict(self) -> str:
        """`more`, `less`, or `unclear` where the interval holds 0."""
        return "more" if self.low > 0 else "less" if self.high < 0 else "unclear"


def accuracies(scores: Iterable[Score]) -> Accuracies:
    """Return the accuracy on each question whose gold answer is known."""
    return {score.problem_id: score.accuracy for score in scores if score.accuracy is not None}


def difference(mine: Sequence[Accuracies], other: Sequence[Accuracies]) -> Difference | None:
    """Return mine minus other, with an entry for each seed, or None if there is no question that all have answered.

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
    mean, spread, detectable = float(gaps.mean()), _spread(gaps), None
    if spread is None:
        low, high, p_value = _without_spread(mean, n)
    else:
        error = spread.variance**0.5
        quantile, p_value = _student(spread.freedom, abs(mean) / error)
        low, high = max(-1.0, mean - quantile * error), min(1.0, mean + quantile * error)
        detectable = min(1.0, (quantile + _student(spread.freedom, 0, 0.6)[0]) * error)
    return Difference(mean=mean, low=low, high=high, p_value=p_value, n=n, num_seeds=num_seeds, detectable=detectable)


def holm(p_values: Mapping[str, float], size: int | None = None) -> dict[str, float]:
    """Return the p-values of a family of tests, corrected for their number (Holm, 1979); any dependence is allowed.

    `size` is that of the family with tests that are still to come; None if there are none.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03}), holm({"a": 0.01}, 3)
    ({'a': 0.03, 'c': 0.06, 'b': 0.06}, {'a': 0.03})
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, ((size or len(p_values)) - place) * p_values[name]))
        corrected[name] = largest
    return corrected


def accuracy_over(answers: Sequence[Accuracies]) -> Difference | None:
    """Return the mean accuracy over questions and seeds, as a difference to nothing, with its 95 % interval.

    The interval is Wilson's with effective sample size n = p(1-p)/variance.
    """
    import numpy as np

    overall = difference(answers, [dict.fromkeys(of_seed, 0.0) for of_seed in answers])
    if overall is None:
        return None
    shared = sorted(set.intersection(*map(set, answers)))
    values = np.array([[of_seed[q] for q in shared] for of_seed in answers])
    spread = _spread(values) if min(values.shape) > 1 else None
    if spread is None or overall.mean in (0, 1):
        low, high = interval(list(values.mean(axis=0)))
    else:
        quantile, _ = _student(spread.freedom, 0)
        low, high = wilson(overall.mean, overall.mean * (1 - overall.mean) / spread.variance, quantile)
    return overall.model_copy(update={"low": low, "high": high})


def _without_spread(gap: float, n: int) -> tuple[float, float, float]:
    """Return interval and p-value where n questions have the same difference, which does not say that all would.

    The share of questions with another difference is at most 1 - 0.025^(1/n) (Clopper and Pearson, 1934).

    >>> round(_without_spread(0.0, 12)[1], 3)
    0.265
    """
    others = 1 - 0.025 ** (1 / n)
    return gap - others * (gap + 1), gap + others * (1 - gap), 1.0 if gap == 0 else min(1.0, 2 * 0.5**n)


class _Spread(NamedTuple):
    """How much a mean over seeds and questions would vary if both were drawn anew."""

    variance: float
    freedom: float
    """Degrees of freedom of the variance, as Satterthwaite (1946) has them."""


def _spread(values: Any) -> _Spread | None:
    """Return the spread of the mean of values by seed and question; None where it cannot be told from these."""
    num_seeds, n = values.shape
    if values.size == 1:
        return None
    if min(num_seeds, n) == 1:
        total, freedom = values.var(ddof=1), values.size - 1.0
    else:
        of_seeds, of_questions = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
        rest = values - of_seeds - of_questions + values.mean()
        free = (n - 1, num_seeds - 1, (n - 1) * (num_seeds - 1))
        squares = (num_seeds * of_questions.var(ddof=1), n * of_seeds.var(ddof=1), (rest**2).sum() / free[2])
        if squares[1] <= squares[2]:  # the seeds do not differ by more than chance
            squares = (squares[0], 0.0, 0.0)
        total = squares[0] + squares[1] - squares[2]
        parts = sum(square**2 / number for square, number in zip(squares, free, strict=True))
        freedom = total**2 / parts if parts else 1.0
    return None if total < 1e-12 else _Spread(float(total / values.size), float(min(max(freedom, 1.0), 10_000.0)))


def _student(freedom: float, t: float, share: float = 0.95) -> tuple[float, float]:
    """Return the quantile of Student's distribution that a share lie below, both signs, and the two-sided p-value of t.

    >>> [round(x, 3) for x in _student(2, 4.303)]
    [4.303, 0.05]
    """
    import numpy as np

    # With t = sqrt(freedom) * tan(angle), the density of the angle is a power of its cosine.
    angle = np.linspace(0, np.pi / 2, 10_001)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    below /= below[-1]
    quantile = np.sqrt(freedom) * np.tan(np.interp(share, below, angle))
    return float(quantile), float(1 - np.interp(np.arctan(t / np.sqrt(freedom)), angle, below))
