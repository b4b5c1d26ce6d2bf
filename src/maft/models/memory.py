"""Whether a model fits into memory, checked before it is loaded."""

import os
from collections.abc import Mapping
from pathlib import Path

from maft.errors import TooLarge

GB = 1e9


def check(model: str, parts: Mapping[str, float], room: float, where: str, advice: str) -> None:
    """Refuse a model that cannot fit.

    `parts` has the bytes needed by their use, such as `of weights`.

    Raises:
        TooLarge: the parts need more bytes than are available.
    """
    needed = sum(parts.values())
    if needed > room:
        figures = ", ".join(f"{size / GB:.1f} GB {what}" for what, size in parts.items())
        raise TooLarge(
            f"model {model} does not fit into {where}: {needed / GB:.1f} GB are needed ({figures}), "
            f"{room / GB:.1f} GB are available. {advice}"
        )


class Ledger:
    """Memory promised to engines that are loaded at the same time: caches are filled only as they are used."""

    def __init__(self) -> None:
        self._taken: dict[object, float] = {}
        self._room = 0.0

    def room(self, free: float) -> float:
        """Return how many of the bytes that are free now are promised to no engine."""
        if not self._taken:
            self._room = free
        return min(free, self._room - sum(self._taken.values()))

    def enter(self, engine: object, size: float) -> None:
        """Promise bytes to an engine."""
        self._taken[engine] = size

    def strike(self, engine: object) -> None:
        """Forget an engine, if it is known."""
        self._taken.pop(engine, None)


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_ram(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the free bytes of main memory, swap included; in a container, at most what its limit leaves."""
    import psutil

    free = float(psutil.virtual_memory().available + psutil.swap_memory().free)
    try:
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or none with a limit: the file says `max`
        return free
    return min(free, limit - used + int(stat.get("inactive_file", 0)))  # cached files are dropped on demand
