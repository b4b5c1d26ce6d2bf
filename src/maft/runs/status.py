"""What a run has and what it lacks."""

from pathlib import Path

from maft import files
from maft.method import learners
from maft.runs import societies
from maft.runs.folder import RunFolder


def complete(folder: RunFolder) -> bool:
    """Say whether nothing is owed."""
    iterations = range(folder.config.num_iterations + 1)
    return all((folder.evaluation(number) / "summary.json").exists() for number in iterations)


def newest(folder: RunFolder) -> int:
    """Return the newest iteration whose agents are all finetuned; 0 is the untrained society."""
    owed = (n for n in range(1, folder.config.num_iterations + 1) if not societies.finished(folder, n))
    return next(owed, folder.config.num_iterations + 1) - 1


def current(folder: RunFolder) -> int:
    """Return the iteration whose agents are being made, or the last one of a finished run."""
    return min(newest(folder) + 1, folder.config.num_iterations)


def status(folder: RunFolder) -> str:
    """Say what each iteration has and what it owes, a line each."""
    agents = learners(folder.config)

    def done(path: Path) -> str:
        return "done" if path.exists() else "owed"

    lines = [f"Iteration 0: evaluation {done(folder.evaluation(0) / 'summary.json')}"]
    for n in range(1, folder.config.num_iterations + 1):
        held = files.num_lines(folder.debates(n))
        made = len(agents) - len(societies.missing(folder, n))
        lines.append(
            f"Iteration {n}: {held} debates held, votes {done(folder.votes(n))}, "
            f"examples {done(folder.examples_summary(n))}, {made} of {len(agents)} agents finetuned, "
            f"evaluation {done(folder.evaluation(n) / 'summary.json')}"
        )
    return "\n".join(lines)
