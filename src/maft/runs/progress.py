"""Progress on stderr: a bar for each stage on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

SECONDS_A_LINE = 60.0
"""Seconds between two lines of a stage, off a terminal."""


class Bar(Protocol):
    """The progress of one stage."""

    def skip(self, count: int) -> None:
        """Count work of an earlier start, which does not enter the rate."""

    def advance(self, count: float = 1) -> None:
        """Count work done now."""

    def note(self, text: str) -> None:
        """Show a few words beside the numbers."""


class _Drawn:
    """A bar on a terminal."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._begun = False

    def skip(self, count: int) -> None:
        self._bar.initial += count
        self._bar.n += count
        self._bar.refresh()

    def advance(self, count: float = 1) -> None:
        count = min(count, self._bar.total - self._bar.n)
        if not self._begun:  # what came before, such as loading a model, is no measure of the rest
            self._begun = True
            self._bar.start_t = self._bar.last_print_t = self._bar._time()
            self.skip(int(count))
            count -= int(count)
        self._bar.update(count)

    def note(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)


class _Lines:
    """Lines in a log: one a minute, and one that sums up the stage."""

    def __init__(
        self, title: str, total: int, unit: str, say: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._title, self._total, self._unit, self._say, self._clock = title, total, _plural(unit), say, clock
        self._done = self._skipped = 0.0
        self._note = ""
        self._start = self._said = clock()
        self._first: tuple[float, float] | None = None
        """Time and count of the first work: the rate is that of the work after it."""

    def skip(self, count: int) -> None:
        self._done += count
        self._skipped += count

    def advance(self, count: float = 1) -> None:
        self._done = min(self._done + count, self._total)
        now = self._clock()
        self._first = self._first or (now, self._done)
        if now - self._said >= SECONDS_A_LINE:
            self._said = now
            self._say(f"{self._title}: {self._done:.0f} of {self._total} {self._unit}{self._left(now)}{self._note}")

    def note(self, text: str) -> None:
        self._note = f", {text}"

    def _left(self, now: float) -> str:
        since, before = self._first or (now, self._done)
        if self._done == before or now == since:
            return ""
        return f", about {_duration((self._total - self._done) * (now - since) / (self._done - before))} left"

    def sum_up(self) -> None:
        """Print the count and the duration of the stage."""
        earlier = f" ({self._skipped:.0f} were done before)" if self._skipped else ""
        took = _duration(self._clock() - self._start)
        self._say(f"{self._title}: {self._done:.0f} {self._unit} in {took}{earlier}{self._note}")


class Progress:
    """Shows the progress of a run; `quiet` shows nothing."""

    def __init__(self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to stderr unless `quiet`; `clock` gives seconds."""
        self.quiet = quiet
        self._clock = clock

    def say(self, text: str) -> None:
        """Print a line, without disturbing a bar."""
        if self.quiet:
            return
        if not sys.stderr.isatty():
            print(text, file=sys.stderr, flush=True)  # noqa: T201  # what progress is for
            return
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Bar]:
        """Show the progress of a stage while it runs."""
        if self.quiet or not sys.stderr.isatty():  # `say` prints nothing if quiet
            lines = _Lines(title, total, unit, self.say, self._clock)
            yield lines
            lines.sum_up()
            return
        from tqdm import tqdm

        counts = "{n:.0f}/{total:.0f} " + _plural(unit) + " [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        shape = "{desc} {percentage:3.0f}%|{bar:20}| " + counts
        columns, rows = _shape()
        with tqdm(
            total=total,
            desc=f"{title:<24}",
            unit=unit,
            disable=False,
            mininterval=0.5,
            bar_format=shape,
            ncols=columns,
            nrows=rows,
        ) as bar:
            yield _Drawn(bar)


def no_foreign_bars() -> None:
    """Keep libraries from drawing bars of their own, here and in child processes; before they are imported."""
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")


def _plural(unit: str) -> str:
    """Return a unit in the plural.

    >>> _plural("call"), _plural("reply")
    ('calls', 'replies')
    """
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"


def _duration(seconds: float) -> str:
    """Return a time such as 0:01:30."""
    return str(timedelta(seconds=round(max(0.0, seconds))))


def _shape() -> tuple[int, int] | tuple[None, None]:
    """Return a size for terminals that report none, where tqdm would draw nothing."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        return None, None
    return (None, None) if size.columns and size.lines else (100, 24)
