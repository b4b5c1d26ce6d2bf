r"""Small sums: "What is 7 * 8?" for every pair of numbers and every operator.

With operators + - * on 0..9 there are 300 questions, on 1..9 without negative differences 207. All questions on the
same two numbers under the same operator, such as 3 + 4 and 4 + 3, stay on one side of the split.
"""

import operator
from collections.abc import Mapping

from maft.answers import extract_number
from maft.config import TaskConfig
from maft.errors import ConfigError
from maft.records import Problem
from maft.tasks.base import Split, split_by_key

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


class Arithmetic:
    """Questions `a op b` over whole numbers."""

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

    def extract(self, text: str) -> str | None:
        """Take the boxed answer, or else the last number: small models often forget the box."""
        return extract_number(text)

    def questions(self, settings: TaskConfig) -> Split:
        """Return every question, divided by seed."""
        unknown = sorted(set(settings.operators) - set(OPERATORS))
        if unknown or not settings.operators:
            raise ConfigError(
                f"task.operators = {settings.operators!r}; allowed are one or more of {' '.join(OPERATORS)}."
            )
        if settings.low > settings.high:
            raise ConfigError(f"task.low = {settings.low} is above task.high = {settings.high}.")
        numbers = range(settings.low, settings.high + 1)
        problems = [
            _problem(a, sign, b)
            for sign in dict.fromkeys(settings.operators)
            for a in numbers
            for b in numbers
            if settings.negative or OPERATORS[sign](a, b) >= 0
        ]
        return split_by_key(problems, settings)


def _problem(a: int, sign: str, b: int) -> Problem:
    return Problem(
        id=f"{a}{sign}{b}",
        question=f"What is {a} {sign} {b}?",
        gold=str(OPERATORS[sign](a, b)),
        split_key=f"{sign} {min(a, b)} {max(a, b)}",
    )
