"""Societies whose accuracy and correlation are known, and what theory says of their votes.

How hard a question is, is drawn from a beta distribution: each agent is right with that probability, independently of
the others. Over questions the agents then are right together more often than by chance, with the correlation asked for,
and the number of right answers is beta-binomial.
"""

from collections.abc import Iterator
from math import comb, exp, lgamma
from random import Random
from typing import NamedTuple

from helpers import debate

from maft.records import Debate, Problem

RIGHT, WRONG = "1", "0"


class Simulated(NamedTuple):
    """Agents that are right with probability `accuracy`, any two of them with `correlation`."""

    accuracy: float
    correlation: float
    num_agents: int = 3

    def hardness(self, rng: Random) -> float:
        """Draw the probability that an agent is right, of one question."""
        if self.correlation == 0:
            return self.accuracy
        if self.correlation == 1:
            return float(rng.random() < self.accuracy)
        return rng.betavariate(*self._shape())

    def answers(self, rng: Random) -> list[str]:
        """Draw the answers of all agents to one question."""
        right = self.hardness(rng)
        return [RIGHT if rng.random() < right else WRONG for _ in range(self.num_agents)]

    def debates(self, rng: Random, num: int) -> Iterator[Debate]:
        """Hold debates of one round."""
        for number in range(num):
            yield debate(self.answers(rng), problem_id=f"q{number}")

    def share(self, right: int) -> float:
        """Return the probability that so many of the agents are right."""
        n = self.num_agents
        if self.correlation == 0:
            return comb(n, right) * self.accuracy**right * (1 - self.accuracy) ** (n - right)
        if self.correlation == 1:
            return {n: self.accuracy, 0: 1 - self.accuracy}.get(right, 0.0)
        a, b = self._shape()
        return comb(n, right) * exp(_log_beta(right + a, n - right + b) - _log_beta(a, b))

    @property
    def majority(self) -> float:
        """The probability that the vote is right, for an odd number of agents."""
        return sum(self.share(right) for right in range(self.num_agents + 1) if 2 * right > self.num_agents)

    def _shape(self) -> tuple[float, float]:
        total = 1 / self.correlation - 1
        return self.accuracy * total, (1 - self.accuracy) * total


def problems(num: int) -> dict[str, Problem]:
    """Return the questions of `Simulated.debates`."""
    return {f"q{n}": Problem(id=f"q{n}", question=f"q{n}", gold=RIGHT) for n in range(num)}


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
