"""Several runs side by side, such as the same config with several seeds."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from maft.errors import UserError
from maft.evaluation import votes
from maft.evaluation.paired import accuracy_over
from maft.report.data import results
from maft.report.gains import graded
from maft.runs.folder import RunFolder
from maft.tasks.base import normalised


class Row(NamedTuple):
    """One method after one iteration, in every run."""

    iteration: int
    method: str
    accuracies: tuple[float, ...]
    """Of each run."""
    mean: float
    low: float
    high: float
    """Bounds of the 95 % interval over runs and questions."""
    n: int
    """Questions that all runs have answered."""


def shared_questions(folders: Sequence[RunFolder]) -> tuple[frozenset[str], int]:
    """Return the ids of the held-out questions that all runs share, and the number of different questions.

    Raises:
        UserError: they share none.
    """
    sides = [
        {(id, normalised(problem.question)) for id, problem in votes.problems(folder, "eval").items()}
        for folder in folders
        if folder.problems("eval").exists()
    ]
    shared = set.intersection(*sides) if sides else set()
    if sides and not shared:
        raise UserError(
            "these runs have no held-out question in common, so they cannot be compared. Report each one separately."
        )
    return frozenset(id for id, _ in shared), len(set().union(*sides))


def together(folders: Sequence[RunFolder]) -> list[Row]:
    """Return the methods that every run has evaluated, on the questions that every run has held out.

    Raises:
        UserError: they share no question.
    """
    questions, _ = shared_questions(folders)
    done = [{(r.iteration, r.method): None for r in results(folder) if r.accuracy is not None} for folder in folders]
    rows = []
    for iteration, method in done[0]:
        if all((iteration, method) in of_run for of_run in done):
            answers = [graded(folder, iteration, method, questions) for folder in folders]
            if (found := accuracy_over(answers)) is not None:
                means = tuple(sum(of_run.values()) / len(of_run) for of_run in answers)
                rows.append(Row(iteration, method, means, found.mean, found.low, found.high, found.n))
    return rows


def as_rows(folders: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Return the rows for `maft report --json`."""
    runs, renamed = [folder.path.name for folder in folders], {"mean": "accuracy", "low": "ci_low", "high": "ci_high"}
    return [
        {renamed.get(name, name): value for name, value in row._asdict().items() if name != "accuracies"}
        | {"runs": dict(zip(runs, row.accuracies, strict=True))}
        for row in together(folders)
    ]
