"""How good the pseudo-labels were; for reporting only."""

from collections import Counter
from collections.abc import Mapping, Sequence

from maft.records import Problem, Record, Vote
from maft.tasks.base import Grade


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
    """Count votes, and grade the labels of the questions whose answer is known."""
    used = [vote for vote in votes if vote.dropped is None]
    return LabelQuality(
        iteration=votes[0].iteration,
        num_problems=len(votes),
        used=len(used),
        coverage=len(used) / len(votes),
        accuracy=_accuracy(used, problems, grade),
        accuracy_all=_accuracy(votes, problems, grade),
        mean_agreement=sum(vote.agreement for vote in votes) / len(votes),
        mean_margin=sum(vote.margin / max(1, vote.num_ballots) for vote in votes) / len(votes),
        unanimity=sum(vote.agreement == 1 for vote in votes) / len(votes),
        abstention=sum(vote.abstained / max(1, vote.num_ballots) for vote in votes) / len(votes),
        tied=sum(vote.tied for vote in votes),
        dropped=dict(sorted(Counter(vote.dropped for vote in votes if vote.dropped is not None).items())),
    )


def _accuracy(votes: Sequence[Vote], problems: Mapping[str, Problem], grade: Grade) -> float | None:
    graded = [grade(problems[vote.problem_id], vote.label) for vote in votes]
    right = [verdict for verdict in graded if verdict is not None]
    return sum(right) / len(right) if right else None
