"""What finetuning gained, question by question, in one run or over several."""

from collections.abc import Sequence
from typing import NamedTuple

from maft import files
from maft.evaluation.methods import names
from maft.evaluation.paired import Accuracies, Difference, accuracies, difference
from maft.records import Score
from maft.runs.folder import RunFolder


class Gain(NamedTuple):
    """The accuracy of one method minus that of another, on the questions that both answered."""

    over: str
    """The other method, in words."""
    gap: Difference
    won: int
    """Questions that only the first method got right, over all runs."""
    lost: int
    """Questions that only the other one got right."""
    by_run: tuple[float, ...]
    """Difference in each run."""


def gains(folders: Sequence[RunFolder], *, vote: bool = False, questions: frozenset[str] | None = None) -> list[Gain]:
    """Compare the debate of the last society that every run has evaluated, or its vote, with what came before it.

    Empty until a finetuned society has been evaluated, and where no gold answer is known. The runs are of one config,
    such as with several seeds; `questions` are the ids of the held-out questions that count, by default all.
    """
    config = folders[0].config
    numbers = range(min(folder.config.num_iterations for folder in folders) + 1)
    done = [number for number in numbers if all(folder.evaluated(number) for folder in folders)]
    if 0 not in done or done == [0]:
        return []
    last, num_agents = done[-1], config.debate.num_agents
    (_, majority, debate), (_, our_majority, ours) = names(0, num_agents), names(last, num_agents)
    others = {
        "untrained debate": (0, debate),
        "untrained majority": (0, majority),
        **({"finetuned debate": (last, ours)} if vote else {"finetuned majority": (last, our_majority)}),
    }
    if last > 1:
        others[f"{'majority' if vote else 'debate'} after iteration 1"] = (1, our_majority if vote else ours)

    def of_runs(number: int, method: str) -> list[Accuracies]:
        return [graded(folder, number, method, questions) for folder in folders]

    mine = of_runs(last, our_majority if vote else ours)
    compared = (compare(over, mine, of_runs(number, method)) for over, (number, method) in others.items())
    return [gain for gain in compared if gain is not None]


def graded(folder: RunFolder, number: int, method: str, questions: frozenset[str] | None = None) -> Accuracies:
    """Return a method's accuracy on each held-out question; on some of them if `questions` are given."""
    every = accuracies(files.read_records(folder.scores(number, method), Score))
    return {id: accuracy for id, accuracy in every.items() if questions is None or id in questions}


def compare(over: str, mine: Sequence[Accuracies], other: Sequence[Accuracies]) -> Gain | None:
    """Compare the answers of two methods, run by run; None if no question was answered in all."""
    gap = difference(mine, other)
    if gap is None:
        return None
    gaps = [[a[id] - b[id] for id in a.keys() & b.keys()] for a, b in zip(mine, other, strict=True)]
    won, lost = (sum(sign * value > 0 for of_run in gaps for value in of_run) for sign in (1, -1))
    return Gain(over, gap, won, lost, tuple(sum(of_run) / len(of_run) for of_run in gaps))
