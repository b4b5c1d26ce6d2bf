"""Programs judged by running them: which behave alike, and which pass tests.

Two programs are the same answer if they return the same values, or raise the same exceptions, on all inputs of the
question (MBR-exec, arXiv 2204.11454, votes over execution results; CodeT, arXiv 2207.10397, filters by tests). Each
program runs in a process of its own, once for a question; what it returns is compared here. One that is stopped on an
input has no behaviour: what it would have returned is not known.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from maft.answers.equality import Classes, Equality, numbered
from maft.config import SandboxConfig
from maft.records import CodeQuestion, Problem
from maft.sandbox import levels, values
from maft.sandbox.limits import Limits
from maft.sandbox.run import ENDED, FAULTS, Outcome, Sandbox
from maft.tasks import signatures

log = logging.getLogger("maft")

CACHED = 20_000
"""Behaviours and results of tests that are remembered."""
TRIES = 2
"""How often a program is run whose process ended or was late, which may be the machine's fault."""


class Tests(NamedTuple):
    """Tests of a function: what they need, and the tests, both Python."""

    setup: str
    checks: str


class Judge:
    """Runs programs, and remembers how they behaved; safe to use from several threads."""

    def __init__(self, settings: SandboxConfig) -> None:
        level = levels.check(allow_weak=settings.allow_weak)
        limits = Limits(
            call_seconds=settings.call_seconds,
            cpu_seconds=max(2, round(4 * settings.call_seconds)),
            wall_seconds=max(10.0, 10 * settings.call_seconds),
            memory_mb=settings.memory_mb,
        )
        self._num_workers = min(2, os.cpu_count() or 1)
        self._programs = Sandbox(level.name, limits, self._num_workers)
        self._examiners = Sandbox(level.name, limits, self._num_workers)
        self._lock = threading.Lock()
        self._known: OrderedDict[str, str | None] = OrderedDict()
        self.stopped: Counter[str] = Counter()
        """Programs that were stopped on the inputs of their question, by reason."""

    def behaviours(self, programs: Sequence[str], question: CodeQuestion) -> list[str | None]:
        """Return a key for each program; equal keys are equal behaviour, None is a program that answers nothing.

        That is one which cannot be read, has no such function, returns no value on any input, is stopped on an input,
        or fails a public test.
        """
        with ThreadPoolExecutor(self._num_workers) as threads:
            distinct = list(dict.fromkeys(programs))
            known = dict(
                zip(distinct, threads.map(lambda program: self._recalled(program, question), distinct), strict=True)
            )
        return [known[program] for program in programs]

    def _recalled(self, program: str, question: CodeQuestion) -> str | None:
        return self._remembered(_digest(program, question.to_json()), lambda: self._behaviour(program, question))

    def _remembered(self, key: str, find: Callable[[], str | None]) -> str | None:
        """Return what was found under a key before, or find it."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = find()
        with self._lock:
            self._known[key] = found
            if len(self._known) > CACHED:
                self._known.popitem(last=False)
        return found

    def _behaviour(self, program: str, question: CodeQuestion) -> str | None:
        inputs = [[values.encode(value) for value in signatures.literal(given)] for given in question.inputs]
        outcomes = self.outcomes(program, question.name, inputs)
        if why := next((outcome["stopped"] for outcome in outcomes if "stopped" in outcome), None):
            self._count(why, question.name)
            return None
        if not any("value" in outcome for outcome in outcomes):
            return None
        if question.tests and not self.passes(program, question.name, Tests("", "\n".join(question.tests))):
            return None
        with suppress(ValueError, TypeError, RecursionError):
            return _digest(*(json.dumps(_comparable(outcome)) for outcome in outcomes))
        return None

    def outcomes(self, program: str, name: str, inputs: Sequence[Sequence[object]]) -> list[Outcome]:
        """Call a program's function with encoded arguments, up to the input on which it is stopped.

        A program whose process ends, or is late, is run once more.
        """
        for _ in range(TRIES):
            made = self._outcomes(program, name, inputs)
            if not any(outcome.get("stopped") in FAULTS for outcome in made):
                break
        return made

    def _outcomes(self, program: str, name: str, inputs: Sequence[Sequence[object]]) -> list[Outcome]:
        made: list[Outcome] = []
        with self._programs.program(program, name) as running:
            if running.loaded != {"ok": True}:
                known = running.loaded.keys() in ({"error"}, {"stopped"})
                return [running.loaded if known else ENDED]
            for arguments in inputs:
                made.append(running.call(arguments))
                if "stopped" in made[-1]:
                    break
        return made

    def _count(self, why: str, name: str) -> None:
        with self._lock:
            self.stopped[why] += 1
        if why in FAULTS:
            log.warning(
                "A program for %s was stopped (%s), again when run once more; it counts as no answer.", name, why
            )

    def passes(self, program: str, name: str, tests: Tests) -> bool:
        """Say whether a program passes tests, which run in another process and ask it for values only."""
        return self.failure(program, name, tests) is None

    def failure(self, program: str, name: str, tests: Tests) -> str | None:
        """Return why a program does not pass tests; None if it does."""
        return self._remembered(_digest(program, name, *tests), lambda: self._failure(program, name, tests))

    def _failure(self, program: str, name: str, tests: Tests) -> str | None:
        for _ in range(TRIES):
            why, stopped = self._examined(program, name, tests)
            if stopped not in FAULTS:
                return why
        log.warning(
            "A program for %s was stopped (%s) in its tests, again when run once more: it fails.", name, stopped
        )
        return why

    def _examined(self, program: str, name: str, tests: Tests) -> tuple[str | None, str | None]:
        """Return why a program does not pass tests, and why it or the tests were stopped."""
        more = {"setup": tests.setup, "tests": tests.checks}
        with self._programs.program(program, name) as running, self._examiners.program("", name, **more) as examiner:
            if running.loaded != {"ok": True}:
                stopped = running.loaded.get("stopped")
                why = str(stopped or running.loaded.get("error", "it ended"))
                return f"the program cannot be loaded: {why:.80}", stopped
            answer = examiner.loaded
            while "call" in answer:
                outcome = running.call(answer["call"])
                if stopped := outcome.get("stopped"):
                    return f"a call was stopped: {stopped}", stopped
                answer = examiner.ask(outcome)
        if answer.get("passed") is True:
            return None, None
        return str(answer.get("why", "the tests were stopped")), answer.get("stopped")

    def close(self) -> None:
        """End all processes, which start again when they are needed, and say how many programs were stopped."""
        if self.stopped:
            reasons = ", ".join(f"{why} {count}" for why, count in self.stopped.most_common())
            log.info("Programs that were stopped and count as no answer: %s.", reasons)
            self.stopped.clear()
        self._programs.close()
        self._examiners.close()


def _comparable(outcome: Outcome) -> object:
    return ["value", values.comparable(outcome["value"])] if "value" in outcome else outcome


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(errors="surrogatepass"), digest_size=16).hexdigest()


@lru_cache(maxsize=4)
def judge(settings: SandboxConfig) -> Judge:
    """Return the judge for these settings; all tasks share it.

    Raises:
        ConfigError: the protection of this machine is too weak.
    """
    shared = Judge(settings)
    atexit.register(shared.close)
    return shared


class Behaviour(Equality):
    """Programs that behave alike on the inputs of the question are the same; without inputs, the same text is."""

    name = "behaviour"

    def __init__(self, settings: SandboxConfig) -> None:
        self._settings = settings

    def classes(self, answers: Sequence[str | None], problem: Problem | None = None) -> Classes:
        """Run every program once; those without any value abstain."""
        programs = [answer for answer in answers if answer is not None]
        if problem is None or problem.code is None:
            return numbered(None if answer is None else answer.strip() for answer in answers)
        keys = dict(zip(programs, judge(self._settings).behaviours(programs, problem.code), strict=True))
        return numbered(None if answer is None else keys[answer] for answer in answers)
