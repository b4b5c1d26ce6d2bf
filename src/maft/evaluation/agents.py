"""How often single agents are right: generators in the first round, critics with the last answer of each.

An agent that is not asked again keeps its answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from maft.evaluation.metrics import interval
from maft.records import Debate, Problem, Turn
from maft.tasks.base import Grade


class AgentAccuracy(NamedTuple):
    """One agent of one iteration on the held-out questions, or the mean of all that have its role."""

    iteration: int
    role: Literal["generator", "critic"]
    agent: int | None
    """None is the mean over agents."""
    n: int
    """Questions."""
    accuracy: float
    low: float
    high: float
    """Bounds of the 95 % interval."""


def agent_accuracies(
    debates: Iterable[Debate], problems: Mapping[str, Problem], iteration: int, num_agents: int, grade: Grade
) -> list[AgentAccuracy]:
    """Return the mean of the generators and each of them, then the same of the critics, if there are any.

    Questions without a known answer are left out. An answer that could not be read, or that a failed debate never had,
    is wrong.
    """
    right_by_role: dict[Literal["generator", "critic"], list[set[int]]] = {"generator": [], "critic": []}
    """Who was right in the first round, and in the end, of each debate."""
    last = 0
    for debate in debates:
        problem = problems[debate.problem_id]
        if grade(problem, None) is not None:
            final = debate.latest if debate.error is None else ()
            right_by_role["generator"].append(_right(debate.round(1), problem, grade))
            right_by_role["critic"].append(_right(final, problem, grade))
            last = max([last, *(turn.round for turn in debate.turns)])
    found = []
    for role, right in list(right_by_role.items())[: min(last, 2)]:
        by_agent = [[agent in of_question for of_question in right] for agent in range(num_agents)]
        mean = [len(of_question) / num_agents for of_question in right]
        found.append(_accuracy(iteration, role, None, mean))
        found += [_accuracy(iteration, role, agent, of_agent) for agent, of_agent in enumerate(by_agent)]
    return found


def _right(turns: Sequence[Turn], problem: Problem, grade: Grade) -> set[int]:
    return {turn.agent for turn in turns if grade(problem, turn.answer)}


def _accuracy(
    iteration: int, role: Literal["generator", "critic"], agent: int | None, right: Sequence[float]
) -> AgentAccuracy:
    accuracy = sum(right) / len(right)
    return AgentAccuracy(iteration, role, agent, len(right), accuracy, *interval(right))
