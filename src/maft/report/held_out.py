"""The evaluations of a run, read once: what the page says of held-out questions comes from here."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from maft import files, tasks
from maft.evaluation import flow as flow_
from maft.evaluation import reliability
from maft.evaluation.agents import AgentAccuracy, agent_accuracies
from maft.evaluation.flow import Flow
from maft.evaluation.methods import HeldOut, names
from maft.evaluation.reliability import Level
from maft.evaluation.votes import held_out
from maft.records import Problem, Score
from maft.runs.folder import RunFolder
from maft.tasks.base import Grade


class Evaluation(NamedTuple):
    """One society on the held-out questions."""

    iteration: int
    num_agents: int
    problems: Mapping[str, Problem]
    held: HeldOut
    first: Mapping[str, Score]
    """The vote over first answers to each question."""


def evaluations(folder: RunFolder) -> list[Evaluation]:
    """Return every evaluation that is finished, the untrained society's first."""
    numbers = range(folder.config.num_iterations + 1)
    done = [number for number in numbers if folder.evaluated(number)]
    if not done:
        return []
    problems = {problem.id: problem for problem in files.read_records(folder.problems("eval"), Problem)}
    return [_evaluation(folder, number, problems) for number in done]


def remembered(folder: RunFolder) -> Grade:
    """Return the grader of a run's task, which grades an answer to a question only once."""
    return cache(tasks.make(folder.config.task).grade)


def _evaluation(folder: RunFolder, number: int, problems: Mapping[str, Problem]) -> Evaluation:
    num_agents = folder.config.debate.num_agents
    majority = files.read_records(folder.scores(number, names(number, num_agents)[1]), Score)
    first = {score.problem_id: score for score in majority}
    return Evaluation(number, num_agents, problems, held_out(folder, number), first)


def flows(found: Sequence[Evaluation]) -> list[Flow]:
    """Return what became of each agent's first answers, iteration by iteration."""
    return [
        flow for one in found for flow in flow_.flows(one.held.debates, one.problems, one.iteration, one.held.grade)
    ]


def agents(found: Sequence[Evaluation]) -> list[AgentAccuracy]:
    """Return how often single generators and single critics are right, iteration by iteration."""
    return [
        agent
        for one in found
        for agent in agent_accuracies(one.held.debates, one.problems, one.iteration, one.num_agents, one.held.grade)
    ]


def levels(found: Sequence[Evaluation]) -> dict[int, tuple[Level, ...]]:
    """Return how often the debates' answers are right by their votes, for each iteration."""
    votes = {one.iteration: one.held.votes.values() for one in found}
    most = max(map(reliability.most_ballots, votes.values()), default=0)
    return {
        one.iteration: reliability.levels(votes[one.iteration], one.problems, one.held.grade, most) for one in found
    }
