"""Every number of a run over its iterations, as lines: the content of metrics.jsonl and of trackers.

    kind            for each                        numbers
    method          method and society              accuracy, ci_low, ci_high, n, unparsed, calls, tokens ...
    agent           agent or role, and society      accuracy, ci_low, ci_high, n
    held_out_votes  society                         as pseudo_labels, for its debates on held-out questions
    pseudo_labels   iteration                       pseudo_label_accuracy, coverage, mean_margin, unanimity,
                                                    replies_cut (share), without_examples (agents) ...

Society 0 is untrained; the labels of iteration l are made by society l - 1.
"""

import json
from functools import cache

from maft import files, tasks
from maft.config import RunConfig
from maft.evaluation import votes
from maft.evaluation.agents import agent_accuracies
from maft.evaluation.learned import learned
from maft.evaluation.methods import HeldOut
from maft.evaluation.metrics import MethodResult
from maft.evaluation.over_iterations import Line, agent_line, held_out_votes, label_line, method_line
from maft.method import protocol_of
from maft.records import Problem, Vote
from maft.runs.folder import RunFolder


def write(folder: RunFolder) -> None:
    """Write metrics.jsonl, of as much of the run as there is."""
    text = "".join(f"{json.dumps(line)}\n" for line in lines(folder))
    files.write_text(folder.metrics, text)


def lines(folder: RunFolder) -> list[Line]:
    """Return all lines, kind by kind in the order above, iteration by iteration."""
    numbers = range(folder.config.num_iterations + 1)
    found = [line for number in numbers for line in of_society(folder, number) + of_labels(folder, number)]
    kinds = ("method", "agent", "held_out_votes", "pseudo_labels")
    return sorted(found, key=lambda line: kinds.index(line["kind"]))


def of_society(folder: RunFolder, number: int) -> list[Line]:
    """Return the lines of one society on the held-out questions; none before it is evaluated."""
    config = folder.config
    if not folder.evaluated(number):
        return []
    results = [MethodResult.model_validate(row) for row in files.read_json(folder.results(number))]
    held, problems = votes.held_out(folder, number), _problems(folder, "eval")
    agents = agent_accuracies(held.debates, problems, number, config.debate.num_agents, held.grade)
    return [
        *map(method_line, results),
        *map(agent_line, agents),
        label_line("held_out_votes", _votes(held, config), problems, held.grade),
    ]


def of_labels(folder: RunFolder, number: int) -> list[Line]:
    """Return the line of one iteration's pseudo-labels; none before the vote."""
    if number == 0 or not folder.votes(number).exists():
        return []
    found, grade = files.read_records(folder.votes(number), Vote), cache(tasks.make(folder.config.task).grade)
    line = label_line("pseudo_labels", found, _problems(folder, "train"), grade)
    if (of := learned(folder, number)) is not None:
        line |= {"replies_cut": of.share_cut, "without_examples": len(of.without_examples)}
    return [line]


def _votes(held: HeldOut, config: RunConfig) -> list[Vote]:
    return held_out_votes(held, config.vote, config.seed, protocol_of(config.debate).ballots)


def _problems(folder: RunFolder, side: str) -> dict[str, Problem]:
    return {problem.id: problem for problem in files.read_records(folder.problems(side), Problem)}
