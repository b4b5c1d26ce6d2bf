"""Files and folders that are there whole or not at all, and JSONL that grows by whole lines."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from maft.errors import DataError
from maft.records import NEWER_SCHEMA, Record

R = TypeVar("R", bound=Record)


def write_text(path: Path, text: str) -> None:
    """Write a file whole: after a crash it has the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """See a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot, such as some network ones
            raise
    finally:
        os.close(descriptor)


def _name_whole(unfinished: Path, output: Path) -> None:
    """Give a folder its name once all of it is on the disk."""
    for path in [*unfinished.rglob("*"), unfinished]:
        sync(path)
    unfinished.rename(output)
    sync(output.parent)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole, see `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        DataError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}. Restore it from a copy.") from None


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}. Convert it to UTF-8.") from None


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSONL whole, see `write_text`."""
    write_text(path, "".join(f"{record.to_json()}\n" for record in records))


def append_records(path: Path, records: Sequence[Record]) -> None:
    """Append records as whole lines and see them onto the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write("".join(f"{record.to_json()}\n" for record in records))
        file.flush()
        os.fsync(file.fileno())


def drop_torn_line(path: Path) -> None:
    """Cut off what follows the last line break: a line whose writing was interrupted."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Read JSONL records.

    Raises:
        DataError: the file cannot be read, or a line is not such a record; names the line and what to do.
    """
    lines = read_text(path).removesuffix("\n").split("\n")
    records: list[R] = []
    # Not splitlines(): JSON leaves U+2028 and its kin inside a string as they are.
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            records.append(kind.from_json(line))
        except ValidationError as errors:
            first = errors.errors()[0]
            if first["type"] == NEWER_SCHEMA:
                raise DataError(
                    f"{path}, line {number}, was written by a newer maft: {first['msg']}. Install that one."
                ) from None
            where = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{path}, line {number}, is not a {kind.__name__}: {where + ': ' if where else ''}{first['msg']}. "
                f"Got {line[:80]!r}. Restore the line from a copy."
            ) from None
    return records


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
        _give_usual_modes(unfinished)
        _name_whole(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _give_usual_modes(folder: Path) -> None:
    """Make files as readable as others of this user: safetensors writes weights that nobody else may read."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def make_whole(folder: Path, make: Callable[[Path], None]) -> None:
    """Have `make` fill a folder beside `folder`, and put it in its place when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        make(Path(scratch) / folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        _name_whole(Path(scratch) / folder.name, folder)


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """Give an empty folder under the system's temporary folder for the time of a block."""
    remove_leftovers(Path(tempfile.gettempdir()).glob("maft-*"))
    with tempfile.TemporaryDirectory(prefix=f"maft-{purpose}.{os.getpid()}.", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove those temporary files and folders whose names hold the number of a process that has ended.

    A name is as `write_text` and `scratch` make it: `.votes.jsonl.4711.tmp`, `maft-push.4711.x3k`.
    """
    for path in paths:
        number = next((part for part in path.name.split(".")[::-1] if part.isdigit()), None)
        try:
            if number is None or _alive(int(number)):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:  # somebody else's, or removed by somebody else
            continue


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
