"""How much a program may use, and the names of the levels of protection."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """What one program may use; whoever takes more is stopped."""

    call_seconds: float = 1.0
    """CPU time of one call of the function."""
    cpu_seconds: int = 4
    """CPU time of the whole program."""
    wall_seconds: float = 10.0
    """Wall time of the whole program."""
    memory_mb: int = 512
    """Address space of its process."""
    answer_bytes: int = 1 << 16
    """Size of one returned value, as JSON."""
    output_bytes: int = 1 << 21
    """Size of all returned values. What it prints is thrown away."""
    num_files: int = 64
    """Files open at a time."""
    scratch_mb: int = 16
    """Size of its scratch folder, which is in memory; only at level `namespaces`."""


DEFAULT_LIMITS = Limits()

NAMESPACES, BUBBLEWRAP, LANDLOCK, SECCOMP, LIMITS = "namespaces", "bubblewrap", "landlock", "seccomp", "limits"
LEVELS = (NAMESPACES, BUBBLEWRAP, LANDLOCK, SECCOMP, LIMITS)
"""The strongest first."""

UNPROTECTED = {
    NAMESPACES: "faults of the kernel; how long it takes may tell a program what else the machine does",
    BUBBLEWRAP: "faults of the kernel; programs see the same empty folders and cannot write to them",
    LANDLOCK: "faults of the kernel; finding out which files exist; files cannot be written at all",
    SECCOMP: "reading every file that this user can read, known answers and the environment of other processes too; "
    "files cannot be written at all",
    LIMITS: "a program that looks for a way out: only time, memory and processes are limited, and Python's own "
    "functions for files, network and processes refuse",
}
"""What each level does not protect from."""
