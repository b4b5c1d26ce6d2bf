"""How good the pseudo-labels were; for reporting only."""

from collections import Counter
from collections.abc import Mapping, Sequence

from maft.answers import equivalent
from maft.records import Problem, Record, Vote


class LabelQuality(Record):
    """The votes of one iteration, held against the gold answers where there are any."""

    iteration: int
    num_problems: int
    used: int
    """Questions that are trained on."""
    coverage: float
    """`used` as a share of all."""
    accuracy: float | None
    """Share of right labels among the questions trained on."""
    accuracy_all: float | None
    """Share of right labels among all questions, no label counted as wrong."""
    mean_agreement: float
    """Mean share of agents that agree with the label."""
    tied: int
    dropped: dict[str, int]
    """Questions not trained on, by reason."""


def label_quality(votes: Sequence[Vote], problems: Mapping[str, Problem]) -> LabelQuality:
    """Count votes, and grade the labels of the questions whose answer is known."""
    used = [vote for vote in votes if vote.dropped is None]
    return LabelQuality(
        iteration=votes[0].iteration,
        num_problems=len(votes),
        used=len(used),
        coverage=len(used) / len(votes),
        accuracy=_accuracy(used, problems),
        accuracy_all=_accuracy(votes, problems),
        mean_agreement=sum(vote.agreement for vote in votes) / len(votes),
        tied=sum(vote.tied for vote in votes),
        dropped=dict(sorted(Counter(vote.dropped for vote in votes if vote.dropped is not None).items())),
    )


def _accuracy(votes: Sequence[Vote], problems: Mapping[str, Problem]) -> float | None:
    right = [
        vote.label is not None and equivalent(vote.label, gold)
        for vote in votes
        if (gold := problems[vote.problem_id].gold) is not None
    ]
    return sum(right) / len(right) if right else None
