"""Every data set of reasoning-gym, which makes questions from a seed and scores answers itself.

A problem's id is its index, from which its entry is made again when an answer is scored. Some scorers hand the answer
to an evaluator of Python or sympy. Those see only text of the form that their right answers have, and all of them work
in a process of their own that is stopped when it takes too long; see `gym_process.py`.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from maft.answers import Equality, extract_answer, thinking
from maft.answers.equality import Classes, numbered
from maft.config import prompts
from maft.errors import ConfigError, MissingExtra
from maft.records import Problem
from maft.tasks.base import Split, Task, distinct, log, num_further, num_made, split_by_key
from maft.tasks.gym_process import Gym

MAX_CHARS = 4_000
"""A longer answer is none."""

_SUM = r"[0-9 +\-/()]*(?:\*(?!\*)[0-9 +\-/()]*)*"
_TERM = r"(?:[0-9]+|[A-Za-z](?:\*\*[0-9]{1,3})?)"
_POLYNOMIAL = rf"\s*(?:-\s*)?{_TERM}(?:\s*(?:\*(?!\*)|\+|-)\s*{_TERM})*\s*"
_FUNCTIONS = r"(?:a?(?:sin|cos|tan)|log|exp|sqrt|Integral)(?=\()|[xXyYzZC](?![A-Za-z0-9_(])"
_INTEGRAL = rf"(?:{_FUNCTIONS}|[0-9]+(?![A-Za-z0-9_(])|[-+*/(), ])*"

EVALUATED: Mapping[str, str] = {
    "binary_matrix": r"[0-9\s-]*",
    "countdown": _SUM,
    "intermediate_integration": _INTEGRAL,
    "n_queens": r"[Q_\s]*",
    "polynomial_multiplication": _POLYNOMIAL,
    "puzzle24": _SUM,
    "simple_integration": _INTEGRAL,
    "spiral_matrix": r"[0-9\s-]*",
    "string_insertion": r"[A-Z]*",
}
"""Data sets whose scorer evaluates an answer as a program, and the form that an answer must have to be let through."""


def _may_be_scored(dataset: str, answer: str) -> bool:
    form = EVALUATED.get(dataset)
    return form is None or re.fullmatch(form, answer) is not None


class Scored(Equality):
    """Answers to a question of a data set are the same as its scorer has it, see `gym_process.compared`."""

    name = "scorer"

    def __init__(self, dataset: str, gym: Gym) -> None:
        self._dataset, self._gym = dataset, gym

    def classes(self, answers: Sequence[str | None], problem: Problem | None = None) -> Classes:
        """Compare as texts what may not be scored, and everything where scoring takes too long."""
        texts = [None if answer is None else answer.strip() for answer in answers]
        names = {text: text for text in texts}
        scored = sorted(text for text in names if text is not None and _may_be_scored(self._dataset, text))
        if problem is not None and problem.id.isdecimal() and len(scored) > 1:
            places = self._gym.classes(problem, scored)
            if places is None:
                log.warning(
                    "Answers to question %s are compared as text, since scoring them takes too long.", problem.id
                )
            names |= {text: scored[place] for text, place in zip(scored, places or (), strict=places is not None)}
        return numbered(names[text] for text in texts)


class ReasoningGym(Task):
    """One data set, made with `task.size` and `task.options`, its seed being `task.split_seed`."""

    prompts: Mapping[str, str] = prompts.asking("final answer, and nothing else, between <answer> and </answer>")

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return self.settings.name.partition(":")[2]

    def extract(self, text: str) -> str | None:
        """Take what stands between the last pair of tags, or else in the last box; not in what a model thought."""
        text = thinking.strip(text).rest
        _, opening, rest = text.rpartition("<answer>")
        inside, closing, _ = rest.partition("</answer>")
        if not opening or not closing:
            return extract_answer(text)
        return inside.strip() if 0 < len(inside.strip()) <= MAX_CHARS else None

    def show(self, answer: str) -> str:
        """Return a reply with the answer between tags."""
        return f"It is <answer>{answer}</answer>"

    def questions(self) -> Split:
        """Make the questions and divide them by seed."""
        problems = self._gym.questions()[: num_made(self.settings)]
        kept = distinct(problems)
        return split_by_key(kept, self.settings)._replace(duplicates=len(problems) - len(kept))

    def further_questions(self) -> list[Problem]:
        """Return the questions after those of the first set and the held-out ones, without any of these."""
        return [p for p in distinct(self._gym.questions()) if int(p.id) >= num_made(self.settings)]

    @cached_property
    def equality(self) -> Equality:
        """What `task.equality` says, or else the data set's own scorer."""
        return Scored(self.dataset, self._gym) if self.settings.equality is None else super().equality

    def correct(self, problem: Problem, answer: str) -> bool:
        """Ask the data set's own scorer; right is a score of `task.threshold`."""
        return _may_be_scored(self.dataset, answer) and self._gym.score(problem, answer) >= self.settings.threshold

    def grade(self, problem: Problem, answer: str | None) -> bool | None:
        """Score an answer; that needs no known one."""
        return answer is not None and self.correct(problem, answer)

    @cached_property
    def _gym(self) -> Gym:
        check(self.dataset, self.settings.options)
        numbers = {"size": num_made(self.settings) + num_further(self.settings), "seed": self.settings.split_seed}
        return shared_gym(self.dataset, json.dumps(self.settings.options | numbers))


@lru_cache(maxsize=2)
def shared_gym(dataset: str, settings: str) -> Gym:
    """Return the process of a data set; all tasks with the same settings, as JSON, share it."""
    return Gym(dataset, json.loads(settings))


def check(name: str, options: Mapping[str, Any]) -> None:
    """Refuse a data set that does not exist, or options that it does not have.

    Raises:
        ConfigError: names those there.
        MissingExtra: reasoning-gym is not installed.
    """
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise MissingExtra(f"task reasoning_gym:{name}", "tasks") from None
    names = sorted(set(DATASETS) - {"composite"})
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"The data sets are: {', '.join(names)}."
        raise ConfigError(f"task.name: reasoning-gym has no data set {name!r}. {hint}")
    allowed = [field for field in DATASETS[name][1].__dataclass_fields__ if field not in ("size", "seed")]
    unknown = [option for option in options if option not in allowed]
    if unknown:
        has = f"which has: {', '.join(allowed)}" if allowed else "which has none"
        raise ConfigError(f"task.options.{unknown[0]} is not a setting of reasoning_gym:{name}, {has}.")
