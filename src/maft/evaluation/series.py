"""Every number of a run over its iterations, as lines: the content of metrics.jsonl and of trackers.

    kind            for each                        numbers
    method          method and society              accuracy, ci_low, ci_high, n, unparsed, calls, tokens ...
    agent           agent or role, and society      accuracy, ci_low, ci_high, n
    held_out_votes  society                         as pseudo_labels, for its debates on held-out questions
    pseudo_labels   iteration                       pseudo_label_accuracy, coverage, mean_margin, unanimity,
                                                    replies_cut (share), without_examples (agents) ...

Society 0 is untrained. The labels of iteration l are made by society l - 1, on training questions; `held_out_votes`
gives every society, the last one included, the numbers that its debates would have as labels.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from maft import files
from maft.config import VoteConfig, of_iteration
from maft.evaluation import votes
from maft.evaluation.agents import AgentAccuracy, agent_accuracies
from maft.evaluation.labels import label_quality
from maft.evaluation.learned import learned
from maft.evaluation.methods import HeldOut
from maft.evaluation.metrics import MethodResult
from maft.method import protocol_of
from maft.method import vote as voting
from maft.records import Problem, Vote
from maft.runs.folder import RunFolder
from maft.tasks.base import Grade

Line = dict[str, Any]
"""One line of metrics.jsonl: `kind`, `iteration`, names and numbers."""


def write(folder: RunFolder) -> None:
    """Write metrics.jsonl of what the run has so far."""
    files.write_text(folder.metrics, "".join(f"{json.dumps(line)}\n" for line in lines(folder)))


def lines(folder: RunFolder) -> list[Line]:
    """Return all lines, kind by kind in the order above, iteration by iteration."""
    numbers = range(folder.config.num_iterations + 1)
    unsorted = [line for number in numbers for line in of_society(folder, number) + of_labels(folder, number)]
    kinds = ("method", "agent", "held_out_votes", "pseudo_labels")
    return sorted(unsorted, key=lambda line: kinds.index(line["kind"]))


def of_society(folder: RunFolder, number: int) -> list[Line]:
    """Return the lines of one society on the held-out questions; none before it is evaluated."""
    config = folder.config
    if not folder.evaluated(number):
        return []
    results = [MethodResult.model_validate(row) for row in files.read_json(folder.results(number))]
    held, problems = votes.held_out(folder, number), votes.problems(folder, "eval")
    agents = agent_accuracies(held.debates, problems, number, config.debate.num_agents, held.grade)
    num_samples = config.debate.num_agents * (config.debate.num_samples - 1)
    as_labels = held_out_votes(held, config.vote, config.seed, protocol_of(config.debate).ballots, num_samples)
    return [
        *({"kind": "method", **result.model_dump(), "tokens": result.tokens} for result in results),
        *map(_agent_line, agents),
        label_line("held_out_votes", as_labels, problems, held.grade),
    ]


def of_labels(folder: RunFolder, number: int) -> list[Line]:
    """Return the line of one iteration's pseudo-labels; none before the vote."""
    if number == 0 or not folder.votes(number).exists():
        return []
    of_iteration, grade = files.read_records(folder.votes(number), Vote), votes.train_grade(folder.config)
    line = label_line("pseudo_labels", of_iteration, votes.problems(folder, "train"), grade)
    if (of := learned(folder, number)) is not None:
        line |= {"replies_cut": of.share_cut, "without_examples": len(of.without_examples)}
    return [line]


def held_out_votes(
    held: HeldOut,
    settings: VoteConfig,
    run_seed: int,
    choose: voting.Choose = voting.ballots,
    num_samples: int | None = None,
) -> list[Vote]:
    """Return the votes of a society on held-out questions, by the rule that makes labels of its next debates.

    Of further first answers `num_samples` count, as many as a training debate has; None: all.
    """
    votes = []
    for debate, vote in held.pairs():
        as_trained = debate.model_copy(update={"samples": debate.samples[:num_samples]})
        turns = choose(as_trained, of_iteration(settings.label_from, debate.iteration + 1))
        elected = voting.elect(debate, vote.partition or (), turns, settings, run_seed)
        votes.append(voting.relabelled(elected, debate, settings.label, run_seed))
    return votes


def label_line(kind: str, of: Sequence[Vote], problems: Mapping[str, Problem], grade: Grade) -> Line:
    """Return the line of the votes on many questions; `kind` is `pseudo_labels` or `held_out_votes`."""
    names = {"accuracy": "pseudo_label_accuracy", "accuracy_all": "pseudo_label_accuracy_all"}
    numbers = label_quality(of, problems, grade).model_dump()
    return {"kind": kind, **{names.get(name, name): value for name, value in numbers.items()}}


def _agent_line(one: AgentAccuracy) -> Line:
    """Return the line of one agent, such as `critic_2`, or of the mean over a role, such as `critics`.

    >>> _agent_line(AgentAccuracy(1, "critic", None, 50, 0.5, 0.37, 0.63))["agent"]
    'critics'
    """
    name = f"{one.role}s" if one.agent is None else f"{one.role}_{one.agent}"
    numbers = {"accuracy": one.accuracy, "ci_low": one.low, "ci_high": one.high, "n": one.n}
    return {"kind": "agent", "iteration": one.iteration, "agent": name, **numbers}
