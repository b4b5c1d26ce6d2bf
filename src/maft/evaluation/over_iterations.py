"""What is followed from iteration to iteration, as plain lines: the methods, single agents, and the votes.

The pseudo-labels of iteration l are made by the society of iteration l - 1, on training questions. So that there is a
number for every society, the untrained and the last one included, its debates on the held-out questions are counted by
the same rule, too: what they would have made labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from maft.config import VoteConfig, of_iteration
from maft.evaluation.agents import AgentAccuracy
from maft.evaluation.labels import LabelQuality, label_quality
from maft.evaluation.methods import HeldOut
from maft.evaluation.metrics import MethodResult, wilson
from maft.method import vote as voting
from maft.records import Problem, Vote
from maft.tasks.base import Grade

Line = dict[str, Any]
"""One line of metrics.jsonl: `kind`, `iteration`, names and numbers."""


def held_out_votes(
    held: HeldOut, settings: VoteConfig, run_seed: int, choose: voting.Choose = voting.ballots
) -> list[Vote]:
    """Return the votes of a society on held-out questions, by the rule that makes labels of its next debates."""
    return [
        voting.elect(
            debate,
            held.votes[debate.problem_id].partition or (),
            choose(debate, of_iteration(settings.label_from, debate.iteration + 1)),
            settings,
            run_seed,
        )
        for debate in held.debates
    ]


def method_line(result: MethodResult) -> Line:
    """Return the line of one method: its accuracy with the interval, and what it cost."""
    return {"kind": "method", **result.model_dump(), "tokens": result.tokens}


def agent_line(one: AgentAccuracy) -> Line:
    """Return the line of one agent, such as `critic_2`, or of the mean over a role, such as `critics`.

    >>> agent_line(AgentAccuracy(1, "critic", None, 50, 0.5, 0.37, 0.63))["agent"]
    'critics'
    """
    name = f"{one.role}s" if one.agent is None else f"{one.role}_{one.agent}"
    numbers = {"accuracy": one.accuracy, "ci_low": one.low, "ci_high": one.high, "n": one.n}
    return {"kind": "agent", "iteration": one.iteration, "agent": name, **numbers}


def label_line(kind: str, votes: Sequence[Vote], problems: Mapping[str, Problem], grade: Grade) -> Line:
    """Return the line of the votes on many questions; `kind` is `pseudo_labels` or `held_out_votes`."""
    quality = label_quality(votes, problems, grade)
    low, high = accuracy_interval(quality, votes, problems, grade) or (None, None)
    numbers = quality.model_dump()
    return {
        "kind": kind,
        "iteration": numbers.pop("iteration"),
        "pseudo_label_accuracy": numbers.pop("accuracy"),
        "ci_low": low,
        "ci_high": high,
        "pseudo_label_accuracy_all": numbers.pop("accuracy_all"),
        **numbers,
    }


def accuracy_interval(
    quality: LabelQuality, votes: Sequence[Vote], problems: Mapping[str, Problem], grade: Grade
) -> tuple[float, float] | None:
    """Return the 95 % interval of the accuracy of the labels in use; None where no gold answer is known."""
    if quality.accuracy is None:
        return None
    used = [problems[vote.problem_id] for vote in votes if vote.dropped is None]
    return wilson(quality.accuracy, sum(grade(problem, None) is not None for problem in used))
