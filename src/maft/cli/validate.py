"""`maft validate`: every known answer of a task passes the task's own grader."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from maft.config import RunConfig
    from maft.records import Problem
    from maft.tasks import Task

NUM_SHOWN = 10


@click.command(
    epilog="Examples:\n\n  maft validate arithmetic task.shape=a+b*c+d-e*f task.high=29\n\n"
    "  maft validate gsm8k task.train_file=train.jsonl task.eval_file=test.jsonl\n\n"
    "  maft validate reasoning_gym:spell_backward task.options.max_word_len=5\n\n"
    "  maft validate recipes/math/config.yaml"
)
@click.argument("task", metavar="TASK|CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...")
def validate(task: str, overrides: tuple[str, ...]) -> None:
    """Grade every known answer with the task's own grader, without a model, and show three prompts.

    TASK is the name of a task; CONFIG is a YAML file, a config.json or a run folder. The questions are divided as a run
    would divide them, and graded beyond the numbers that it would take. Exit code 1: a known answer is not right.
    """
    from maft import tasks
    from maft.config import prompts
    from maft.errors import StageFailed
    from maft.tasks.base import num_made

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    settings = _settings(task, overrides)
    asked = tasks.make(settings.task)
    split = tasks.prepare(asked)
    numbers = {"num_train": None, "num_eval": None, "size": num_made(settings.task)}
    with _silence():  # what there is to say about the questions has been said
        there = tasks.make(settings.task.model_copy(update=numbers)).questions()
    problems = [*there.train, *there.eval]
    known = [problem for problem in problems if problem.gold is not None]
    failed = _failed(asked, known)

    click.echo(f"Task {settings.task.name}")
    click.echo(f"  questions             {len(problems):>8,}")
    click.echo(f"  duplicates left out   {there.duplicates:>8,}")
    click.echo(f"  without known answer  {len(problems) - len(known):>8,}")
    click.echo(f"  a run trains on       {len(split.train):>8,}")
    click.echo(f"  and holds out         {len(split.eval):>8,}")
    if known:
        right = len(known) - len(failed)
        click.echo(f"Known answers that pass their own grader: {right / len(known)} ({right:,} of {len(known):,})")
    for problem, answer in failed[:NUM_SHOWN]:
        click.echo(f"  {problem.id}: the known answer is {problem.gold!r}, read as {answer!r}")
    texts = prompts.build(asked.prompts, settings.prompts)
    for problem in split.train[:3]:
        click.echo(f"\n---- prompt of question {problem.id} ".ljust(80, "-"))
        if texts.system is not None:
            click.echo(f"[system] {texts.system}\n")
        click.echo(prompts.fill(texts.solve, question=problem.question))
    if failed:
        raise StageFailed(f"{len(failed):,} of {len(known):,} known answers do not pass their own grader.")


@contextmanager
def _silence() -> Iterator[None]:
    log = logging.getLogger("maft")
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


def _settings(task: str, overrides: Sequence[str]) -> "RunConfig":
    """Load a config, or make one for a task of that name."""
    from maft import config

    path = Path(task)
    if path.exists() or path.suffix in (".yaml", ".yml", ".json"):
        return config.load(path, overrides)
    return config.parse({"task": {"name": task}}, overrides, source="maft validate")


def _failed(task: "Task", known: Sequence["Problem"]) -> list[tuple["Problem", str | None]]:
    """Return the questions whose known answer is not right when a reply gives it, and what was read there."""
    answers = [(problem, task.extract(task.show(problem.gold or ""))) for problem in known]
    return [(problem, answer) for problem, answer in answers if not task.grade(problem, answer)]
