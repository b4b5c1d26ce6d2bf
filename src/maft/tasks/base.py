"""What a task is: questions, how they are asked, and how an answer to one is graded."""

import logging
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from maft import seeds
from maft.answers import EQUALITIES, Equality, extract_answer
from maft.answers.meaning import Embedded, Judged
from maft.config import TaskConfig
from maft.errors import DataError
from maft.extensions import find
from maft.models.embedding import encoder
from maft.records import Problem

log = logging.getLogger("maft")

Grade = Callable[[Problem, str | None], bool | None]
"""Whether an answer is right; None where nobody knows. An answer that is None could not be read, and is wrong."""


class Split(NamedTuple):
    """Training and held-out questions."""

    train: Sequence[Problem]
    eval: Sequence[Problem]
    duplicates: int = 0
    """Questions left out because they were there already."""


class Task(ABC):
    """A source of questions: what is asked, in which words, how an answer is read and how it is graded."""

    prompts: Mapping[str, str] = {}
    """Wording of single prompts that suits this task, by name; see `maft.config.prompts`."""

    read: Callable[[str], str | None] = staticmethod(extract_answer)
    """How an answer is read."""

    own_equality: type[Equality] = EQUALITIES["mathematics"]
    """Which answers are the same, unless `task.equality` says otherwise."""

    def __init__(self, settings: TaskConfig) -> None:
        self.settings = settings

    @cached_property
    def equality(self) -> Equality:
        """Which answers to a question are the same."""
        name = self.settings.equality
        if name is None:
            return self.own_equality()
        if name == "judge":
            return Judged(self.settings.judge)
        if name == "embedding":
            return Embedded(encoder(self.settings.encoder), self.settings.similarity)
        kind: type[Equality] = EQUALITIES.get(name) or find("equality", name, Equality)
        return kind()

    def begin(self) -> Mapping[str, Any]:
        """Make sure that answers can be compared on this machine; return what the manifest says of it.

        Raises:
            ConfigError: they cannot, or not safely.
        """
        return {}

    @abstractmethod
    def questions(self) -> Split:
        """Return the training and the held-out questions, before they are cut to the numbers asked for.

        Raises:
            DataError: the questions cannot be read.
        """

    def further_questions(self) -> Sequence[Problem]:
        """Return the training questions of the sets after the first, see `task.train_sets`."""
        return ()

    def extract(self, text: str) -> str | None:
        """Read the answer out of a reply; None where there is none."""
        return self.read(text)

    def show(self, answer: str) -> str:
        """Return a reply that gives this answer in the way that the prompts ask for."""
        return f"The answer is \\boxed{{{answer}}}."

    def reference(self, problem: Problem) -> str | None:
        """Return a right answer to a question, as an agent would give it; None where nobody knows one."""
        return problem.gold

    def correct(self, problem: Problem, answer: str) -> bool:
        """Say whether an answer to a question with a known answer is right. Training never asks."""
        return problem.gold is not None and self.equality.same(answer, problem.gold, problem)

    def grade(self, problem: Problem, answer: str | None) -> bool | None:
        """Say whether an answer is right, see `Grade`."""
        if problem.gold is None:
            return None
        if answer is not None and not self.equality.knows(answer, problem.gold, problem):
            return None
        return answer is not None and self.correct(problem, answer)


