"""Quality of the pseudo-labels; for reporting only."""

from collections import Counter
from collections.abc import Mapping, Sequence

from maft.evaluation.metrics import wilson
from maft.records import Problem, Record, Vote
from maft.tasks.base import Grade


class LabelQuality(Record):
    """The votes of one iteration, compared with gold answers where these are known."""

    iteration: int
    num_problems: int
    used: int
    """Questions that are trained on."""
    coverage: float
    """`used` as a share of all."""
    accuracy: float | None
    """Share of right labels among the questions trained on."""
    ci_low: float | None
    ci_high: float | None
    """Bounds of its 95 % interval."""
    accuracy_all: float | None
    """Share of right labels among all questions, no label counted as wrong."""
    mean_agreement: float
    """Mean share of agents that agree with the label."""
    mean_margin: float
    """Mean of the votes for the label minus those for the runner-up, as a share of all ballots."""
    unanimity: float
    """Share of questions on which all ballots agree."""
    abstention: float
    """Mean share of ballots that could not be read."""
    tied: int
    dropped: dict[str, int]
    """Questions not trained on, by reason."""


def label_quality(votes: Sequence[Vote], problems: Mapping[str, Problem], grade: Grade) -> LabelQuality:
    """Count votes, and grade the labels of questions with a gold answer."""
    used = [vote for vote in votes if vote.dropped is None]
    right, right_of_all = (_verdicts(some, problems, grade) for some in (used, votes))
    accuracy = sum(right) / len(right) if right else None
    low, high = (None, None) if accuracy is None else wilson(accuracy, len(right))
    n, ballots = len(votes), [max(1, vote.num_ballots) for vote in votes]
    return LabelQuality(
        iteration=votes[0].iteration,
        num_problems=n,
        used=len(used),
        coverage=len(used) / n,
        accuracy=accuracy,
        ci_low=low,
        ci_high=high,
        accuracy_all=sum(right_of_all) / len(right_of_all) if right_of_all else None,
        mean_agreement=sum(vote.agreement for vote in votes) / n,
        mean_margin=sum(vote.margin / of for vote, of in zip(votes, ballots, strict=True)) / n,
        unanimity=sum(vote.agreement == 1 for vote in votes) / n,
        abstention=sum(vote.abstained / of for vote, of in zip(votes, ballots, strict=True)) / n,
        tied=sum(vote.tied for vote in votes),
        dropped=dict(sorted(Counter(vote.dropped for vote in votes if vote.dropped is not None).items())),
    )


def _verdicts(votes: Sequence[Vote], problems: Mapping[str, Problem], grade: Grade) -> list[bool]:
    graded = (grade(problems[vote.problem_id], vote.label) for vote in votes)
    return [verdict for verdict in graded if verdict is not None]
