"""How often single agents are right: generators in the first round, critics with the last answer of each.

An agent that is not asked again keeps its answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from maft.evaluation.metrics import interval
from maft.records import Debate, Problem
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

    Questions without a known answer are left out. An answer that could not be read, or that is missing because its
    debate failed, is wrong.
    """
    right_by_role: dict[Literal["generator", "critic"], list[set[int]]] = {"generator": [], "critic": []}
    """Agents that were right in the first round and in the end, for each debate."""
    last = 0
    for debate in debates:
        problem = problems[debate.problem_id]
        if grade(problem, None) is not None:
            final = debate.latest if debate.error is None else ()
            for role, turns in zip(right_by_role, (debate.round(1), final), strict=True):
                right_by_role[role].append({turn.agent for turn in turns if grade(problem, turn.answer)})
            last = max([last, *(turn.round for turn in debate.turns)])
    accuracies: list[AgentAccuracy] = []

    def add(role: Literal["generator", "critic"], agent: int | None, right: Sequence[float]) -> None:
        accuracies.append(AgentAccuracy(iteration, role, agent, len(right), sum(right) / len(right), *interval(right)))

    for role, right in list(right_by_role.items())[: min(last, 2)]:
        add(role, None, [len(agents) / num_agents for agents in right])
        for agent in range(num_agents):
            add(role, agent, [agent in agents for agents in right])
    return accuracies
