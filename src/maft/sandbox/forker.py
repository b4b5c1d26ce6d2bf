"""A warm interpreter that forks itself for every program: no program waits for Python to start.

`python -m maft.sandbox.forker DESCRIPTOR ROOT`: each message on the socket brings the channel of a program and what to
run it under. The program talks over its channel with whoever sent it; nothing of it passes through this process. Here
its clock runs, and when it is over, or the sender says so, its whole group of processes is killed.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress

from maft.sandbox import confine, program
from maft.sandbox.limits import Limits

WARM = (
    *("array", "base64", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions"),
    *("functools", "hashlib", "heapq", "itertools", "math", "operator", "random", "re", "statistics", "string"),
    *("struct", "textwrap", "typing", "unicodedata"),
)
"""What programs import most: it is there before they begin."""


def main() -> None:
    """Serve until the socket is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    root = sys.argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # of all processes, these go first where memory is short
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans come to this process, which ends them
    confine.readable()
    for name in WARM:
        importlib.import_module(name)
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 65536, 1)
        if not message:
            return
        asked = json.loads(message)
        control.send(json.dumps(_serve(asked, descriptors[0], control, root)).encode())


def _serve(asked: dict[str, object], descriptor: int, control: socket.socket, root: str) -> dict[str, object]:
    """Fork a program and wait for its end; return its exit code and CPU seconds."""
    limits = Limits(**asked["limits"])  # type: ignore[arg-type]
    child = os.fork()
    if child == 0:
        _child(str(asked["level"]), limits, descriptor, root)
    with suppress(OSError):
        os.setpgid(child, child)
    os.close(descriptor)
    _wait(child, control, limits.wall_seconds)
    _kill(child)
    _, status, used = os.wait4(child, 0)
    _end_orphans()
    return {"code": os.waitstatus_to_exitcode(status), "cpu_seconds": used.ru_utime + used.ru_stime}


def _wait(child: int, control: socket.socket, seconds: float) -> None:
    """Return when the sender has said that it needs the program no longer, having ended the program in time."""
    handle = os.pidfd_open(child)
    try:
        readable, _, _ = select.select([handle, control.fileno()], [], [], seconds)
    finally:
        os.close(handle)
    if control.fileno() not in readable:
        _kill(child)
    if not control.recv(16):
        _kill(child)
        os._exit(0)


def _kill(child: int) -> None:
    for end in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            end(child, signal.SIGKILL)


def _end_orphans() -> None:
    """End what a program has left behind: it has come to this process."""
    while True:
        try:
            number, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if number == 0:
            for child in _children():
                with suppress(OSError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.01)


def _children() -> list[int]:
    with suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(number) for number in file.read().split()]
    return []


def _child(level: str, limits: Limits, descriptor: int, root: str) -> None:
    """Be the program."""
    code = 1
    try:
        os.setpgid(0, 0)
        channel = os.dup2(descriptor, 3)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        os.closerange(4, 4096)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            confine.program(level, limits, root)
        except OSError as error:
            os.write(channel, json.dumps({"confined": False, "why": str(error)}).encode() + b"\n")
        else:
            os.write(channel, b'{"confined": true}\n')
            program.serve(channel)
            code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
