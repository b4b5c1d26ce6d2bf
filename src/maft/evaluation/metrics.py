"""Numbers over scores: accuracy with its interval."""

from collections.abc import Sequence
from math import sqrt

from maft.records import Record, Score


class MethodResult(Record):
    """How one method did on the held-out questions."""

    iteration: int
    method: str
    accuracy: float | None
    """Share of right answers, unparsed ones counted as wrong; None without gold answers."""
    ci_low: float | None
    ci_high: float | None
    n: int
    """Questions."""
    unparsed: float
    """Questions (for a mean over single agents: questions per agent) whose answer could not be parsed."""
    calls: float
    """Model calls that the method needs for all n questions."""
    prompt_tokens: float
    completion_tokens: float
    failed: int = 0
    """Questions whose debate failed; they have no answer, which counts as wrong."""
    tied: int = 0
    """Questions without an answer because of a tie, with `vote.ties: abstain`."""

    @property
    def tokens(self) -> float:
        """Prompt and generated tokens together."""
        return self.prompt_tokens + self.completion_tokens


def summarize(scores: Sequence[Score]) -> MethodResult:
    """Sum up the scores of one method; needs at least one."""
    graded = [score.accuracy for score in scores if score.accuracy is not None]
    accuracy = sum(graded) / len(graded) if graded else None
    low, high = interval(graded) if graded else (None, None)
    return MethodResult(
        iteration=scores[0].iteration,
        method=scores[0].method,
        accuracy=accuracy,
        ci_low=low,
        ci_high=high,
        n=len(scores),
        unparsed=sum(s.answers.count(None) / len(s.answers) for s in scores if s.no_answer is None),
        calls=sum(score.calls for score in scores),
        prompt_tokens=sum(score.prompt_tokens for score in scores),
        completion_tokens=sum(score.completion_tokens for score in scores),
        failed=sum(score.no_answer == "failed" for score in scores),
        tied=sum(score.no_answer == "tied" for score in scores),
    )


def interval(accuracies: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over questions, of accuracies or other shares.

    Wilson's interval. Where questions have several answers each, their mean varies less from question to question; the
    interval is then Wilson's with effective sample size n = p(1-p)/variance.

    >>> interval([1, 0, 1, 0]) == wilson(0.5, 4)
    True
    >>> interval([0.6, 0.4, 0.6, 0.4])[0] > wilson(0.5, 4)[0]
    True
    """
    n, mean = len(accuracies), sum(accuracies) / len(accuracies)
    squares = sum((accuracy - mean) ** 2 for accuracy in accuracies)
    if n == 1 or squares == 0:
        return wilson(mean, n)
    return wilson(mean, max(n, mean * (1 - mean) * n * (n - 1) / squares))


def wilson(share: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a share of n answers to different questions (95 % by default).

    >>> [round(bound, 3) for bound in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    centre = share + z * z / (2 * n)
    spread = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
