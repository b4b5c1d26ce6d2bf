"""What finetuning on one task changes on others: single answers to the tasks of `eval.also`, before and after."""

from collections.abc import Sequence

from maft import files
from maft.config import TaskConfig
from maft.evaluation.methods import names
from maft.evaluation.paired import Accuracies, Difference, accuracies, difference
from maft.records import Record, Score
from maft.runs.folder import RunFolder


class Retention(Record):
    """Single answers of the generators to the held-out questions of another task."""

    task: str
    iteration: int
    n: int
    """Questions."""
    before: float
    """Accuracy of the untrained generators."""
    after: float
    """After `iteration`."""
    difference: Difference
    """After minus before, on the same questions."""


def retention(runs: Sequence[RunFolder]) -> list[Retention]:
    """Return an entry for each task of `eval.also` that all runs, of several seeds, have answered before and after."""
    last = min(run.config.num_iterations for run in runs)
    entries = []
    for others in zip(*(run.others for run in runs), strict=True):
        if not all(other.evaluated(0) and other.evaluated(last) for other in others):
            continue
        before, after = ([_single(other, number) for other in others] for number in (0, last))
        if (gap := difference(after, before)) is not None:
            means = [sum(sum(of.values()) / len(of) for of in side) / len(side) for side in (before, after)]
            entries.append(
                Retention(
                    task=label(others[0].config.task),
                    iteration=last,
                    n=gap.n,
                    before=means[0],
                    after=means[1],
                    difference=gap,
                )
            )
    return entries


def _single(other: RunFolder, number: int) -> Accuracies:
    method = names(number, other.config.debate.num_agents)[0]
    return accuracies(files.read_records(other.scores(number, method), Score))


def label(task: TaskConfig) -> str:
    """Return the name of a task with the settings that are its own.

    >>> label(TaskConfig(name="arithmetic", high=20, num_eval=50))
    'arithmetic (high=20)'
    """
    own = task.model_dump(mode="json", exclude_defaults=True, exclude={"name", "num_train", "num_eval", "size"})
    named = ", ".join(f"{key}={value}" for key, value in own.items())
    return f"{task.name} ({named})" if named else task.name


def sentence(one: Retention) -> str:
    """Return a line of a table's foot."""
    gap = one.difference
    return (
        f"On {one.task} (eval.also, {one.n} questions), a single answer is right for {one.before:.1%} before and "
        f"{one.after:.1%} after iteration {one.iteration}: {100 * gap.mean:+.1f} points "
        f"({100 * gap.low:+.1f} to {100 * gap.high:+.1f})."
    )
