"""What a task is: questions, how they are asked, and how an answer to one is graded."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from maft import seeds
from maft.config import TaskConfig
from maft.errors import DataError
from maft.records import Problem


class Task(Protocol):
    """A source of questions."""

    prompts: Mapping[str, str]
    """Wording of single prompts that suits this task, by name; see `maft.prompts`."""

    def extract(self, text: str) -> str | None:
        """Read the answer out of a reply; None where there is none."""
        ...

    def questions(self, settings: TaskConfig) -> "Split":
        """Return the training and the held-out questions, before they are cut to the numbers asked for.

        Raises:
            DataError: the questions cannot be read.
        """
        ...


class Split(NamedTuple):
    """Training and held-out questions."""

    train: Sequence[Problem]
    eval: Sequence[Problem]


def split_by_key(problems: Sequence[Problem], settings: TaskConfig) -> Split:
    """Divide one set of questions by seed; those with the same `split_key` stay together.

    Training is filled first; the rest can be held out. Without numbers, each side gets half.

    Raises:
        DataError: there are fewer questions than asked for.
    """
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.split_key or problem.id, []).append(problem)
    order = sorted(groups, key=lambda key: seeds.seed(settings.split_seed, "split", key))
    half = len(problems) // 2
    num_train = settings.num_train or (len(problems) - settings.num_eval if settings.num_eval else half)
    num_eval = settings.num_eval or len(problems) - num_train
    if num_train + num_eval > len(problems):
        raise DataError(
            f"task.num_train + task.num_eval = {num_train} + {num_eval}, but there are only {len(problems)} questions. "
            "Ask for fewer."
        )
    train: list[Problem] = []
    held_out: list[Problem] = []
    for key in order:
        side = train if len(train) + len(groups[key]) <= num_train else held_out
        side += groups[key]
    return Split(_cut(train, num_train, "train", settings), _cut(held_out, num_eval, "eval", settings))


def _cut(problems: Sequence[Problem], wanted: int | None, side: str, settings: TaskConfig) -> list[Problem]:
    if wanted is not None and len(problems) < wanted:
        raise DataError(
            f"task.num_{side} = {wanted}, but only {len(problems)} questions of task {settings.name} are left for it, "
            "since related questions stay on one side. Ask for fewer."
        )
    shuffled = sorted(problems, key=lambda problem: seeds.seed(settings.split_seed, "order", problem.id))
    return shuffled[:wanted]


def prepare(task: Task, settings: TaskConfig) -> Split:
    """Return the questions of a run: cut to the numbers asked for, and proved to be apart.

    Raises:
        DataError: a side is empty, an id occurs twice, or the sides overlap.
    """
    split = task.questions(settings)
    train = _cut(split.train, settings.num_train, "train", settings)
    held_out = _cut(split.eval, settings.num_eval, "eval", settings)
    for side, problems in (("training", train), ("held-out", held_out)):
        if not problems:
            raise DataError(f"task {settings.name} has no {side} questions. Check the files and numbers under task.")
        twice = [id for id, count in Counter(problem.id for problem in problems).items() if count > 1]
        if twice:
            raise DataError(
                f"{len(twice)} ids stand for several {side} questions each, such as {', '.join(twice[:3])}. "
                "Give each question an id of its own, or none."
            )
    check_disjoint(train, held_out)
    return Split(train, held_out)


def check_disjoint(train: Sequence[Problem], held_out: Sequence[Problem]) -> None:
    """Refuse sets that share a question, by id or by normalised text.

    Raises:
        DataError: names up to three shared questions.
    """
    ids, texts = {p.id for p in train}, {normalised(p.question) for p in train}
    shared = [p for p in held_out if p.id in ids or normalised(p.question) in texts]
    if shared:
        named = "; ".join(f"{p.id}: {p.question[:60]!r}" for p in shared[:3])
        raise DataError(
            f"{len(shared)} of {len(held_out)} held-out questions are training questions too, such as {named}. "
            "Accuracy on them would mean nothing: take them out of one of the two sets."
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
