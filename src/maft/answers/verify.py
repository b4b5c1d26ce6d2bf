"""Ask Math-Verify whether keys are the same mathematics, in worker processes that can be killed.

A pair that takes longer than `SECONDS`, or more memory than `MEMORY_BYTES`, is different: its worker is killed, and
another one goes on with the next pair. What was found out about a pair holds for the rest of the process, so that
a busy machine cannot turn a vote over within a run.

A worker costs one to two seconds to start and nothing while it waits. It ends with its input, so with its parent,
even if the parent is killed; if that happens in the midst of a pair, its own alarm ends it some seconds later.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import LifoQueue
from typing import Any

from maft.answers.compare import verdict
from maft.errors import MaftError

log = logging.getLogger(__name__)

SECONDS = 2.0
"""Wall time for one pair."""

START_SECONDS = 60.0
"""Wall time for loading Math-Verify; a busy disk is slow."""

MEMORY_BYTES = 1536 * 2**20
"""Address space of a worker, where the system can limit it."""

CACHED_PAIRS = 65_536

Pair = tuple[str, str]


class Worker:
    """One process, asked one pair at a time."""

    def __init__(self) -> None:
        home = str(Path(__file__).parents[2])
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        # -P: a file math_verify.py in the working directory is not the library.
        command = [
            sys.executable,
            "-P",
            "-W",
            "ignore",
            "-m",
            "maft.answers.worker",
            str(MEMORY_BYTES),
            str(2 * SECONDS),
        ]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                encoding="utf-8",
            )
        except (OSError, ValueError, TypeError) as error:
            raise _cannot_start(str(error)) from None
        said = self._read(START_SECONDS)
        if said != "ready":
            self.close()
            raise _cannot_start(said or f"it ended with exit code {self.process.returncode} and said nothing")

    def ask(self, pair: Pair) -> bool | str:
        """Return whether the pair is the same; or a text, why that is not known."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(pair) + "\n")
            self.process.stdin.flush()
        except OSError:
            self.close()
            return "its worker ended"
        said = self._read(SECONDS)
        if isinstance(said, bool):
            return said
        self.close()
        return f"more than {MEMORY_BYTES / 2**30:.1f} GiB" if said == "memory" else f"more than {SECONDS:g} s"

    def _read(self, seconds: float) -> Any:
        """Read what the process says next; None if it is killed first, by the clock or otherwise."""
        assert self.process.stdout is not None
        clock = threading.Timer(seconds, self.process.kill)
        clock.daemon = True
        clock.start()
        try:
            line = self.process.stdout.readline()
        except BaseException:  # its late answer would be taken for that of the next pair
            self.close()
            raise
        finally:
            clock.cancel()
        return json.loads(line) if line.endswith("\n") else None

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.process.poll() is None

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def _cannot_start(why: str) -> MaftError:
    return MaftError(
        f"The process that compares answers cannot be started: {why}. It is {sys.executable or 'no Python'} "
        "-m maft.answers.worker, and needs: pip install 'math-verify[antlr4_13_2]'."
    )


class Verifier:
    """A few workers, and what they have found out. Every method can be called from any thread."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._idle: LifoQueue[Worker | None] = LifoQueue()  # the last one used is warm, others may never be needed
        for _ in range(num_workers):
            self._idle.put(None)
        self._lock = threading.Lock()
        self._known: OrderedDict[Pair, bool] = OrderedDict()
        self._given_up: set[Pair] = set()

    def same(self, pairs: Iterable[Pair]) -> list[bool]:
        """Say of each pair of keys whether they are the same mathematics; in whatever order a pair stands."""
        asked = [(a, b) if a <= b else (b, a) for a, b in pairs]
        found = {pair: self._recall(pair) for pair in asked}
        owed = [pair for pair, known in found.items() if known is None]
        for pair in owed:
            found[pair] = verdict(*pair)
        self._ask([pair for pair in owed if found[pair] is None], found)
        return [bool(found[pair]) for pair in asked]

    def close(self) -> None:
        """End all workers that wait; they start again when they are needed."""
        for worker in [self._idle.get() for _ in range(self._idle.qsize())]:
            if worker is not None:
                worker.close()
            self._idle.put(None)

    def _ask(self, pairs: Sequence[Pair], found: dict[Pair, bool | None]) -> None:
        if len(pairs) < 2 or self.num_workers == 1:
            found.update((pair, self._ask_one(pair)) for pair in pairs)
            return
        with ThreadPoolExecutor(min(self.num_workers, len(pairs))) as threads:
            try:
                found.update(zip(pairs, threads.map(self._ask_one, pairs), strict=True))
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise

    def _ask_one(self, pair: Pair) -> bool:
        with self._worker() as worker:
            said = worker.ask(pair)
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
    def _worker(self) -> Iterator[Worker]:
        worker = self._idle.get()
        try:
            if worker is not None and not worker.alive:
                worker.close()
                worker = None
            worker = worker or Worker()
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
