"""Ask Math-Verify whether keys are the same mathematics, in worker processes that can be killed.

A pair that takes more CPU time than `SECONDS`, or more memory than `MEMORY_BYTES`, is different: its worker ends, and
another one takes the next pair. A worker that ended otherwise, such as by the system's out-of-memory killer, says
nothing about its pair, which is asked again. The pairs of one vote have `VOTE_SECONDS` of wall time together, and more
on a busy machine; those for which no time is left are different in this vote.

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
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from pydantic import ValidationError

from maft import files
from maft.answers.compare import verdict
from maft.errors import DataError, MaftError
from maft.records import Record
from maft.sandbox.process import TRIES, Died, Killed, Process, UsedUp

log = logging.getLogger(__name__)

SECONDS = 2.0
"""CPU time for one pair."""

VOTE_SECONDS = 5.0
"""Wall time for all pairs of a vote, from when its workers are ready; times `load` on a busy machine."""

BUSIEST = 10.0
"""More load than this does not give a vote more time."""

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


def load() -> float:
    """Return by how many times a busy machine is slower: its load in the last minute for each core, at least 1."""
    recent = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return min(BUSIEST, max(1.0, recent / (os.cpu_count() or 1)))


class _Clock:
    """The time of a vote. It stands still while a worker that was killed from outside is replaced, `TRIES` times."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + VOTE_SECONDS * load()
        self._stops = TRIES

    @property
    def left(self) -> float:
        """Seconds, 0 at the end."""
        return max(0.0, self._deadline - time.monotonic())

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count the time of this block."""
        began, counts = time.monotonic(), self._stops <= 0
        self._stops -= 1
        yield
        self._deadline += 0 if counts else time.monotonic() - began


class _Undecided(str):
    """Why a vote goes on without a verdict on a pair."""


class Worker(Process):
    """A process that compares keys; it loads Math-Verify from when it is made until it is ready."""

    def __init__(self) -> None:
        try:
            super().__init__("maft.answers.worker", str(MEMORY_BYTES))
        except (OSError, ValueError) as error:
            raise _cannot_start(error) from None
        self._is_ready = False

    def ready(self, seconds: float) -> Worker:
        """Wait until it is ready, and return it.

        Raises:
            Killed: it took longer than `seconds`.
            MaftError: it cannot be started.
        """
        if not self._is_ready:
            try:
                message = self.read(seconds)
            except (UsedUp, Died):
                message = f"it ended with exit code {self.process.returncode} and said nothing"
            if message != "ready":
                raise _cannot_start(message)
            self._is_ready = True
        return self


def _cannot_start(reason: object) -> MaftError:
    return MaftError(
        f"The process that compares answers cannot be started: {reason}. It is {sys.executable or 'no Python'} "
        "-m maft.answers.worker, and needs: pip install 'math-verify[antlr4_13_2]'."
    )


class Verifier:
    """A few workers, and their verdicts. Every method can be called from any thread; one vote is taken at a time."""

    def __init__(self, num_workers: int) -> None:
        self.workers: list[Worker | None] = [None] * num_workers
        self._lock = threading.RLock()
        self._known: OrderedDict[Pair, bool] = OrderedDict()
        self._given_up: set[Pair] = set()
        self._file: Path | None = None
        self._kept: set[Pair] = set()

    def same(self, pairs: Iterable[Pair]) -> list[bool]:
        """Say of each pair of keys whether they are the same mathematics; in whatever order a pair stands."""
        asked = [(a, b) if a <= b else (b, a) for a, b in pairs]
        with self._lock:
            verdicts = {pair: self._recall(pair) for pair in asked}
            verdicts |= {pair: verdict(*pair) for pair, known in verdicts.items() if known is None}
            if hard := [pair for pair, known in verdicts.items() if known is None]:
                verdicts.update(self._vote(hard))
            self._keep(asked)
        return [bool(verdicts[pair]) for pair in asked]

    def learn(self, path: Path) -> set[Pair]:
        """Take over the verdicts of a file, and return their pairs; a torn last line is left out."""
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        try:
            verdicts = {(line.a, line.b): line.same for line in map(Verdict.from_json, lines)}
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
        """End all workers; they start again when they are needed."""
        with self._lock:
            for worker in filter(None, self.workers):
                worker.close()
            self.workers = [None] * len(self.workers)

    def _keep(self, pairs: Iterable[Pair]) -> None:
        if self._file is not None:
            new = {pair: self._known[pair] for pair in pairs if pair in self._known and pair not in self._kept}
            self._kept.update(new)
            if new:
                files.append_records(self._file, [Verdict(a=a, b=b, same=same) for (a, b), same in new.items()])

    def _recall(self, pair: Pair) -> bool | None:
        if pair in self._given_up:
            return False
        known = self._known.get(pair)
        if known is not None:
            self._known.move_to_end(pair)
        return known

    def _vote(self, pairs: Sequence[Pair]) -> dict[Pair, bool]:
        """Ask the workers about pairs, and remember what is final."""
        places: SimpleQueue[int] = SimpleQueue()
        num_workers = min(len(self.workers), len(pairs))
        for place in range(num_workers):
            self._worker(place, START_SECONDS)
            places.put(place)
        clock = _Clock()

        def ask(pair: Pair) -> bool | str:
            place = places.get()
            try:
                return self._ask(place, pair, clock)
            finally:
                places.put(place)

        if num_workers == 1:
            answers = dict(zip(pairs, map(ask, pairs), strict=True))
        else:
            with ThreadPoolExecutor(num_workers) as threads:
                answers = dict(zip(pairs, threads.map(ask, pairs), strict=True))
        self._remember({pair: said for pair, said in answers.items() if not isinstance(said, _Undecided)})
        undecided = [(pair, why) for pair, why in answers.items() if isinstance(why, _Undecided)]
        if undecided:
            log.warning(
                "%d pairs of answers are taken for different in one vote, since %s, such as %.200r and %.200r",
                *(len(undecided), undecided[0][1], *undecided[0][0]),
            )
        return {pair: said is True for pair, said in answers.items()}

    def _remember(self, answers: dict[Pair, bool | str]) -> None:
        for pair, said in answers.items():
            if isinstance(said, str):
                self._given_up.add(pair)
                log.warning("Taken for different answers, after %s: %.200r and %.200r", said, *pair)
            self._known[pair] = said is True
        while len(self._known) > CACHED_PAIRS:
            self._known.popitem(last=False)

    def _ask(self, place: int, pair: Pair, clock: _Clock) -> bool | str:
        """Return the verdict of a worker on a pair, or why there is none."""
        for _ in range(TRIES):
            left = clock.left
            if not left:
                break
            try:
                worker = self._worker(place, left)
                said: bool | str = worker.ask([*pair, min(SECONDS, left)], left)
            except UsedUp:
                self.workers[place] = Worker()  # it loads while others are asked
                if left < SECONDS:
                    break
                return f"more than {SECONDS:g} s"
            except Killed:
                break
            except Died:
                with clock.stopped():
                    self._worker(place, START_SECONDS)
                continue
            if said == "memory":
                worker.close()
                return f"more than {MEMORY_BYTES / 2**30:.1f} GiB"
            return said
        else:
            return _Undecided(f"its worker ended {TRIES} times")
        return _Undecided(f"the {VOTE_SECONDS:g} s of this vote are over")

    def _worker(self, place: int, seconds: float) -> Worker:
        """Return a worker that is ready.

        Raises:
            Killed: it is not ready after `seconds`.
        """
        worker = self.workers[place]
        if worker is None or not worker.alive:
            if worker is not None:
                worker.close()
            worker = self.workers[place] = Worker()
        try:
            return worker.ready(seconds)
        except Killed:
            if seconds < START_SECONDS:
                raise
            raise _cannot_start(f"it took more than {START_SECONDS:g} s") from None


def _fresh() -> None:
    """Begin with no workers: a forked process must not talk to those of its parent."""
    global verifier
    verifier = Verifier(min(2, os.cpu_count() or 1))


verifier: Verifier
_fresh()
atexit.register(lambda: verifier.close())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh)
