"""The numbers of a run, read off its folder."""

import json
from typing import Any

from maft import store
from maft.evaluation.labels import LabelQuality, label_quality
from maft.evaluation.metrics import MethodResult
from maft.records import Problem, Vote
from maft.store import RunFolder


def results(folder: RunFolder) -> list[MethodResult]:
    """Return the result of every method that has been evaluated, iteration by iteration."""
    return [
        MethodResult.model_validate(row)
        for number in range(folder.config.num_iterations + 1)
        if (summary := folder.evaluation(number) / "summary.json").exists()
        for row in store.read_json(summary)
    ]


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the rows of `maft report --json`."""
    return [
        {
            "iteration": result.iteration,
            "method": result.method,
            "accuracy": result.accuracy,
            "ci_low": result.ci_low,
            "ci_high": result.ci_high,
            "n": result.n,
            "unparsed": result.unparsed,
            "calls": result.calls,
            "tokens": result.tokens,
        }
        for result in results(folder)
    ]


def table(folder: RunFolder) -> str:
    """Return the results as a table for a terminal, and a line for each iteration's pseudo-labels."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=f"{folder.config.name}: held-out questions", title_justify="left")
    for column in ("iteration", "method", "accuracy (95 % interval)", "n", "unparsed", "calls", "tokens"):
        drawn.add_column(column, justify="left" if column == "method" else "right")
    for result in results(folder):
        drawn.add_row(
            str(result.iteration),
            result.method,
            interval(result),
            str(result.n),
            f"{result.unparsed:.0f}",
            f"{result.calls:,.0f}",
            f"{result.tokens:,.0f}",
        )
    console = Console(width=100)
    with console.capture() as captured:
        console.print(drawn)
        for labels in label_qualities(folder):
            right = "not known" if labels.accuracy is None else f"{labels.accuracy:.1%} right"
            used = f"{labels.used} of {labels.num_problems} questions"
            console.print(f"Pseudo-labels of iteration {labels.iteration}: {used} used, {right}.", highlight=False)
    return captured.get().rstrip()


def interval(result: MethodResult) -> str:
    """Return accuracy and interval in percent, such as `72.9 (63.8 - 80.4)`."""
    if result.accuracy is None or result.ci_low is None or result.ci_high is None:
        return "no gold answers"
    return f"{100 * result.accuracy:.1f} ({100 * result.ci_low:.1f} - {100 * result.ci_high:.1f})"


def label_qualities(folder: RunFolder) -> list[LabelQuality]:
    """Return how good the pseudo-labels of each finished vote were."""
    if not folder.problems("train").exists():
        return []
    problems = {problem.id: problem for problem in store.read_records(folder.problems("train"), Problem)}
    return [
        label_quality(store.read_records(folder.votes(number), Vote), problems)
        for number in range(1, folder.config.num_iterations + 1)
        if folder.votes(number).exists()
    ]


def write_metrics(folder: RunFolder) -> None:
    """Write metrics.jsonl: a line for each evaluated method, then one for each iteration's labels."""
    labels = [quality.model_dump() | {"kind": "pseudo_labels"} for quality in label_qualities(folder)]
    lines = [{"kind": "method", **row} for row in rows(folder)] + labels
    store.write_text(folder.path / "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
