"""`maft validate`: every known answer of a task passes the task's own grader."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from maft.cli import stage

if TYPE_CHECKING:
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
@stage.overrides
@stage.prints
def validate(task: str, overrides: tuple[str, ...], *, as_json: bool, quiet: bool) -> None:
    """Check questions and grader of a task or config without a model, and show three prompts.

    TASK is the name of a task; CONFIG is a YAML file, a config.json or a run folder. The questions are split as in a
    run; all questions are graded, not only those that a run would use. Each known answer is graded bare, boxed and
    stated ("The answer is ..."), and must be right; the known answer of another question must be wrong. Exit code 1
    means that a check failed, or that known answers are worked solutions.
    """
    from maft import tasks
    from maft.answers import gold
    from maft.config import prompts
    from maft.errors import StageFailed
    from maft.tasks.base import num_made

    stage.log_to_stderr(quiet=quiet)
    settings = stage.task_or_config(task, overrides)
    say: Callable[[str], None] = (lambda text: None) if as_json else click.echo
    asked = tasks.make(settings.task)
    split = tasks.prepare(asked)
    numbers = {"num_train": None, "num_eval": None, "size": num_made(settings.task)}
    with _silence():  # what there is to say about the questions has been said
        every = tasks.make(settings.task.model_copy(update=numbers)).questions()
    problems = [*every.train, *every.eval]
    known = [problem for problem in problems if problem.gold is not None]
    failed = _failed(asked, known)
    accepted = _accepted(asked, known)
    worked = [
        problem for problem in known if asked.equality.name == "mathematics" and gold.is_worked(problem.gold or "")
    ]

    say(f"Task {settings.task.name}")
    say(f"  questions             {len(problems):>8,}")
    say(f"  duplicates left out   {every.duplicates:>8,}")
    say(f"  without known answer  {len(problems) - len(known):>8,}")
    say(f"  a run trains on       {len(split.train):>8,}")
    say(f"  and holds out         {len(split.eval):>8,}")
    if known:
        right = len(known) - len(failed)
        say(f"Known answers that are graded as right: {right:,} of {len(known):,}")
    for problem, form, answer in failed[:NUM_SHOWN]:
        say(f"  {problem.id}: the known answer is {problem.gold!r}, {form} read as {answer!r}")
    for problem, wrong in accepted[:NUM_SHOWN]:
        say(f"  {problem.id}: {wrong!r}, the answer of another question, is graded as right as {problem.gold!r}")
    for problem in worked[:NUM_SHOWN]:
        say(f"  {problem.id}: the known answer looks like a worked solution: {problem.gold!r:.200}")
    texts = prompts.build(asked.prompts, settings.prompts)
    for problem in split.train[:3]:
        say(f"\n---- prompt of question {problem.id} ".ljust(80, "-"))
        if texts.system is not None:
            say(f"[system] {texts.system}\n")
        say(prompts.fill(texts.solve, question=problem.question))
    faults = {
        "known answers are graded as wrong": len(failed),
        "wrong answers are graded as right": len(accepted),
        "known answers are worked solutions: put the answer alone, boxed, or after ####": len(worked),
    }
    if as_json:
        counts = {"questions": len(problems), "duplicates_left_out": every.duplicates, "known": len(known)}
        counts |= {"trains_on": len(split.train), "holds_out": len(split.eval), "failed": len(failed)}
        counts |= {"wrong_accepted": len(accepted), "worked_solutions": len(worked)}
        click.echo(json.dumps({"task": settings.task.name} | counts, indent=2))
    faults_found = [f"{count:,} of {len(known):,} {what}." for what, count in faults.items() if count]
    if faults_found:
        raise StageFailed(" ".join(faults_found))


@contextmanager
def _silence() -> Iterator[None]:
    log = logging.getLogger("maft")
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


def _failed(task: "Task", known: Sequence["Problem"]) -> list[tuple["Problem", str, str | None]]:
    """Return the questions whose known answer is not right in some form: the form, and what was read there.

    A task that reads boxes only reads nothing in the stated form, which is no fault.
    """
    failed = []
    for problem in known:
        answer = task.reference(problem)
        if answer is None:
            continue  # it is known how to grade an answer, and no right one
        forms = {"bare": answer, "in a reply": task.extract(task.show(answer))}
        if (stated := task.extract(f"The answer is {answer}.")) is not None and _is_short(answer):
            forms["stated"] = stated
        wrong = [(problem, form, read) for form, read in forms.items() if task.grade(problem, read) is False]
        failed += wrong[:1]
    return failed


def _is_short(answer: str) -> bool:
    """Say whether a sentence can state this answer: one line, without a full stop or a comma before a word in it."""
    return re.search(r"\n|[.!?;](?=\s)|,\s+[a-z]{2}|\*\*| (?:because|since|so|which|as)\b", answer) is None


def _accepted(task: "Task", known: Sequence["Problem"]) -> list[tuple["Problem", str]]:
    """Return the questions whose grader takes the answer of another question for right, and that answer.

    Up to one question in twenty is let pass; where a scorer grades, up to half, for puzzles of several solutions.
    """
    from maft.tasks import Task

    accepted = []
    for number, problem in enumerate(known):
        others = (known[(number + step) % len(known)].gold or "" for step in range(1, min(len(known), 20)))
        wrong = next((other for other in others if _plain(other) != _plain(problem.gold or "")), None)
        if wrong is not None and task.grade(problem, wrong):
            accepted.append((problem, wrong))
    scored = type(task).correct is not Task.correct
    return accepted if (2 if scored else 20) * len(accepted) > len(known) else []


def _plain(answer: str) -> str:
    from maft.answers import canonical

    return canonical(answer).casefold()
