"""Files and folders that appear whole or not at all, and JSONL that grows by whole lines."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import ValidationError

from maft.errors import DataError
from maft.records import NEWER_SCHEMA, Record

R = TypeVar("R", bound=Record)
BOM = b"\xef\xbb\xbf"


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write it whole: after a crash it has the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole, see `writing`."""
    with writing(path) as file:
        file.write(text.encode())


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot, such as some network ones
            raise
    finally:
        os.close(descriptor)


def _name_whole(unfinished: Path, output: Path) -> None:
    """Rename a folder once all of it is on the disk."""
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
    """Write records as JSONL whole, one after the other, see `writing`."""
    with writing(path) as file:
        file.writelines(f"{record.to_json()}\n".encode() for record in records)


def append_records(path: Path, records: Iterable[Record], *, durable: bool = True) -> None:
    """Append records as whole lines, which survive a kill; if `durable`, they and those before survive a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write("".join(f"{record.to_json()}\n" for record in records).encode())
        file.flush()
        if durable:
            os.fsync(file.fileno())


def keep_lines(path: Path, numbers: Sequence[int]) -> None:
    """Rewrite a file from some of its lines, numbered from 0, in the given order."""
    ends = [0]
    with path.open("rb") as old:
        for line in old:
            ends.append(ends[-1] + len(line))
        with writing(path) as new:
            for number in numbers:
                old.seek(ends[number])
                new.write(old.read(ends[number + 1] - ends[number]))


def drop_torn_line(path: Path) -> None:
    """Cut off what follows the last line break: a line whose writing was interrupted."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            file.seek(start)
            whole = file.read(end - start).rfind(b"\n") + 1
            end = start + whole
            if whole:
                break
        if end < size:
            file.truncate(end)


class Records(Iterable[R]):
    """The records of a JSONL file, read one by one at each iteration over them."""

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path, self.kind = path, kind

    def __iter__(self) -> Iterator[R]:
        """Yield the records.

        Raises:
            DataError: the file cannot be read, or a line is not such a record; names the line and what to do.
        """
        number = 0
        try:
            with self.path.open(
                "rb"
            ) as file:  # not as text: JSON leaves U+2028 and its kin inside a string as they are
                for number, line in enumerate(file, 1):
                    yield self._record(number, line.removeprefix(BOM) if number == 1 else line)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}.") from None

    def _record(self, number: int, line: bytes) -> R:
        try:
            return self.kind.from_json(line)
        except ValidationError as errors:
            first = errors.errors()[0]
            if first["type"] == NEWER_SCHEMA:
                raise DataError(
                    f"{self.path}, line {number}, was written by a newer maft: {first['msg']}. Install that version."
                ) from None
            where = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{self.path}, line {number}, is not a {self.kind.__name__}: {where + ': ' if where else ''}"
                f"{first['msg']}. Got {line.decode(errors='replace').strip()[:80]!r}. Restore the line from a "
                "copy."
            ) from None


def digest(path: Path) -> str:
    """Return the checksum of a file: BLAKE2b, 16 bytes in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def num_lines(path: Path) -> int:
    """Return the number of whole lines of a file; 0 where there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Return the records of a JSONL file, see `Records`."""
    return list(Records(path, kind))


def partial(output: Path) -> Path:
    """Return the name that `output` has until it is whole; hidden, so that no listing takes it for a finished one.

    >>> partial(Path("agents/critic_0")).as_posix()
    'agents/.critic_0.partial'
    """
    return output.with_name(f".{output.name}.partial")


@contextmanager
def appearing_whole(output: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, and rename it to `output` if the block ends without an error."""
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
    """Give files the user's default modes: safetensors makes weights unreadable for others."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def make_whole(folder: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a temporary folder, and rename it to `folder` when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        make(Path(scratch) / folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        _name_whole(Path(scratch) / folder.name, folder)


@cache
def template(room: str, name: str, *, html: bool = False, **filters: Callable[..., Any]) -> Any:
    """Return a Jinja template from the folder `templates` of a room; in HTML everything is escaped, in text nothing."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(f"maft.{room}", "templates"),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
        undefined=StrictUndefined,
    )
    environment.filters |= filters
    return environment.get_template(name)


def temporary(purpose: str) -> Path:
    """Return an empty folder under the system's temporary folder; those of processes that have ended are removed."""
    remove_leftovers(Path(tempfile.gettempdir()).glob("maft-*"))
    return Path(tempfile.mkdtemp(prefix=f"maft-{purpose}-", suffix=f".{os.getpid()}"))


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """Yield a temporary folder, removed after the block."""
    folder = temporary(purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove those temporary files and folders whose names hold the number of a process that has ended.

    A name is as `write_text` and `temporary` make it: `.votes.jsonl.4711.tmp`, `maft-push-x3k.4711`.
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