def split_by_key(problems: Sequence[Problem], settings: TaskConfig) -> Split:
    """Divide one set of questions by seed; those with the same `split_key` stay together.

    Training is filled first; the rest can be held out. Without numbers, each side gets half. Where only some questions
    have a known answer, those without are for training, which then gets all of them unless `num_train` says otherwise.

    Raises:
        DataError: there are fewer questions than asked for.
    """
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.split_key or problem.id, []).append(problem)
    unknown = {problem.id for problem in problems if problem.gold is None}
    mixed = 0 < len(unknown) < len(problems)

    def place(key: str) -> tuple[bool, int]:
        last = mixed and all(problem.id not in unknown for problem in groups[key])
        return last, seeds.seed(settings.split_seed, "split", key)

    half = max(len(problems) // 2, len(unknown) if mixed else 0)
    num_train = settings.num_train or (len(problems) - settings.num_eval if settings.num_eval else half)
    num_eval = settings.num_eval or len(problems) - num_train
    if num_train + num_eval > len(problems):
        raise DataError(
            f"task.num_train + task.num_eval = {num_train} + {num_eval}, but there are only {len(problems)} questions. "
            "Ask for fewer."
        )
    train: list[Problem] = []
    held_out: list[Problem] = []
    for key in sorted(groups, key=place):
        side = train if len(train) + len(groups[key]) <= num_train else held_out
        side += groups[key]
    if mixed:
        known = [problem for problem in held_out if problem.id not in unknown]
        if len(known) < len(held_out):
            log.warning(
                "%d questions without a known answer are not used: task.num_train = %d leaves no place for them, and "
                "held-out questions need a known answer.",
                *(len(held_out) - len(known), num_train),
            )
        held_out = known
        num_eval = settings.num_eval or len(held_out)
    return Split(_cut(train, num_train, "train", settings), _cut(held_out, num_eval, "eval", settings))


def _cut(problems: Sequence[Problem], wanted: int | None, side: str, settings: TaskConfig) -> list[Problem]:
    if wanted is not None and len(problems) < wanted:
        raise DataError(
            f"task.num_{side} = {wanted}, but only {len(problems)} questions of task {settings.name} are left for it, "
            "since related questions stay on one side. Ask for fewer."
        )
    shuffled = sorted(problems, key=lambda problem: seeds.seed(settings.split_seed, "order", problem.id))
    return shuffled[:wanted]


def num_made(settings: TaskConfig) -> int:
    """Return how many questions a task makes that could make any number."""
    if settings.size is None and settings.num_train and settings.num_eval:
        return settings.num_train + settings.num_eval
    return settings.size or 1_000


def num_further(settings: TaskConfig) -> int:
    """Return how many questions the training sets after the first have."""
    return (settings.train_sets - 1) * (settings.num_train or 0)


def train_set(problems: Sequence[Problem], settings: TaskConfig, iteration: int) -> Sequence[Problem]:
    """Return the training questions of an iteration (from 1), of all sets one after the other.

    >>> train_set("aabbcc", TaskConfig(name="reasoning_gym:x", num_train=2, train_sets=3), 5)
    'bb'
    """
    size = len(problems) // settings.train_sets
    start = (iteration - 1) % settings.train_sets * size
    return problems[start : start + size]


def distinct(problems: Sequence[Problem]) -> list[Problem]:
    """Keep each question once, by normalised text, and tell how many that leaves out."""
    kept: dict[str, Problem] = {}
    again = [p for p in problems if kept.setdefault(normalised(p.question), p) is not p]
    if again:
        torn = sum(p.gold != kept[normalised(p.question)].gold for p in again)
        log.warning(
            "%d of %d questions occur more than once, such as %r; each is kept once%s.",
            len(again),
            len(problems),
            again[0].question[:60],
            f", with its first answer ({torn} have others later)" if torn else "",
        )
    return list(kept.values())


def prepare(task: Task) -> Split:
    """Return the questions of a run: cut to the numbers asked for, and proved to be apart.

    Raises:
        DataError: a side is empty, an id occurs twice, the sides overlap, or only some held-out answers are known.
    """
    settings, split = task.settings, task.questions()
    train = _cut(split.train, settings.num_train, "train", settings)
    held_out = _cut(split.eval, settings.num_eval, "eval", settings)
    if wanted := num_further(settings):
        further = task.further_questions()
        if len(further) < wanted:
            raise DataError(
                f"task.train_sets = {settings.train_sets} needs {wanted} further questions, and only {len(further)} "
                "others could be made. Ask for fewer."
            )
        train += further[:wanted]
    for side, problems in (("training", train), ("held-out", held_out)):
        if not problems:
            raise DataError(f"task {settings.name} has no {side} questions. Check the files and numbers under task.")
        twice = [id for id, count in Counter(problem.id for problem in problems).items() if count > 1]
        if twice:
            raise DataError(
                f"{len(twice)} ids are used by several {side} questions, such as {', '.join(twice[:3])}. "
                "Give each question a unique id, or none."
            )
    check_disjoint(train, held_out)
    _check_gold(held_out)
    return Split(train, held_out, split.duplicates)


def _check_gold(held_out: Sequence[Problem]) -> None:
    """Refuse held-out questions that would be left out of every accuracy beside others that are in it."""
    unknown = [problem for problem in held_out if problem.gold is None]
    if 0 < len(unknown) < len(held_out):
        raise DataError(
            f"{len(unknown)} of {len(held_out)} held-out questions have no known answer, such as "
            f"{unknown[0].question[:60]!r}. Questions without an answer are for training: move them to that side."
        )


def check_disjoint(train: Sequence[Problem], held_out: Sequence[Problem]) -> None:
    """Refuse sets that share a question, by normalised text; ids count within a set only.

    Raises:
        DataError: names up to three shared questions.
    """
    texts = {normalised(p.question): p.id for p in train}
    shared = [p for p in held_out if normalised(p.question) in texts]
    if shared:
        named = "; ".join(f"{p.id} ({texts[normalised(p.question)]}): {p.question[:60]!r}" for p in shared[:3])
        raise DataError(
            f"{len(shared)} of {len(held_out)} held-out questions are training questions too, such as {named}. "
            "Accuracy on them would mean nothing. Remove them from one of the two sets."
        )


def normalised(question: str) -> str:
    """Return the text by which two questions are held to be the same one.

    >>> normalised(" What  is 2 × 3 ?") == normalised("what is 2 × 3?")
    True
    """
    # Exponents and indices stay as they are: 2² and 22 are two questions.
    folded = "".join(
        sign
        if unicodedata.decomposition(sign).startswith(("<super>", "<sub>"))
        else unicodedata.normalize("NFKC", sign)
        for sign in unicodedata.normalize("NFC", question)
    )
    return "".join(folded.casefold().split())
