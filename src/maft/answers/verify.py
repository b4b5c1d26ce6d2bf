"""Ask Math-Verify whether keys are the same mathematics, in worker processes that can be killed.

A pair that takes more CPU time than `SECONDS`, or more memory than `MEMORY_BYTES`, is different: its worker ends, and
another one goes on with the next pair. A worker that ended otherwise, such as by the system's out-of-memory killer,
says nothing about its pair, which is asked again. The pairs of one vote have `VOTE_SECONDS` together; those for which
no time is left are different in this vote.

A verdict holds for the rest of the process, and is kept with the run (`keeping`), so that a busy machine cannot turn a
vote over within a run.

A worker costs one to two seconds to start and nothing while it waits. It ends with its input, so with its parent,
even if the parent is killed; if that happens in the midst of a pair, its own timer ends it some seconds later.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import LifoQueue

from pydantic import ValidationError

from maft import files
from maft.answers.compare import verdict
from maft.answers.process import TRIES, Died, Killed, Process, UsedUp
from maft.errors import DataError, MaftError
from maft.records import Record

log = logging.getLogger(__name__)

SECONDS = 2.0
"""CPU time for one pair."""

VOTE_SECONDS = 5.0
"""CPU time for all pairs of a vote."""

SLOWEST = 10
"""A pair that takes so many times its CPU time is given up in this vote."""

START_SECONDS = 60.0
"""Wall time for loading Math-Verify; a busy disk is slow."""

MEMORY_BYTES = 1536 * 2**20
"""Address space of a worker, where the system can limit it."""

CACHED_PAIRS = 65_536

Pair = tuple[str, str]


class Verdict(Record):
    """Whether two keys are the same mathematics, as algebra has it; a line of a run's verdicts."""

    a: str
    b: str
    same: bool


