r"""Sums: "What is 7 * 8?" for every pair of numbers and every operator, or numbers drawn into a shape of one's own.

With operators + - * on 0..9 there are 300 questions, on 1..9 without negative differences 207. All questions on the
same two numbers under the same operator, such as 3 + 4 and 4 + 3, stay on one side of the split.

A shape such as `a+b*c+d-e*f` is drawn from, `task.size` questions, no two the same.
"""

import ast
import operator
import re
from collections.abc import Mapping

from maft import seeds
from maft.answers import extract_number
from maft.config import TaskConfig
from maft.errors import ConfigError, DataError
from maft.records import Problem
from maft.tasks.base import Split, Task, num_further, num_made, split_by_key

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


class Arithmetic(Task):
    """Questions `a op b`, or of any other shape, over whole numbers."""

    prompts: Mapping[str, str] = {
        "solve": "{question} Give the final answer as \\boxed{answer}.",
        "summarize": (
            "These are answers of several agents to the question: {question}\n\n{answers}\n\n"
            "Summarise in one or two sentences which answers they gave and why."
        ),
        "critic_summary": (
            "This is a summary of the answers of other agents:\n\n{summary}\n\n"
            "Use it as advice. {question} Give the updated final answer as \\boxed{answer}."
        ),
        "critic_full": (
            "These are the answers of other agents:\n\n{answers}\n\n"
            "Use them as advice. {question} Give the updated final answer as \\boxed{answer}."
        ),
        "critic_alone": "Check your answer. {question} Give the updated final answer as \\boxed{answer}.",
    }

    read = staticmethod(extract_number)

    def questions(self) -> Split:
        """Return every sum of two numbers, or `task.size` of a shape, divided by seed."""
        settings = self.settings
        if settings.low > settings.high:
            raise ConfigError(f"task.low = {settings.low} is above task.high = {settings.high}.")
        problems = _pairs(settings) if settings.shape is None else _drawn(settings)[: num_made(settings)]
        return split_by_key(problems, settings)

    def further_questions(self) -> list[Problem]:
        """Return what is drawn after the first set and the held-out questions."""
        return _drawn(self.settings)[num_made(self.settings) :]


def _pairs(settings: TaskConfig) -> list[Problem]:
    unknown = sorted(set(settings.operators) - set(OPERATORS))
    if unknown or not settings.operators:
        raise ConfigError(f"task.operators = {settings.operators!r}; allowed are one or more of {' '.join(OPERATORS)}.")
    numbers = range(settings.low, settings.high + 1)
    return [
        _problem(a, sign, b)
        for sign in dict.fromkeys(settings.operators)
        for a in numbers
        for b in numbers
        if settings.negative or OPERATORS[sign](a, b) >= 0
    ]


def _problem(a: int, sign: str, b: int) -> Problem:
    return Problem(
        id=f"{a}{sign}{b}",
        question=f"What is {a} {sign} {b}?",
        gold=str(OPERATORS[sign](a, b)),
        split_key=f"{sign} {min(a, b)} {max(a, b)}",
    )


_SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def _drawn(settings: TaskConfig) -> list[Problem]:
    shape = settings.shape or ""
    tree = _parsed(shape)
    letters = sorted(set(re.findall("[a-z]", shape)))
    rng = seeds.rng(settings.split_seed, "arithmetic", shape)
    wanted, made = num_made(settings) + num_further(settings), dict[str, Problem]()
    for _ in range(100 * wanted):  # in a small range the last new ones are long in coming
        numbers = {letter: rng.randint(settings.low, settings.high) for letter in letters}
        value = _value(tree, numbers)
        if settings.negative or value >= 0:
            text = re.sub("[a-z]", lambda match: str(numbers[match[0]]), shape)  # noqa: B023
            spaced = re.sub(r"(?<=[0-9)])([-+*])", r" \1 ", text)
            made.setdefault(text, Problem(id=text, question=f"What is {spaced}?", gold=str(value)))
        if len(made) == wanted:
            return list(made.values())
    raise DataError(
        f"only {len(made)} different questions of the shape {shape} were found between {settings.low} and "
        f"{settings.high}, {wanted} are asked for. Ask for fewer, or widen the range."
    )


def _parsed(shape: str) -> ast.expr:
    """Return the tree of a shape; it is walked, never evaluated."""
    try:
        if re.fullmatch(r"[-+*()0-9a-z]{1,200}", shape) and re.search("[a-z]", shape):
            tree = ast.parse(shape, mode="eval").body
            _value(tree, dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 0))
            return tree
    except (SyntaxError, KeyError, TypeError):
        pass
    raise ConfigError(
        f"task.shape = {shape!r} is not a valid form. Write one letter for each number and + - * ( ) between them, "
        "without spaces, such as a+b*c+d-e*f."
    )


def _value(tree: ast.expr, numbers: Mapping[str, int]) -> int:
    if isinstance(tree, ast.BinOp):
        value: int = _SIGNS[type(tree.op)](_value(tree.left, numbers), _value(tree.right, numbers))
        return value
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    if isinstance(tree, ast.Name):
        return numbers[tree.id]
    raise TypeError(f"{type(tree).__name__} has no place in a sum")
