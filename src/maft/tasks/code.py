"""Programs: a function to write, from rows like those of HumanEval and MBPP or of your own.

Answers are compared by what they do, see `behaviour.py`. A row has a question, the head of the function (`signature`),
and what is known of it: inputs, public tests (shown, and programs that fail them do not vote), gold tests and a
solution, both for reporting only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from maft import seeds
from maft.answers import Equality, thinking
from maft.config import TaskConfig, prompts
from maft.errors import DataError
from maft.records import CodeQuestion, Problem
from maft.sandbox import levels
from maft.tasks import signatures
from maft.tasks.base import Split, log
from maft.tasks.behaviour import Behaviour, Tests, judge
from maft.tasks.rows import Row
from maft.tasks.table import Table, has, made

MAX_CHARS = 8_000
"""A longer program is none."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "prompt", "text"),
    "signature": ("signature",),
    "name": ("entry_point",),
    "inputs": ("inputs",),
    "public_tests": ("public_tests",),
    "tests": ("tests", "test", "test_list"),
    "setup": ("test_setup_code",),
    "solution": ("solution", "canonical_solution", "code"),
}
"""What a row has, and the columns in which it is looked for unless `task.columns` names one."""

_REMEDY = f"Name the columns in task.columns, by: {', '.join(COLUMNS)}."
_SETUP, _TESTS = "\n# --- needed by the tests\n", "\n# --- tests\n"
_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_START = re.compile(r"^(?:from \w|import \w|def \w|class \w|@\w)", re.MULTILINE)
_FUNCTION = re.compile(r"^[ \t]*(?:async )?def \w", re.MULTILINE)


class Code(Table):
    """Functions to write, from files or data sets."""

    prompts: Mapping[str, str] = prompts.asking("function, complete, in one block of Python code (```python)")

    def __init__(self, settings: TaskConfig) -> None:
        super().__init__(settings)
        self._untyped: list[str] = []

    def extract(self, text: str) -> str | None:
        """Take the last block of code that has a function, or the text from where it looks like a program."""
        text = thinking.strip(text).rest
        blocks = [block for block in _FENCE.findall(text) if _FUNCTION.search(block)]
        start = _START.search(text)
        program = blocks[-1] if blocks else text[start.start() :] if start and _FUNCTION.search(text) else ""
        return program.strip("\n").rstrip() if 0 < len(program.strip()) <= MAX_CHARS else None

    def show(self, answer: str) -> str:
        """Return a reply with the program in a block."""
        return f"```python\n{answer}\n```"

    @cached_property
    def equality(self) -> Equality:
        """What `task.equality` says, or else the behaviour on the inputs."""
        return Behaviour(self.settings.sandbox) if self.settings.equality is None else super().equality

    def correct(self, problem: Problem, answer: str) -> bool:
        """Run the gold tests; without any, compare with the solution."""
        solution, tests = known(problem.gold or "")
        if tests.checks and problem.code is not None:
            return judge(self.settings.sandbox).passes(answer, problem.code.name, tests)
        return self.equality.same(answer, solution, problem)

    def reference(self, problem: Problem) -> str | None:
        """Return the solution of a question, without the tests."""
        return known(problem.gold or "")[0] or None

    def begin(self) -> Mapping[str, Any]:
        """Find the level of protection at which programs run here."""
        level = levels.check(allow_weak=self.settings.sandbox.allow_weak)
        log.info("%s", level.sentence)
        return {"sandbox": level.record}

    def questions(self) -> Split:
        """Read the rows, and make sure that their solutions pass their gold tests, or that these can be run at all."""
        levels.check(allow_weak=self.settings.sandbox.allow_weak)
        self._untyped.clear()
        split = super().questions()
        if self._untyped:
            log.warning(
                "%d signatures have parameters without types, and nothing shows how they are called, such as %s: their "
                "programs are compared on numbers, texts and lists. Better give types, inputs or public tests.",
                *(len(self._untyped), self._untyped[0]),
            )
        self._check_solutions([*split.train, *split.eval])
        return split

    def problem(self, row: Row) -> Problem:
        """Read a row; inputs are drawn by `task.split_seed` and the question."""
        asked = self._text(row, "question")
        solution, tests = self._text(row, "solution"), self._tests(row, "tests")
        shown = self._tests(row, "public_tests") or (tests[:1] if self._column(row, "tests") == "test_list" else [])
        try:
            signature = self._signature(row, asked, solution, [*shown, *tests])
            given = [_arguments(value) for value in self._list(row, "inputs")]
            given += [call for test in shown for call in signatures.calls(test, signature.name)]
            if not given and any(annotation is None for _, annotation in signature.parameters):
                given = signatures.examples(asked, signature.name)
                given = [arguments for arguments in given if len(arguments) >= len(signature.parameters)]
                self._untyped += [] if given else [row.where]
            rng = seeds.rng(self.settings.split_seed, "inputs", asked)
            inputs = signatures.inputs(signature, given, self.settings.num_inputs, rng)
        except ValueError as error:
            raise DataError(f"{row.where}: {error}. See docs/howto/code.md for what a row needs.") from None
        code = CodeQuestion(
            name=signature.name,
            signature=signature.text,
            inputs=tuple(repr(arguments) for arguments in inputs),
            tests=tuple(shown) if self.settings.filter_by_tests else (),
        )
        is_said = not self._text(row, "signature") and bool(shown)  # as in MBPP, where tests show how it is called
        question = _question(asked, "" if is_said else signature.text, shown)
        setup = "\n".join(filter(None, [self._text(row, "setup"), asked if _is_program(asked) else ""]))
        if _is_program(asked) and solution and not _is_program(solution):
            solution = asked + solution  # as in HumanEval, where it goes on from the head
        gold = _gold(solution, Tests(setup, "\n".join(tests))) if solution or tests else None
        return made(row, question, gold).model_copy(update={"code": code})

    def _signature(self, row: Row, asked: str, solution: str, tests: Sequence[str]) -> signatures.Signature:
        name = self._text(row, "name") or None
        given = self._text(row, "signature")
        for text in filter(None, [given, asked if _is_program(asked) else "", solution]):
            named = name or _called(text, tests)
            try:
                return signatures.parse(text, named)
            except ValueError as error:
                raise ValueError(f"the signature {text!r:.80} cannot be parsed: {error}") from None
        raise ValueError("there is no signature, such as 'def add(a: int, b: int) -> int'")

    def _column(self, row: Row, what: str) -> str | None:
        chosen = self.settings.columns.get(what)
        if what == "question" and chosen is None and self.settings.question_field != "question":
            chosen = self.settings.question_field
        if chosen is not None:
            if not has(row, chosen):
                fields = ", ".join(map(repr, row.fields))
                raise DataError(f"{row.where} has no field {chosen!r} for {what}; it has {fields}. {_REMEDY}")
            return chosen
        return next((name for name in COLUMNS[what] if row.fields.get(name) is not None), None)

    def _field(self, row: Row, what: str) -> Any:
        column = self._column(row, what)
        return None if column is None else row.fields.get(column)

    def _text(self, row: Row, what: str) -> str:
        value = self._field(row, what)
        if value is None and what == "question":
            raise DataError(f"{row.where} has no question; it has {', '.join(map(repr, row.fields))}. {_REMEDY}")
        if not isinstance(value, str | None):
            raise DataError(f"{row.where}: {what} must be a text, got {value!r:.80}. {_REMEDY}")
        return value or ""

    def _list(self, row: Row, what: str) -> list[Any]:
        value = self._field(row, what)
        if isinstance(value, str) and what == "inputs":
            try:
                value = json.loads(value)
            except ValueError:
                value = value.splitlines()
        if not isinstance(value, list | None):
            raise DataError(f"{row.where}: {what} must be a list, got {value!r:.80}. {_REMEDY}")
        return value or []

    def _tests(self, row: Row, what: str) -> list[str]:
        value = self._field(row, what)
        tests = [value] if isinstance(value, str) and value.strip() else self._list(row, what) if value else []
        if not all(isinstance(test, str) for test in tests):
            raise DataError(f"{row.where}: {what} must be Python, as a text or a list of texts. {_REMEDY}")
        return tests

    def _check_solutions(self, problems: Sequence[Problem]) -> None:
        """Refuse questions whose own solution is graded as wrong: accuracy on them would mean nothing."""
        failed, unusable, useless = list[str](), list[str](), list[str]()
        for problem in problems:
            solution, tests = known(problem.gold or "")
            if solution and tests.checks and problem.code is not None:
                why = judge(self.settings.sandbox).failure(solution, problem.code.name, tests)
                failed += [f"{problem.id}: {why}"] if why else []
            elif tests.checks and problem.code is not None:
                why = signatures.unusable(tests.setup, tests.checks, problem.code.name)
                unusable += [f"{problem.id}: {why}"] if why else []
            elif solution and not self.equality.same(solution, solution, problem):
                useless += [problem.id]
        if failed:
            raise DataError(
                f"the gold tests of {len(failed)} of {len(problems)} questions fail on their own solution, such as "
                f"{'; '.join(failed[:3])}. Correct the tests or the solution, or take the questions out."
            )
        if unusable:
            raise DataError(
                f"the gold tests of {len(unusable)} of {len(problems)} questions cannot be run, such as "
                f"{'; '.join(unusable[:3])}. Correct them, or take them out."
            )
        if useless:
            raise DataError(
                f"the solutions of {len(useless)} of {len(problems)} questions, such as {', '.join(useless[:3])}, "
                "cannot be loaded, fail the public tests or return no value on any input, so that no program would be "
                "right. Correct them, or take the questions out."
            )


