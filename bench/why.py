"""Why methods of a comparison differ: their labels, their critics, and how alike their agents have become.

    python -m bench.why runs/results

For every method, means over seeds, after each iteration. Of the training questions: those that a majority labels, and
the share of right labels, if the first round had voted, the last, or all. Of the held-out questions: wrong answers that
critics mended and right ones that they spoiled, per hundred answers; and the share of equal answers to a question, of
two samples of one agent and of two agents.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from maft import comparison, files, tasks
from maft.evaluation.flow import flows
from maft.evaluation.labels import label_quality
from maft.method import vote as voting
from maft.records import Debate, Problem
from maft.runs.folder import RunFolder

ROUNDS = ("first", "last", "all")
COLUMNS = (
    *(f"{what} {rounds}" for rounds in ROUNDS for what in ("labelled by", "right,")),
    *("mended", "spoiled", "same agent", "two agents"),
)


def problems(folder: RunFolder, side: str) -> dict[str, Problem]:
    """Return the questions of a side, by id."""
    return {problem.id: problem for problem in files.read_records(folder.problems(side), Problem)}


def labels(folder: RunFolder, iteration: int) -> Iterator[float | None]:
    """Yield, for each choice of rounds, the share of the questions with a label, and of right labels among them."""
    debates = files.read_records(folder.debates(iteration), Debate)
    task = tasks.make(folder.config.task)
    for rounds in ROUNDS:
        how = folder.config.vote.model_copy(update={"label_from": rounds})
        votes = [voting.vote(debate, how, folder.config.seed, task.equality) for debate in debates]
        quality = label_quality(votes, problems(folder, "train"), task.grade)
        yield from (quality.coverage, quality.accuracy)


def held_out(folder: RunFolder, iteration: int) -> Iterator[float | None]:
    """Yield the shares of answers mended and spoiled, and of equal answers within an agent and between two."""
    debates = files.read_records(folder.evaluation(iteration) / "debates.jsonl", Debate)
    found = flows(debates, problems(folder, "eval"), iteration, tasks.make(folder.config.task).grade)
    answers = sum(sum(flow[2:]) for flow in found)
    yield sum(flow.corrected for flow in found) / answers if found else None
    yield sum(flow.spoiled for flow in found) / answers if found else None
    within, between = [], []
    for debate in debates:
        said: dict[int, list[str | None]] = defaultdict(list)
        for turn in (*debate.round(1), *debate.samples):
            said[turn.agent].append(turn.answer)
        within += [a == b for own in said.values() for a, b in combinations(own, 2)]
        between += [a == b for one, other in combinations(said.values(), 2) for a, b in product(one, other)]
    yield sum(within) / len(within) if within else None
    yield sum(between) / len(between) if between else None


def row(folders: Sequence[RunFolder], iteration: int) -> list[str] | None:
    """Return the means over seeds in percent; nothing where a seed is not so far."""
    if not all((folder.evaluation(iteration) / "summary.json").exists() for folder in folders):
        return None
    found = []
    for folder in folders:
        made = list(labels(folder, iteration)) if folder.debates(iteration).exists() else [None] * (2 * len(ROUNDS))
        found.append([*made, *held_out(folder, iteration)])
    columns = [[value for value in column if value is not None] for column in zip(*found, strict=True)]
    return [f"{100 * sum(column) / len(column):.1f}" if column else "" for column in columns]


def main(path: Path) -> None:
    """Print the table of a comparison."""
    compared = comparison.existing(path)
    table = Table(*("iteration", "method", *COLUMNS), box=None)
    for name in compared.methods:
        arm = comparison.ARMS[name]
        if all(compared.begun(arm, seed) for seed in compared.seeds):
            folders = [compared.folder(arm, seed) for seed in compared.seeds]
            for iteration in range(compared.config.num_iterations + 1):
                if (cells := row(folders, iteration)) is not None:
                    table.add_row(str(iteration), name, *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
