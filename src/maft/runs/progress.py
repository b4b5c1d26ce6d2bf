"""Progress bars on stderr, one for each stage: done / total, rate, time left."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Bar:
    """The bar of one stage."""

    def __init__(self, bar: Any) -> None:
        """Wrap a tqdm bar."""
        self._bar = bar

    def skip(self, count: int) -> None:
        """Count work that an earlier start has done; it does not go into the rate."""
        if self._bar.disable:
            return
        self._bar.initial += count
        self._bar.n += count
        self._bar.refresh()

    def advance(self, count: float = 1) -> None:
        """Count work done now."""
        self._bar.update(count)

    def note(self, text: str) -> None:
        """Show a few words behind the bar."""
        self._bar.set_postfix_str(text, refresh=False)


class Progress:
    """Shows what a run is doing; `quiet` shows nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Draw bars on stderr unless `quiet`."""
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Print a line, without disturbing a bar."""
        if not self.quiet:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Bar]:
        """Show a bar while a stage runs."""
        from tqdm import tqdm

        # A log file gets a line now and then in place of a bar that redraws itself.
        interval = 0.5 if sys.stderr.isatty() else 15
        counts = "{n:.0f}/{total:.0f} {unit}s [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        shape = "{desc} {percentage:3.0f}%|{bar:20}| " + counts
        columns, lines = _shape()
        with tqdm(
            total=total,
            desc=f"{title:<24}",
            unit=unit,
            disable=self.quiet,
            mininterval=interval,
            bar_format=shape,
            ncols=columns,
            nrows=lines,
        ) as bar:
            yield Bar(bar)


def _shape() -> tuple[int, int] | tuple[None, None]:
    """Return a size for terminals that say they have none, where tqdm would draw nothing."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        return None, None
    return (None, None) if size.columns and size.lines else (100, 24)
