"""Several runs side by side, such as the same config with several seeds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from maft import files
from maft.errors import UserError
from maft.evaluation.methods import names
from maft.evaluation.paired import Accuracies, Difference, accuracy_over, difference
from maft.records import Problem, Score
from maft.report.data import results
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
    """Return the ids of the held-out questions that all runs share, and how many questions there are in all.

    Raises:
        UserError: they share none.
    """
    sides = [
        {problem.id: normalised(problem.question) for problem in files.read_records(folder.problems("eval"), Problem)}
        for folder in folders
        if folder.problems("eval").exists()
    ]
    shared = frozenset.intersection(*(frozenset(side.items()) for side in sides)) if sides else frozenset()
    if sides and not shared:
        raise UserError(
            "these runs share no held-out question, so that they cannot be compared. Report each by itself."
        )
    return frozenset(id for id, _ in shared), len({item for side in sides for item in side.items()})


def together(folders: Sequence[RunFolder]) -> list[Row]:
    """Return the methods that every run has evaluated, on the questions that every run has held out.

    Raises:
        UserError: they share no question.
    """
    questions, _ = shared_questions(folders)
    done = [{(r.iteration, r.method) for r in results(folder) if r.accuracy is not None} for folder in folders]
    first = [(result.iteration, result.method) for result in results(folders[0])]
    rows = []
    for iteration, method in first:
        if all((iteration, method) in of_run for of_run in done):
            answers = [_accuracies(folder, iteration, method, questions) for folder in folders]
            found = accuracy_over(answers)
            if found is not None:
                means = tuple(sum(of_run.values()) / len(of_run) for of_run in answers)
                rows.append(Row(iteration, method, means, found.mean, found.low, found.high, found.n))
    return rows


def gains(folders: Sequence[RunFolder]) -> dict[str, tuple[Difference, tuple[float, ...]]]:
    """Return by how much the last debate beats the untrained debate and vote, over all runs and in each."""
    last = min(folder.config.num_iterations for folder in folders)
    num_agents = folders[0].config.debate.num_agents
    _, _, ours = names(last, num_agents)
    _, majority, debated = names(0, num_agents)
    rows = {(row.iteration, row.method) for row in together(folders)}
    questions, _ = shared_questions(folders)
    mine = [_accuracies(folder, last, ours, questions) for folder in folders] if (last, ours) in rows else []
    found = {}
    for over, method in (("untrained debate", debated), ("untrained majority", majority)):
        if mine and (0, method) in rows:
            other = [_accuracies(folder, 0, method, questions) for folder in folders]
            each = tuple(_mean(a) - _mean(b) for a, b in zip(mine, other, strict=True))
            if (gap := difference(mine, other)) is not None:
                found[over] = (gap, each)
    return found


def table(folders: Sequence[RunFolder]) -> str:
    """Return the rows as text, and the gains of the finetuned debate."""
    from rich.console import Console
    from rich.table import Table

    rows = together(folders)
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("iteration", "method", *(folder.path.name for folder in folders), "mean", "95 % interval", "n"):
        drawn.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for number, row in enumerate(rows):
        if number and rows[number - 1].iteration != row.iteration:
            drawn.add_row()
        by_run = (f"{100 * accuracy:.1f}" for accuracy in row.accuracies)
        interval = f"{100 * row.low:.1f} - {100 * row.high:.1f}"
        drawn.add_row(str(row.iteration), row.method, *by_run, f"{100 * row.mean:.1f}", interval, str(row.n))
    console = Console(width=240, highlight=False)
    with console.capture() as captured:
        console.print(drawn if rows else "These runs have no evaluated method in common.")
        shared, every = shared_questions(folders)
        if len(shared) < every:
            console.print(
                f"\nThe runs hold out different questions: only the {len(shared)} of {every} that all have count."
            )
        for over, (gap, each) in gains(folders).items():
            said = ", ".join(f"{100 * one:+.1f}" for one in each)
            console.print(
                f"\nFinetuned debate minus {over}: {100 * gap.mean:+.1f} points "
                f"({100 * gap.low:+.1f} to {100 * gap.high:+.1f}); by run {said}."
            )
        minutes = ", ".join(f"{sum(e.get('seconds', 0.0) for e in folder.events()) / 60:.1f}" for folder in folders)
        console.print(f"\nMinutes of sampling and finetuning, by run: {minutes}.")
    return "\n".join(line.rstrip() for line in captured.get().rstrip().split("\n"))


def as_rows(folders: Sequence[RunFolder]) -> list[Mapping[str, Any]]:
    """Return the rows for `maft report --json`."""
    runs = [folder.path.name for folder in folders]
    return [
        {
            "iteration": row.iteration,
            "method": row.method,
            "accuracy": row.mean,
            "ci_low": row.low,
            "ci_high": row.high,
            "n": row.n,
            "runs": dict(zip(runs, row.accuracies, strict=True)),
        }
        for row in together(folders)
    ]


def _accuracies(folder: RunFolder, iteration: int, method: str, questions: frozenset[str]) -> Accuracies:
    scores = files.read_records(folder.evaluation(iteration) / f"{method}.jsonl", Score)
    graded = {score.problem_id: score.accuracy for score in scores if score.accuracy is not None}
    return {id: accuracy for id, accuracy in graded.items() if id in questions}


def _mean(accuracies: Accuracies) -> float:
    return sum(accuracies.values()) / len(accuracies)
