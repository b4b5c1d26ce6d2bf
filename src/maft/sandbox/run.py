"""Runs programs: sends each to a forker, which gives it a confined process of its own, and reads what comes back.

    with Sandbox().program("def double(n): return 2 * n", "double") as double:
        double.call([["int", "0x15"]])          # {"value": ["int", "0x2a"]}

An outcome is {"value": encoded}, {"error": name of the exception}, or {"stopped": why}: time, memory, size or a value
that cannot be compared, or a word of `FAULTS`. All of it is said by the process of the program, so it is compared here,
as data, and bounded in size and time.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from maft import files
from maft.errors import MaftError
from maft.sandbox import confine, values
from maft.sandbox.limits import BUBBLEWRAP, DEFAULT_LIMITS, Limits

log = logging.getLogger(__name__)

Outcome = dict[str, Any]

ENDED: Outcome = {"stopped": "ended"}
"""The process ended, by itself or from outside, or said something else than an outcome."""
LATE: Outcome = {"stopped": "wall time"}
"""Our clock has ended the process: it slept, or the machine was busy."""
FAULTS = ("ended", "wall time")
"""What may be the machine's fault and not the program's."""
STOPS = ("time", "memory", "size", values.Incomparable.word, *FAULTS)

GRACE_SECONDS = 20.0
"""A forker that does not answer for so long after a program's time is over is ended itself."""


class NotConfined(MaftError):
    """The level of protection is not to be had on this machine."""


class Program:
    """A program that runs, and answers calls of its function."""

    def __init__(self, channel: socket.socket, limits: Limits) -> None:
        self._channel, self._limits = channel, limits
        self._deadline = time.monotonic() + limits.wall_seconds - 0.1  # before the clock of its forker
        self.loaded: Any = ENDED
        """The answer to the program itself: {"ok"} or {"error"}; of tests the first call, or the verdict."""
        self._waiting = b""
        self._received = 0

    def ask(self, question: object) -> Any:
        """Send a line and return the next one; `LATE` or `ENDED` where none comes, or no JSON object, or too much."""
        try:
            self._channel.settimeout(max(0.01, self._deadline - time.monotonic()))
            self._channel.sendall(json.dumps(question).encode() + b"\n")
        except OSError:
            return self._end()
        return self.read()

    def read(self) -> Any:
        """Return the next line, see `ask`."""
        while b"\n" not in self._waiting:
            try:
                self._channel.settimeout(max(0.01, self._deadline - time.monotonic()))
                data = self._channel.recv(65536)
            except OSError:
                return self._end()
            self._received += len(data)
            if not data or self._received > self._limits.output_bytes:
                return self._end()
            self._waiting += data
        line, _, self._waiting = self._waiting.partition(b"\n")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            return ENDED
        is_outcome = isinstance(answer, dict) and answer.get("stopped", FAULTS[0]) in STOPS
        return answer if is_outcome else ENDED

    def _end(self) -> Outcome:
        return LATE if time.monotonic() >= self._deadline else ENDED

    def call(self, arguments: Sequence[Any]) -> Outcome:
        """Call the function with encoded values."""
        answer = self.ask({"args": list(arguments)})
        return answer if answer.keys() <= {"value", "error", "stopped"} and len(answer) == 1 else ENDED


class Sandbox:
    """Runs programs at one level of protection; safe to use from several threads.

    Args:
        level: see `limits.LEVELS`.
        limits: for each program.
        num_forkers: programs that run at the same time.
    """

    def __init__(self, level: str, limits: Limits = DEFAULT_LIMITS, num_forkers: int = 1) -> None:
        self.level, self.limits = level, limits
        self._free: SimpleQueue[_Forker | None] = SimpleQueue()
        for _ in range(num_forkers):
            self._free.put(None)
        self._all: list[_Forker] = []
        self._lock = threading.Lock()

    @contextmanager
    def program(self, source: str, name: str, **more: object) -> Iterator[Program]:
        """Start a program; its function `name` can be called while the block runs. Afterwards nothing of it is left.

        Raises:
            NotConfined: the level is not to be had here.
        """
        forker = self._free.get()
        try:
            if forker is None or not forker.alive:
                forker = _Forker(self.level)
                with self._lock:
                    self._all.append(forker)
            with forker.fork(self.level, self.limits) as channel:
                program = Program(channel, self.limits)
                confined = program.read()
                if "confined" in confined and not confined["confined"]:
                    raise NotConfined(f"level {self.level}: {confined.get('why')}")
                limits = {"seconds": self.limits.call_seconds, "bytes": self.limits.answer_bytes}
                program.loaded = program.ask({"source": source, "name": name, **limits, **more})
                yield program
        finally:
            self._free.put(forker)

    def close(self) -> None:
        """End all forkers; they start again when they are needed."""
        with self._lock:
            for forker in self._all:
                forker.close()
            self._all.clear()


class _Forker:
    """A process of `maft.sandbox.forker`."""

    def __init__(self, level: str) -> None:
        self._root = str(files.temporary("sandbox"))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        source = str(Path(__file__).parents[2])
        # Nothing of our environment: keys of services are in it. No site-packages: programs have the standard library.
        environment = {"PYTHONPATH": source, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
        command = [os.path.realpath(sys.executable), "-P", "-s", "-S", "-W", "ignore", "-m", "maft.sandbox.forker"]
        command += [str(theirs.fileno()), self._root]
        if level == BUBBLEWRAP:
            command = confine.bubblewrapped(command, environment, [source, self._root])
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._control = ours
        self._control.settimeout(GRACE_SECONDS)
        if self._receive() != b"ready":
            self.close()
            raise NotConfined(f"level {level}: its process does not start (exit code {self._process.returncode})")

    def _receive(self) -> bytes:
        try:
            return self._control.recv(4096)
        except OSError:
            return b""

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    @contextmanager
    def fork(self, level: str, limits: Limits) -> Iterator[socket.socket]:
        """Return the channel of a new process, which is ended with the block."""
        ours, theirs = socket.socketpair()
        with ours:
            try:
                with theirs:
                    asked = json.dumps({"level": level, "limits": limits._asdict()}).encode()
                    socket.send_fds(self._control, [asked], [theirs.fileno()])
            except OSError:
                self.close()
            try:
                yield ours
            finally:
                with suppress(OSError):
                    self._control.settimeout(limits.wall_seconds + GRACE_SECONDS)
                    self._control.send(b"end")
                if not self._receive():
                    log.warning("A sandbox process did not answer and was stopped.")
                    self.close()

    def close(self) -> None:
        """End it; a program that runs ends with it."""
        with suppress(OSError):
            self._control.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._root, ignore_errors=True)
