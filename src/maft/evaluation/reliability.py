"""How often the vote is right, by the votes that its winner has."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from maft.records import Problem, Vote
from maft.tasks.base import Grade


class Level(NamedTuple):
    """Questions whose winner has the same number of votes."""

    votes: int
    """Answers that agree with the winner; 0 where there is none."""
    questions: int
    graded: int
    """Questions among them whose gold answer is known."""
    right: int
    """Winners among them that are the gold answer."""


def most_ballots(votes: Iterable[Vote]) -> int:
    """Return the largest number of ballots of a question; a debate that failed has none."""
    return max((vote.num_ballots for vote in votes), default=0)


def levels(votes: Iterable[Vote], problems: Mapping[str, Problem], grade: Grade, top: int) -> tuple[Level, ...]:
    """Count questions and right winners by agreement, from `top` votes down to 0."""
    questions: Counter[int] = Counter()
    graded: Counter[int] = Counter()
    right: Counter[int] = Counter()
    for vote in votes:
        verdict = grade(problems[vote.problem_id], vote.label)
        questions[vote.votes] += 1
        graded[vote.votes] += verdict is not None
        right[vote.votes] += verdict is True
    return tuple(Level(n, questions[n], graded[n], right[n]) for n in range(top, -1, -1))
