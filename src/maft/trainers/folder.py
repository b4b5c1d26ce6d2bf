"""Output folders that are there whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def partial(output: Path) -> Path:
    """Return the name that `output` has until it is whole; hidden, so that no listing takes it for a finished one.

    >>> partial(Path("agents/critic_0")).as_posix()
    'agents/.critic_0.partial'
    """
    return output.with_name(f".{output.name}.partial")


@contextmanager
def appearing_whole(output: Path) -> Iterator[Path]:
    """Give an empty folder beside `output` to fill, and rename it to `output` if the block ends without an error."""
    assert not output.exists(), f"{output} is there already"
    unfinished = partial(output)
    shutil.rmtree(unfinished, ignore_errors=True)  # of a training that was killed
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