def known(gold: str) -> tuple[str, Tests]:
    """Take a known answer apart: solution and tests."""
    rest, _, checks = gold.partition(_TESTS)
    solution, _, setup = rest.partition(_SETUP)
    return solution, Tests(setup, checks)


def _gold(solution: str, tests: Tests) -> str:
    setup = _SETUP + tests.setup if tests.setup and tests.checks else ""
    return solution.rstrip() + setup + (_TESTS + tests.checks if tests.checks else "")


def _is_program(text: str) -> bool:
    """Say whether a text is the beginning of a program, as HumanEval's questions are, and not a sentence."""
    start = _START.search(text)
    return start is not None and not text[: start.start()].strip() and _FUNCTION.search(text) is not None


def _called(text: str, tests: Sequence[str]) -> str | None:
    """Return the function of a program that tests call."""
    names = re.findall(r"^def (\w+)", text, re.MULTILINE)
    return next((name for name in names if any(signatures.calls(test, name) for test in tests)), None)


def _arguments(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        read = signatures.literal(f"({value},)" if value.strip() else "()")
        return read[0] if len(read) == 1 and isinstance(read[0], tuple) else tuple(read)
    return tuple(value) if isinstance(value, list) else (value,)


def _question(asked: str, signature: str, shown: Sequence[str]) -> str:
    parts = [f"Complete this function.\n\n```python\n{asked.rstrip()}\n```" if _is_program(asked) else asked.strip()]
    if signature not in asked:
        parts.append(f"Write the function `{signature}`.")
    missing = [test.strip() for test in shown if test.strip() not in asked]
    if missing:
        tests = "\n".join(missing)
        parts.append(f"It must pass these tests:\n\n```python\n{tests}\n```")
    return "\n\n".join(parts)