class _Budget:
    """The time that is left for a vote; several threads may spend it."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self.undecided: dict[Pair, str] = {}
        """Why the vote goes on without a verdict on a pair."""
        self._lock = threading.Lock()

    def spend(self, seconds: float) -> None:
        with self._lock:
            self.left -= seconds


def start() -> Process:
    """Start a worker and wait until it is ready.

    Raises:
        MaftError: it cannot be started.
    """
    try:
        process = Process("maft.answers.worker", str(MEMORY_BYTES))
        said = process.read(START_SECONDS)
    except (Killed, UsedUp, Died):
        said = f"it ended with exit code {process.process.returncode} and said nothing"
    except (OSError, ValueError, TypeError) as error:
        said = str(error)
    if said == "ready":
        return process
    raise MaftError(
        f"The process that compares answers cannot be started: {said}. It is {sys.executable or 'no Python'} "
        "-m maft.answers.worker, and needs: pip install 'math-verify[antlr4_13_2]'."
    )


class Verifier:
    """A few workers, and their verdicts. Every method can be called from any thread."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._idle: LifoQueue[Process | None] = LifoQueue()  # the last one used is warm, others may never be needed
        for _ in range(num_workers):
            self._idle.put(None)
        self._lock = threading.Lock()
        self._known: OrderedDict[Pair, bool] = OrderedDict()
        self._given_up: set[Pair] = set()
        self._file: Path | None = None
        self._kept: set[Pair] = set()

    def same(self, pairs: Iterable[Pair]) -> list[bool]:
        """Say of each pair of keys whether they are the same mathematics; in whatever order a pair stands."""
        asked = [(a, b) if a <= b else (b, a) for a, b in pairs]
        known = {pair: self._recall(pair) for pair in asked}
        missing = [pair for pair, found in known.items() if found is None]
        for pair in missing:
            known[pair] = verdict(*pair)
        self._ask([pair for pair in missing if known[pair] is None], known)
        self._keep(asked)
        return [bool(known[pair]) for pair in asked]

    def learn(self, path: Path) -> set[Pair]:
        """Take over the verdicts of a file, and return their pairs; a torn last line is left out."""
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        try:
            verdicts = {(one.a, one.b): one.same for one in map(Verdict.from_json, lines)}
        except ValidationError:
            raise DataError(f"{path} is damaged. Remove it: what it held is found out again.") from None
        with self._lock:
            self._known.update(verdicts)
            self._given_up.difference_update(verdicts)
        return set(verdicts)

    @contextmanager
    def keeping(self, path: Path) -> Iterator[None]:
        """Keep the verdicts that are asked for in a file, which may have some already, while the block runs."""
        files.drop_torn_line(path)
        before = self._file, self._kept
        self._file, self._kept = path, self.learn(path)
        try:
            yield
        finally:
            self._file, self._kept = before

    def close(self) -> None:
        """End all workers that wait; they start again when they are needed."""
        for worker in [self._idle.get() for _ in range(self._idle.qsize())]:
            if worker is not None:
                worker.close()
            self._idle.put(None)

    def _keep(self, pairs: Iterable[Pair]) -> None:
        with self._lock:
            if self._file is not None:
                known = {pair: self._known[pair] for pair in pairs if pair in self._known and pair not in self._kept}
                self._kept.update(known)
                if known:
                    files.append_records(self._file, [Verdict(a=a, b=b, same=same) for (a, b), same in known.items()])

    def _ask(self, pairs: Sequence[Pair], found: dict[Pair, bool | None]) -> None:
        budget = _Budget(VOTE_SECONDS)
        self._ask_all(pairs, found, budget)
        for pair, why in list(budget.undecided.items())[:1]:
            log.warning(
                "%d pairs of answers are taken for different in one vote, since %s, such as %.200r and %.200r",
                *(len(budget.undecided), why, *pair),
            )

    def _ask_all(self, pairs: Sequence[Pair], found: dict[Pair, bool | None], budget: _Budget) -> None:
        if len(pairs) < 2 or self.num_workers == 1:
            found.update((pair, self._ask_one(pair, budget)) for pair in pairs)
            return
        with ThreadPoolExecutor(min(self.num_workers, len(pairs))) as threads:
            try:
                found.update(zip(pairs, threads.map(lambda pair: self._ask_one(pair, budget), pairs), strict=True))
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise

    def _ask_one(self, pair: Pair, budget: _Budget) -> bool:
        why = f"its worker ended {TRIES} times"
        for _ in range(TRIES):
            seconds = min(SECONDS, budget.left)
            if seconds <= 0:
                why = f"the {VOTE_SECONDS:g} s of this vote are over"
                break
            with self._worker() as worker:
                try:
                    said, used = worker.ask([*pair, seconds], SLOWEST * seconds)
                except UsedUp:
                    budget.spend(seconds)
                    if seconds == SECONDS:
                        return self._remember(pair, f"more than {SECONDS:g} s", worker)
                except Killed:
                    why = f"the machine took more than {SLOWEST * seconds:g} s"
                    break
                except Died:
                    pass
                else:
                    budget.spend(used)
                    return self._remember(pair, said, worker)
        budget.undecided[pair] = why
        return False

    def _remember(self, pair: Pair, said: bool | str, worker: Process) -> bool:
        if said == "memory":
            worker.close()
            said = f"more than {MEMORY_BYTES / 2**30:.1f} GiB"
        with self._lock:
            if isinstance(said, str) and pair not in self._known:
                self._given_up.add(pair)
                log.warning("Taken for different answers, after %s: %.200r and %.200r", said, *pair)
            # Another thread may have asked the same: the first to know is right.
            known = self._known.setdefault(pair, said is True)
            while len(self._known) > CACHED_PAIRS:
                self._known.popitem(last=False)
            return known

    def _recall(self, pair: Pair) -> bool | None:
        with self._lock:
            if pair in self._given_up:
                return False
            known = self._known.get(pair)
            if known is not None:
                self._known.move_to_end(pair)
            return known

    @contextmanager
    def _worker(self) -> Iterator[Process]:
        worker = self._idle.get()
        try:
            if worker is not None and not worker.alive:
                worker.close()
                worker = None
            worker = worker or start()
            yield worker
        finally:
            self._idle.put(worker)


def _fresh() -> None:
    """Begin with no workers: a forked process must not talk to those of its parent."""
    global verifier
    verifier = Verifier(min(2, os.cpu_count() or 1))


verifier: Verifier
_fresh()
atexit.register(lambda: verifier.close())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh)


def same(pairs: Iterable[Pair]) -> list[bool]:
    """Say of each pair of keys whether they are the same mathematics."""
    return verifier.same(pairs)


def learn(path: Path) -> None:
    """Take over the verdicts that are kept in a file, if there is one."""
    verifier.learn(path)


@contextmanager
def keeping(path: Path) -> Iterator[None]:
    """Keep the verdicts that are asked for in a file while the block runs."""
    with verifier.keeping(path):
        yield
