"""A process of our own that answers lines of JSON with lines of JSON, and can be killed while it does.

Text of models goes to such processes where reading it takes more than matching. They end with their input, so with
their parent. A pool of `multiprocessing` would not do: to start one, a script's main module is run again or the parent
is forked, with the threads of its engine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

TRIES = 3
"""How often a question is asked whose process ended by itself."""


class Killed(Exception):
    """The answer took too long: our clock has killed the process."""


class UsedUp(Exception):
    """The process has used up its CPU time, which a timer of its own measures (`limit_cpu`)."""


class Died(Exception):
    """The process ended, and not by our clock: killed from outside, or crashed. Nothing is known of the answer."""


class Process:
    """One process, asked one question at a time.

    Args:
        module: what it runs; reads lines from its input, and writes a line for each.
        arguments: of the module.
        environment: variables that it has beside ours.
    """

    def __init__(self, module: str, *arguments: str, **environment: str) -> None:
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            # -P: a file in the working directory that has the name of a library is not that library.
            [sys.executable, "-P", "-W", "ignore", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"} | environment,
            encoding="utf-8",
        )

    def ask(self, question: object, seconds: float | None) -> Any:
        """Send a line and return the answer.

        Raises:
            Killed: it took longer than `seconds`.
            UsedUp: it took more CPU time than the process allows itself.
            Died: the process ended otherwise.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            self.close()
            raise Died from None
        return self.read(seconds)

    def read(self, seconds: float | None) -> Any:
        """Return the next answer, see `ask`."""
        assert self.process.stdout is not None
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            self.process.kill()

        clock = threading.Timer(seconds or 0.0, kill)
        clock.daemon = True
        if seconds is not None:
            clock.start()
        try:
            line = self.process.stdout.readline()
        except BaseException:  # its late answer would be taken for that of the next question
            self.close()
            raise
        finally:
            clock.cancel()
        if line.endswith("\n"):
            return json.loads(line)
        self.close()
        if self.process.returncode == -getattr(signal, "SIGPROF", 0) and not is_late.is_set():
            raise UsedUp
        raise Killed if is_late.is_set() else Died

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


_FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "tempfile.", "ftplib.", "urllib.", "http.")
_ALLOWED = frozenset({"os.listdir", "os.scandir"})  # so modules are found


def forbid(event: str, arguments: tuple[Any, ...]) -> None:
    """Let a process start no program, open no connection and write no file, whatever asks for it (PEP 578)."""
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or (event.startswith(_FORBIDDEN) and event not in _ALLOWED):
        raise PermissionError(f"reading an answer must not do this: {event}")


def limit_cpu(seconds: float) -> None:
    """End this process once it has used so much CPU time, in the midst of whatever it does; 0 takes the limit away.

    A busy machine takes longer, and comes to the same answers.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def limit_memory(num_bytes: int) -> None:
    """Take no more address space than this, where the system can tell."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
