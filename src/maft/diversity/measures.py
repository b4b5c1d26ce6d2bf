"""Measures of how different the agents of a society are (definitions: docs/diversity.md)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import sqrt

from maft.records import Debate, Record, Vote


class Diversity(Record):
    """The diversity of one society on held-out questions; larger is more diverse, for every measure."""

    iteration: int
    num_questions: int
    """Questions of `disagreement` and `dissimilarity`."""
    disagreement: float
    """1 - consensus: share of the agents whose last answer is not the most frequent one."""
    dissimilarity: float
    """Mean of 1 - cosine over pairs of agents' last replies, embedded."""
    embedder: str
    num_read: int = 0
    """Questions of the measures below; these need the model, and may be of fewer questions."""
    num_models: int = 1
    """Models of the agents that were read; with several, likelihood and KL are of pairs of agents with the same one."""
    likelihood: float | None = None
    """Mean negative log-likelihood of a token of another agent's last reply, in nats."""
    kl: float | None = None
    """Mean KL divergence between two agents on a token of the last replies, in nats."""
    kl_to_base: float | None = None
    """Mean KL divergence from each agent to the untrained model, in nats."""


def disagreement(debates: Sequence[Debate], votes: Mapping[str, Vote]) -> float:
    """Return 1 - consensus: the mean share of agents whose last answer is not the commonest, or was not read."""
    return _mean([1 - _agreement(debate, votes[debate.problem_id]) for debate in debates if debate.turns])


def dissimilarity(replies: Sequence[Sequence[Sequence[float]]]) -> float:
    """Return the mean of 1 - cosine over pairs, of the vectors of each agent's reply to each question.

    >>> dissimilarity([[(1, 0), (1, 0)], [(1, 0), (0, 1)]])
    0.5
    """
    return _mean([1 - _cosine(a, b) for of_question in replies for a, b in combinations(of_question, 2)])


def others_nll(nll: Sequence[Sequence[float]], speakers: Sequence[int]) -> float:
    """Return the mean negative log-likelihood of other agents' replies.

    `nll` has, for each reply, its mean negative log-likelihood under each agent; `speakers` the place of its agent.

    >>> others_nll([[0.5, 1.0, 3.0]], [0])
    2.0
    """
    return _mean(
        [value for of_reply, who in zip(nll, speakers, strict=True) for n, value in enumerate(of_reply) if n != who]
    )


def mean_kl(kl: Sequence[Sequence[Sequence[float]]]) -> float:
    """Return the mean over replies and ordered pairs of different agents.

    >>> mean_kl([[[0, 1], [3, 0]]])
    2.0
    """
    return _mean([value for of in kl for n, row in enumerate(of) for m, value in enumerate(row) if n != m])


COLLAPSED = 0.25
"""A measure below this share of the untrained society's is a collapse."""


def collapsed(measured: Sequence[Diversity]) -> list[str]:
    """Return a warning for every measure of the last society that is far below the first one's."""
    if len(measured) < 2:
        return []
    first, last = measured[0], measured[-1]
    warnings = []
    for name in ("disagreement", "dissimilarity", "likelihood"):
        before, after = getattr(first, name), getattr(last, name)
        if before and after is not None and after < COLLAPSED * before:
            warnings.append(
                f"Diversity has collapsed: {name} was {before:.3f}, and is {after:.3f} in iteration {last.iteration}. "
                "Agents that agree on everything have nothing left to learn from each other."
            )
    return warnings


def _agreement(debate: Debate, vote: Vote) -> float:
    """Return the share of the agents that give the commonest last answer."""
    classes, last = vote.classes(debate), debate.latest
    numbers = Counter(classes[turn.answer] for turn in last if turn.answer is not None)
    return max(numbers.values(), default=0) / len(last)


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    norms = sqrt(sum(x * x for x in a)) * sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 1.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
