"""Task `code`: rows of programs, the vote over behaviours, and the whole loop with programs from a script."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT, SMALL_ENGINE, run, settings

from maft import files, seeds, tasks
from maft.config import SandboxConfig, TaskConfig
from maft.errors import ConfigError, DataError
from maft.records import CodeQuestion, GradedVote, Problem, Vote
from maft.sandbox import levels
from maft.sandbox.limits import LEVELS, LIMITS, Limits
from maft.sandbox.run import ENDED, Sandbox
from maft.tasks import behaviour, signatures
from maft.tasks.behaviour import Behaviour, Judge
from maft.tasks.code import Code

DOUBLE = {
    "question": "Return twice the number.",
    "signature": "def double(n: int) -> int",
    "tests": ["assert double(2) == 4", "assert double(-3) == -6"],
    "solution": "def double(n):\n    return 2 * n",
}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "from typing import List\n\n\ndef near(numbers: List[float], threshold: float) -> bool:\n"
    '    """ Say whether two numbers are nearer than the threshold.\n    >>> near([1.0, 2.0], 0.5)\n    False\n    """\n',
    "entry_point": "near",
    "canonical_solution": "    return any(abs(a - b) < threshold for i, a in enumerate(numbers) for b in numbers[:i])\n",
    "test": "def check(candidate):\n    assert candidate([1.0, 2.0], 0.5) == False\n    assert candidate([1.0, 1.1], 0.5)\n",
}
MBPP = {
    "text": "Write a function to add two numbers.",
    "code": "def helper(a):\n    return a\n\ndef add(a, b):\n    return helper(a) + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(-4, 5) == 1"],
    "test_setup_code": "",
}


def task(tmp_path: Path, *rows: dict[str, object], **how: object) -> Code:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tasks.make(TaskConfig(name="code", train_file=path, **how))


def read(tmp_path: Path, row: dict[str, object], **how: object) -> Problem:
    from maft.tasks.rows import Row

    return task(tmp_path, row, **how).problem(Row("rows.jsonl, line 1", row))


def classes(code: CodeQuestion, *programs: str | None) -> tuple[int | None, ...]:
    return Behaviour(SandboxConfig(call_seconds=0.2)).classes(programs, Problem(id="q", question="?", code=code))


# Rows


def test_rows_of_our_own_humaneval_and_mbpp_are_read(tmp_path):
    own, humaneval, mbpp = (read(tmp_path, row) for row in (DOUBLE, HUMANEVAL, MBPP))
    assert own.code.signature == "def double(n: int) -> int" and own.code.signature in own.question
    assert humaneval.code.name == "near" and humaneval.question.startswith("Complete this function.\n\n```python\nfrom")
    assert mbpp.code.name == "add" and mbpp.code.tests == ("assert add(1, 2) == 3",)
    assert "assert add(1, 2) == 3" in mbpp.question and "add(-4, 5)" not in mbpp.question
    assert mbpp.code.inputs[0] == "(1, 2)"
    assert [len(p.code.inputs) for p in (own, humaneval, mbpp)] == [20, 20, 20]


@pytest.mark.parametrize("row", [DOUBLE, HUMANEVAL, MBPP])
def test_the_solution_passes_the_gold_tests_and_another_program_does_not(tmp_path, row):
    made, problem = task(tmp_path, row), read(tmp_path, row)
    solution = made.reference(problem)
    assert made.grade(problem, made.extract(made.show(solution)))
    assert made.grade(problem, "def f(): pass") is False and made.grade(problem, None) is False
    wrong = f"def {problem.code.name}(*args):\n    return 'wrong'"
    assert not made.grade(problem, wrong)


def test_without_tests_the_solution_is_what_programs_are_compared_with(tmp_path):
    row = {name: DOUBLE[name] for name in ("question", "signature", "solution")}
    made, problem = task(tmp_path, row), read(tmp_path, row)
    assert made.grade(problem, "def double(n):\n    return n + n") and not made.grade(
        problem, "def double(n):\n    return 3 * n"
    )
    unknown = read(tmp_path, {name: DOUBLE[name] for name in ("question", "signature")})
    assert unknown.gold is None and made.grade(unknown, "def double(n): ...") is None


def test_columns_can_be_named(tmp_path):
    row = {"task": "Double it.", "head": "def double(n: int)", "args": [[1], [2], [3]]}
    problem = read(tmp_path, row, columns={"question": "task", "signature": "head", "inputs": "args"}, num_inputs=3)
    assert problem.code.inputs == ("(1,)", "(2,)", "(3,)")
    with pytest.raises(DataError, match=r"line 1 has no field 'haed' for signature; it has 'task', 'head', 'args'"):
        read(tmp_path, row, columns={"question": "task", "signature": "haed"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signature": "def double(n: int"}, r"line 1: the signature 'def double\(n: int' cannot be parsed"),
        ({"signature": "def double(*n)"}, "parameters must be named one by one"),
        ({"signature": "def double(n: Graph)"}, "no values can be drawn of type Graph"),
        ({"signature": "def double(n: dict[list[int], int])"}, "no values can be drawn for def double.*unhashable"),
        ({"signature": "def double(n: 'list[')"}, "no values can be drawn of type 'list"),
        ({"signature": None, "solution": None}, "there is no signature"),
        ({"question": None}, "line 1 has no question; it has 'question', 'signature'"),
        ({"inputs": [[]]}, "takes 1 arguments"),
        ({"inputs": ["open('x')"]}, "no literal"),
        ({"tests": [1]}, "tests must be Python"),
    ],
)
def test_rows_that_cannot_be_used_are_one_clear_line(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, DOUBLE | changes)
    assert "\n" not in str(error.value)


def test_parameters_without_types_are_drawn_like_what_the_question_shows_or_counted(tmp_path, caplog):
    shown = DOUBLE | {"signature": "def double(n)", "question": "Twice a text: double('ab') is 'abab'."}
    assert read(tmp_path, shown).code.inputs[0] == "('ab',)"
    bare = [DOUBLE | {"signature": "def double(n)", "question": f"Twice, {n}."} for n in range(3)]
    task(tmp_path, *bare).questions()
    assert "3 signatures have parameters without types" in caplog.text and "line 1" in caplog.text


def test_gold_tests_that_fail_on_the_solution_are_refused_at_start(tmp_path):
    broken = DOUBLE | {"tests": ["assert double(2) == 5"]}
    with pytest.raises(
        DataError, match=r"gold tests of 1 of 2 questions fail .*: AssertionError at 'assert double\(2\) == 5'"
    ) as error:
        task(tmp_path, broken, MBPP).questions()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        (["assert double(2 == 4"], "SyntaxError: '.' was never closed"),
        (["assert triple(2) == 6"], "the tests do not name double"),
    ],
)
def test_gold_tests_without_a_solution_are_read_at_start(tmp_path, tests, why):
    row = DOUBLE | {"solution": None, "tests": tests}
    with pytest.raises(DataError, match=f"gold tests of 1 of 2 questions cannot be run, such as [0-9a-f]+: {why}"):
        task(tmp_path, row, MBPP).questions()
    assert task(tmp_path, DOUBLE | {"solution": None}, HUMANEVAL | {"canonical_solution": None}).questions()


def test_a_program_without_behaviour_is_like_no_other(tmp_path):
    row = {"question": "Double it.", "signature": "def double(n: int) -> int"}
    made, problem = task(tmp_path, row), read(tmp_path, row | {"solution": "import no_such\ndef double(n): return n"})
    assert made.grade(problem, "def double(") is False
    rows = [row | {"question": f"{n}?", "solution": "import no_such\ndef double(n): return n"} for n in range(4)]
    with pytest.raises(DataError, match="the solutions of 4 of 4 questions, such as"):
        task(tmp_path, *rows).questions()


def test_tests_in_functions_are_run_and_tests_without_a_call_pass_for_nobody(tmp_path):
    inside = DOUBLE | {"tests": "def test_double():\n    assert double(2) == 4"}
    made, problem = task(tmp_path, inside), read(tmp_path, inside)
    assert made.grade(problem, DOUBLE["solution"]) and made.grade(problem, "def double(n): return n") is False
    made = task(tmp_path, *(DOUBLE | {"question": f"{n}?", "tests": "import math"} for n in range(2)))
    with pytest.raises(DataError, match="the tests do not call double"):
        made.questions()


def test_inputs_are_drawn_by_seed_from_the_types(tmp_path):
    draws = [read(tmp_path, DOUBLE, split_seed=seed).code.inputs for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 20
    text = "def f(a: list[str], b: dict[str, int], c: tuple[int, ...], d: Optional[set[int]], e: 'int | None', g: Literal[1, 'x'], h=2)"
    signature = signatures.parse(text)
    for a, b, c, d, e, g in signatures.inputs(signature, [], 30, seeds.rng(0, "test")):
        assert all(isinstance(x, str) for x in a) and all(isinstance(b[key], int) for key in b)
        assert isinstance(c, tuple) and isinstance(d, set | None) and isinstance(e, int | None) and g in (1, "x")


# The vote


def test_programs_that_behave_alike_are_one_answer_and_those_without_values_abstain():
    code = CodeQuestion(name="f", signature="def f(x: list[int])", inputs=("([],)", "([1],)", "([3, 1, 2],)"))
    assert classes(
        code,
        "def f(x):\n    return sorted(x)",
        "def f(x):\n    x.sort()\n    return x",
        "def f(x):\n    return sorted(x, reverse=True)",
        "def f(x):\n    return tuple(sorted(x))",
        "def f(x) return x",
        "def g(x):\n    return x",
        "def f(x):\n    raise ValueError",
        "def f(x):\n    while True: pass",
        "import sys\nsys.exit()",
        "print([1])\nf = sorted",
        None,
    ) == (0, 0, 1, 2, None, None, None, None, None, 0, None)


def test_objects_are_alike_that_hold_the_same():
    code = CodeQuestion(name="f", signature="def f(x: int)", inputs=("(1,)", "(2,)"))
    node = "class Node:\n    def __init__(self, x):\n        self.x = x\n\ndef f(x):\n    return Node(Node({}))"
    long = "import types\ndef f(x):\n    return types.SimpleNamespace(x=[0] * 400 + [{}])"
    assert classes(code, node.format("x"), node.format("x + 1"), node.format("1 * x")) == (0, 1, 0)
    assert classes(code, long.format("x"), long.format("x + 1")) == (0, 1)


@pytest.mark.parametrize(
    "value",
    [
        "lambda y: x",
        "[abs, lambda: x]",
        "{'f': f}",
        "g",
        "functools.partial(f, x)",
        "Slots()",
        "object()",
        "co(x)",
        "Slots",
        "[0] * 30_000",
    ],
)
def test_what_cannot_be_compared_is_no_behaviour(value):
    code = CodeQuestion(name="f", signature="def f(x: int)", inputs=("(1,)", "(2,)"))
    program = (
        "import functools\nclass Slots:\n    __slots__ = ()\nasync def co(x):\n    return x\ndef g():\n    pass\n"
        f"def f(x):\n    return {value}"
    )
    assert classes(code, program, program + "  # the same", "def f(x):\n    return x") == (None, None, 0)


def test_a_fault_is_tried_once_more_and_then_no_answer_with_a_word(caplog, monkeypatch):
    code = CodeQuestion(name="f", signature="def f(x: int)", inputs=("(1,)", "(2,)"))
    judge = Judge(SandboxConfig(call_seconds=0.2))
    judge._programs = Sandbox(levels.strongest().name, Limits(wall_seconds=1.0), 2)
    run, faults = judge._outcomes, [ENDED]
    monkeypatch.setattr(judge, "_outcomes", lambda *asked: [faults.pop()] if faults else run(*asked))
    once, whole = judge.behaviours(["def f(x):\n    return x", "def f(x):\n    return  x"], code)
    assert once == whole is not None and not judge.stopped and not caplog.messages
    sleeps = "import time\ndef f(x):\n    return x if x < 2 else time.sleep(9)"
    assert judge.behaviours([sleeps], code) == [None]
    assert judge.stopped == {"wall time": 1} and "stopped (wall time), again" in caplog.text
    tests = behaviour.Tests("", "assert f(1) == 1 and f(2) is None")
    assert judge.failure(sleeps, "f", tests) == "a call was stopped: wall time" and "in its tests" in caplog.text
    caplog.set_level("INFO")
    judge.close()
    assert "count as no answer: wall time 1." in caplog.text


@pytest.mark.parametrize(
    ("a", "b", "is_same"),
    [
        ("x", "float(x)", True),
        ("x * 0.1 * 3", "x * 0.3", True),
        ("x > 3", "int(x > 3)", True),
        ("str(x)", "x", False),
        ("{x, 1, 2}", "{2, 1, x}", True),
        ("{'a': x, 'b': 1}", "{'b': 1, 'a': x}", True),
        ("[x, 1]", "[1, x]", False),
        ("[x]", "(x,)", False),
        ("2 ** (x + 200)", "2 ** (x + 200) + 1", False),
        ("x / (x - 1)", "x / (x - 1) if x != 1 else 1 / 0", True),
        ("x / (x - 1)", "x / (x - 1) if x != 1 else [][0]", False),
        ("float('nan')", "float('nan')", True),
        ("map(abs, [x])", "iter([x])", True),
        ("map(abs, [x])", "iter([x + 1])", False),
        ("type(x)", "int", True),
        ("[len, type(x)]", "[len, str]", False),
    ],
)
def test_values_are_compared_as_python_compares_them(a, b, is_same):
    code = CodeQuestion(name="f", signature="def f(x: int)", inputs=("(1,)", "(5,)", "(7,)"))
    first, second = classes(code, f"def f(x):\n    return {a}", f"def f(x):\n    return {b}")
    assert None not in (first, second) and (first == second) is is_same


def test_programs_that_fail_a_public_test_do_not_vote():
    code = CodeQuestion(name="f", signature="def f(x: int)", inputs=("(1,)", "(2,)"), tests=("assert f(5) == 6",))
    assert classes(code, "def f(x):\n    return x + 1", "def f(x):\n    return x", "def f(n):\n    return 1 + n") == (
        0,
        None,
        0,
    )


def test_the_known_answer_is_not_where_a_program_could_find_it(tmp_path):
    """A program sees its arguments only: it searches its whole process for the tests and returns what it finds."""
    thief = (
        "import gc, sys\ndef double(n):\n    seen = []\n    frame = sys._getframe()\n    while frame:\n"
        "        seen.append(repr(frame.f_locals)[:100000])\n        frame = frame.f_back\n"
        "    seen += [repr(thing)[:1000] for thing in gc.get_objects() if isinstance(thing, (str, list, dict))]\n"
        "    return any(part in text for text in seen for part in ('as' + 'sert double(2)', 'dou' + 'ble(-3)'))"
    )
    made, problem = task(tmp_path, DOUBLE), read(tmp_path, DOUBLE, num_inputs=1)
    honest = made.equality.classes([thief, "def double(n):\n    return False"], problem)
    assert honest == (0, 0) and not made.grade(problem, thief)


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        ("Here:\n```python\ndef f(x):\n    return x\n```\nDone.", "def f(x):\n    return x"),
        (
            "```\ndef f(x):\n    return 1\n```\n```python\ndef f(x):\n    return 2\n```\n```\nf(1)\n```",
            "def f(x):\n    return 2",
        ),
        ("Sure.\n\nimport math\ndef f(x):\n    return math.pi", "import math\ndef f(x):\n    return math.pi"),
        ("```python\ndef f(x):\n    return x", "def f(x):\n    return x"),
        ("The function returns x.", None),
        ("```python\nprint(1)\n```", None),
        ("```python\ndef f(x):\n    return " + "1 + " * 4000 + "1\n```", None),
    ],
)
def test_the_program_is_read_out_of_a_reply(tmp_path, reply, program):
    assert task(tmp_path, DOUBLE).extract(reply) == program


# The loop


def programmer(request):
    """Write a program for `double` or `add`: mostly right, in different words, sometimes none."""
    name = "double" if "double" in request.messages[-1].content else "add"
    bodies = {
        "double": ["return 2 * n", "return n + n", "return n * n", "return n << 1"],
        "add": ["return a + b", "return sum((a, b))", "return a - b"],
    }[name]
    body = seeds.rng("programmer", request.seed).choice([*bodies, None])
    parameters = "n" if name == "double" else "a, b"
    return "I cannot." if body is None else f"```python\ndef {name}({parameters}):\n    {body}\n```"


def test_the_whole_loop_votes_over_behaviours(tmp_path):
    from maft.samplers import Scripted

    rows = [DOUBLE | {"question": f"Return twice the number, version {n}."} for n in range(4)]
    task(tmp_path, *rows)
    config = settings(
        tmp_path, task={"name": "code", "train_file": tmp_path / "rows.jsonl", "num_train": 2, "num_eval": 2}
    )
    folder = run(config, Scripted(programmer))
    votes = files.read_records(folder.votes(1), Vote)
    assert all(vote.label is None or vote.label.startswith("def double") for vote in votes)
    assert any(len(set(vote.partition)) < len(vote.partition) for vote in votes)
    graded = files.read_records(folder.held_out_votes(0), GradedVote)
    assert {grade for vote in graded for grade in vote.grades} <= {True, False}


def test_the_weakest_level_is_refused_unless_it_is_allowed(monkeypatch):
    monkeypatch.setattr(levels, "strongest", lambda: levels.Level(LIMITS, {"seccomp": "libseccomp is missing"}))
    with pytest.raises(ConfigError, match=r"seccomp: libseccomp is missing.*sandbox.allow_weak=true"):
        levels.check(allow_weak=False)
    assert levels.check(allow_weak=True).name == LIMITS


def test_transcript_and_page_name_programs_by_how_they_behave(tmp_path):
    from maft.report import transcript
    from maft.report.debates import Shown, _debate, _Texts
    from maft.samplers import Scripted

    evil = "```python\ndef double(n):\n    return 2 * n  # </script><b>\n```"
    replies = ["```python\ndef double(n):\n    return n + n\n```", evil, "```python\ndef double(n):\n    return n\n```"]
    rows = [DOUBLE | {"question": f"Return twice the number, version {n}."} for n in range(2)]
    task(tmp_path, *rows)
    config = settings(
        tmp_path, task={"name": "code", "train_file": tmp_path / "rows.jsonl", "num_train": 1, "num_eval": 1}
    )
    folder = run(config, Scripted(lambda request: replies[request.agent.index]))
    (vote,) = files.read_records(folder.votes(1), Vote)
    told = transcript.load(folder, vote.problem_id, 1)
    names = transcript.labels(told.debate, told.vote)
    assert [names[turn.answer] for turn in told.debate.round(1)] == ["program A", "program A", "program B"]
    text = transcript.render(told)
    assert "program A x 2, program B x 1" in text and "Pseudo-label: program A" in text
    assert "    return n + n" in text and "assert double(2) == 4" in text
    page = folder.page.read_text() if folder.page.exists() else ""
    assert "</script><b>" not in page
    shown = _debate(
        Shown(told.debate, told.vote, vote.label),
        told.problem,
        0,
        told.grade,
        _Texts(),
    )
    assert shown[3][1] == 0
    _, same, other = shown[2][0][1]
    assert same[-1] == []
    assert other[-1] == [(0, "def double(n):\n"), (-1, "    return n + n\n"), (1, "    return n\n")]


@pytest.mark.slow
def test_the_recipe_runs_with_the_real_model(tmp_path):
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-c",
                "from maft.cli import main; main()",
                "run",
                str(ROOT / "recipes/code_cpu/config.yaml"),
            ),
            *(f"runs_dir={tmp_path}", "name=run", "num_iterations=1", "task.num_train=3", "task.num_eval=1"),
            *("debate.num_agents=2", "vote.min_agreement=plurality", "train.num_epochs=1", "guard.enabled=false"),
            *SMALL_ENGINE,
        ],
        capture_output=True,
        text=True,
        timeout=1800,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "run"
    (start,) = json.loads((folder / "manifest.json").read_text())["starts"]
    assert start["sandbox"]["level"] in LEVELS and start["sandbox"]["level"] in done.stderr
    votes = [json.loads(line) for line in (folder / "iter_01/votes.jsonl").read_text().splitlines()]
    assert len(votes) == 3 and any(vote["label"] for vote in votes)
    results = json.loads((folder / "iter_01/eval/summary.json").read_text())
    assert all(0 <= result["accuracy"] <= 1 for result in results)
    assert "assert" in (folder / "report.html").read_text()
