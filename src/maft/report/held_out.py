"""The evaluations of a run, read once: what the page says of held-out questions comes from here."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from maft import files, tasks
from maft.evaluation import flow as flow_
from maft.evaluation import reliability
from maft.evaluation.agents import AgentAccuracy, agent_accuracies
from maft.evaluation.flow import Flow
from maft.evaluation.methods import names
from maft.evaluation.reliability import Level
from maft.records import Debate, Problem, Score, Vote
from maft.report import transcript
from maft.runs.folder import RunFolder
from maft.tasks.base import Grade


class Evaluation(NamedTuple):
    """One society on the held-out questions."""

    iteration: int
    num_agents: int
    problems: Mapping[str, Problem]
    grade: Grade
    debates: Sequence[Debate]
    first: Mapping[str, Score]
    """The vote over first answers to each question."""
    votes: Mapping[str, Vote]
    """The vote of each debate; its label is the answer that was scored."""


def evaluations(folder: RunFolder) -> list[Evaluation]:
    """Return every evaluation that is finished, the untrained society's first."""
    numbers = range(folder.config.num_iterations + 1)
    done = [number for number in numbers if folder.evaluated(number)]
    if not done:
        return []
    problems = {problem.id: problem for problem in files.read_records(folder.problems("eval"), Problem)}
    grade = remembered(folder)
    return [_evaluation(folder, number, problems, grade) for number in done]


def remembered(folder: RunFolder) -> Grade:
    """Return the grader of a run's task, which grades an answer to a question only once."""
    return cache(tasks.make(folder.config.task).grade)


def _evaluation(folder: RunFolder, number: int, problems: Mapping[str, Problem], grade: Grade) -> Evaluation:
    num_agents = folder.config.debate.num_agents
    _, majority, debated = names(number, num_agents)
    first, last = (
        {score.problem_id: score for score in files.read_records(folder.scores(number, method), Score)}
        for method in (majority, debated)
    )
    debates = files.read_records(folder.held_out_debates(number), Debate)
    over = folder.config.vote.over
    votes = {d.problem_id: transcript.held_out_vote(d, last[d.problem_id].answers[0], over) for d in debates}
    return Evaluation(number, num_agents, problems, grade, debates, first, votes)


def flows(found: Sequence[Evaluation]) -> list[Flow]:
    """Return what became of each agent's first answers, iteration by iteration."""
    return [flow for one in found for flow in flow_.flows(one.debates, one.problems, one.iteration, one.grade)]


def agents(found: Sequence[Evaluation]) -> list[AgentAccuracy]:
    """Return how often single generators and single critics are right, iteration by iteration."""
    return [
        agent
        for one in found
        for agent in agent_accuracies(one.debates, one.problems, one.iteration, one.num_agents, one.grade)
    ]


def levels(found: Sequence[Evaluation]) -> dict[int, tuple[Level, ...]]:
    """Return how often the debates' answers are right by their votes, for each iteration."""
    most = max((reliability.most_ballots(one.votes.values()) for one in found), default=0)
    return {one.iteration: reliability.levels(one.votes.values(), one.problems, one.grade, most) for one in found}
