"""How far a run has come."""

from maft import files
from maft.method import learners
from maft.runs import societies
from maft.runs.folder import RunFolder


def complete(folder: RunFolder) -> bool:
    """Say whether every iteration is evaluated, and the tasks of `eval.also` are."""
    return all(folder.evaluated(number) for number in range(folder.config.num_iterations + 1)) and not _of_others(
        folder
    )


def _of_others(folder: RunFolder) -> str | None:
    """Return the first evaluation of `eval.also` that is missing."""
    for number in (0, folder.config.num_iterations):
        for other in folder.others:
            if not other.evaluated(number):
                return f"iteration {number}, evaluation on {other.config.task.name} (eval.also)"
    return None


def newest(folder: RunFolder) -> int:
    """Return the newest iteration whose agents are all finetuned and did not collapse; 0 is the untrained society."""
    numbers = range(1, folder.config.num_iterations + 1)
    unfinished = (n for n in numbers if folder.collapse(n).exists() or societies.missing(folder, n))
    return next(unfinished, folder.config.num_iterations + 1) - 1


def current(folder: RunFolder) -> int:
    """Return the first unfinished iteration, or the last one of a finished run."""
    return min(newest(folder) + 1, folder.config.num_iterations)


def next_step(folder: RunFolder) -> str | None:
    """Say what an unfinished run has to do next, or None when it is finished."""
    if not folder.problems("eval").exists():
        return "preparing the questions"
    for number in range(folder.config.num_iterations + 1):
        if (step := _next_of_iteration(folder, number)) is not None:
            return f"iteration {number}, {step}" if number else f"the untrained society, {step}"
    return _of_others(folder)


def _next_of_iteration(folder: RunFolder, number: int) -> str | None:
    if number > 0:
        if not (folder.votes(number).exists() or folder.examples_summary(number).exists()):  # STaR has no votes
            num_train = files.num_lines(folder.problems("train")) // folder.config.task.train_sets
            return f"debate ({files.num_lines(folder.debates(number))} of {num_train} questions done)"
        if not folder.examples_summary(number).exists():
            return "curation"
        if missing := societies.missing(folder, number):
            every = learners(folder.config)
            return f"finetuning ({len(every) - len(missing)} of {len(every)} agents done)"
    if not folder.evaluated(number):
        num_eval = files.num_lines(folder.problems("eval"))
        return f"evaluation ({files.num_lines(folder.held_out_debates(number))} of {num_eval} questions done)"
    if folder.collapse(number).exists():
        return "which collapsed: `maft run` says why, and continues with --keep-going"
    return None
