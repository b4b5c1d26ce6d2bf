"""Calls a program's function with the values that come in, and sends back what it returns; runs confined.

What this process says of itself is worth nothing, for the program can change everything in it. It is given no known
answer and no verdict to forge: it gets arguments and returns values, which are compared elsewhere. With `tests` it is
the other side: it runs tests from a data set, whose calls of the function are answered by the process of the program.

Lines of JSON. First {"source", "name", "seconds"}, answered by {"ok"} or {"error"}; then {"args"}, answered by
{"value"}, {"error": name of the exception} or {"stopped"}. With tests: {"name", "setup", "tests"}, answered by
{"call": args} for each call, to be answered by an outcome, and at last by {"passed"}.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from maft.sandbox import values


class OutOfTime(BaseException):
    """A call has used its CPU time; no `except Exception` of the program takes it for an error of its own."""


def serve(channel: int) -> None:
    """Answer lines of a socket until there are no more, or the program ends its process."""
    lines = map(json.loads, open(channel, "rb", closefd=False))  # noqa: SIM115

    def say(answer: object, limit: int = 1 << 30) -> None:
        data = json.dumps(answer).encode()
        rest = memoryview((data if len(data) <= limit else b'{"stopped": "size"}') + b"\n")
        while rest:
            rest = rest[os.write(channel, rest) :]

    asked = next(lines, None)
    if asked is None:
        return
    if "tests" in asked:
        say(_tested(asked, lines, say))
        return
    signal.signal(signal.SIGPROF, _out_of_time)
    sys.modules["random"].seed(0)  # the same program behaves alike twice
    space: dict[str, Any] = {"__name__": values.PROGRAM}
    outcome = _outcome(lambda: _execute(asked["source"], space), asked["seconds"])
    function: Any = space.get(asked["name"])
    if "value" in outcome:
        outcome = {"ok": True} if callable(function) else {"error": "NameError"}
    say(outcome)
    for call in lines:
        arguments = [values.decode(argument) for argument in call["args"]]
        say(_outcome(lambda: function(*arguments), asked["seconds"]), asked["bytes"])  # noqa: B023


def _execute(source: str, space: dict[str, Any], name: str = "program") -> None:
    exec(compile(source, name, "exec"), space)  # this is the process for it: see confine.py


def _outcome(run: Callable[[], Any], seconds: float) -> dict[str, Any]:
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        value = values.encode(run())
        signal.setitimer(signal.ITIMER_PROF, 0)
        return {"value": value}
    except OutOfTime:
        return {"stopped": "time"}
    except values.TooMuch:
        return {"stopped": "size"}
    except values.Incomparable:
        return {"stopped": values.Incomparable.word}
    except MemoryError:
        return {"stopped": "memory"}
    except BaseException as error:
        return {"error": type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _out_of_time(number: int, frame: object) -> None:
    raise OutOfTime


def _tested(asked: dict[str, Any], lines: Iterator[Any], say: Callable[[object], None]) -> dict[str, Any]:
    """Run tests on a function that is elsewhere, and say whether they pass."""
    is_called = False

    def candidate(*arguments: Any) -> Any:
        nonlocal is_called
        is_called = True
        say({"call": [values.encode(argument) for argument in arguments]})
        outcome = next(lines)
        if "error" in outcome:
            raise getattr(builtins, outcome["error"], RuntimeError)(outcome["error"])
        return values.decode(outcome["value"])

    space: dict[str, Any] = {"__name__": "tests", asked["name"]: candidate, "candidate": candidate}
    try:
        _execute(asked["setup"], space)
        space[asked["name"]] = candidate  # the setup may hold the head of the function
        _execute(asked["tests"], space, "tests")
        check = space.get("check")
        if callable(check):
            check(candidate)
        elif not is_called:
            for test in _functions(space):
                test()
    except BaseException as error:
        return {"passed": False, "why": f"{type(error).__name__}{_place(error, asked['tests'])}"[:300]}
    if not is_called:  # tests that test nothing pass with every program
        return {"passed": False, "why": f"the tests do not call {asked['name']}"}
    return {"passed": True}


def _functions(space: dict[str, Any]) -> list[Callable[[], Any]]:
    """Return the tests that are functions without parameters, as pytest finds them."""
    codes = [(value, getattr(value, "__code__", None)) for name, value in space.items() if name.startswith("test")]
    return [value for value, code in codes if code and code.co_filename == "tests" and code.co_argcount == 0]


def _place(error: BaseException, tests: str) -> str:
    """Return the line of the tests at which it was raised."""
    lines, number, trace = tests.splitlines(), 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests":
            number = trace.tb_lineno
        trace = trace.tb_next
    return f" at {lines[number - 1].strip()!r}" if number else f": {error}"
