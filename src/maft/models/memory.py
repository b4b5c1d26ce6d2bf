"""Whether a model fits into memory, told before it is loaded, with the figures."""

from collections.abc import Mapping
from pathlib import Path

from maft.errors import TooLarge

GB = 1e9


def check(model: str, parts: Mapping[str, float], room: float, where: str, advice: str) -> None:
    """Refuse what cannot fit.

    Args:
        model: its name, for the message.
        parts: bytes by what they are for, such as `of weights`.
        room: bytes that there are.
        where: such as `the GPU`.
        advice: what to do.

    Raises:
        TooLarge: the parts need more than there is.
    """
    needed = sum(parts.values())
    if needed > room:
        figures = ", ".join(f"{size / GB:.1f} GB {what}" for what, size in parts.items())
        raise TooLarge(
            f"model {model} does not fit into {where}: {needed / GB:.1f} GB are needed ({figures}), "
            f"{room / GB:.1f} GB are there. {advice}"
        )


class Ledger:
    """What engines that stand side by side may take, for a cache has its size and is filled only as it is used."""

    def __init__(self) -> None:
        """Begin with no engine."""
        self._taken: dict[object, float] = {}
        self._room = 0.0

    def room(self, free: float) -> float:
        """Return how many of the bytes that are free now none of the engines counts on."""
        if not self._taken:
            self._room = free
        return min(free, self._room - sum(self._taken.values()))

    def enter(self, engine: object, size: float) -> None:
        """Note the bytes that an engine may take."""
        self._taken[engine] = size

    def strike(self, engine: object) -> None:
        """Forget an engine, if it is known."""
        self._taken.pop(engine, None)


def free_ram(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes of main memory that may be used, swap included; in a container, what its limit leaves."""
    import psutil

    free = float(psutil.virtual_memory().available + psutil.swap_memory().free)
    try:
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or none with a limit: the file says `max`
        return free
    return min(free, limit - used + int(stat.get("inactive_file", 0)))  # cached files make room where it is needed
