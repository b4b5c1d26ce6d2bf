"""Checksums of the finished files of a run, so that later changes are noticed.

`checksums.jsonl` has a line for each finished file: questions, and of each iteration debates, votes, examples, agents
and scores. They are compared when a run continues and by `maft verify`. A file without a line gets one when the run
continues, as all do in a run of an older maft.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from maft import files
from maft.config import EvalConfig
from maft.errors import DataError
from maft.records import Record
from maft.runs.folder import RunFolder

log = logging.getLogger(__name__)

LARGE = 1 << 30
"""Bytes of a file above which only its size is compared when a run continues."""


class Seal(Record):
    """Size and checksum of a finished file."""

    file: str
    """Relative to the run folder."""
    bytes: int
    blake2b: str
    """Of the content, 16 bytes in hexadecimal digits."""


class Damage(Record):
    """A finished file that differs from what was written."""

    file: str
    what: str


def seal(folder: RunFolder) -> None:
    """Add the checksums of files finished since the last call."""
    known = _seals(folder)
    finished = {file.relative_to(folder.path).as_posix(): file for file in _finished(folder)}
    new = [
        Seal(file=name, bytes=file.stat().st_size, blake2b=files.digest(file))
        for name, file in finished.items()
        if name not in known
    ]
    if new:
        files.append_records(folder.checksums, new)


def check(folder: RunFolder) -> None:
    """Refuse to continue a run with a changed finished file, and drop the checksums of removed files.

    A damaged agent is put aside instead, to be finetuned again from its examples.

    Raises:
        DataError: names up to three of the files, and what to do.
    """
    damaged = [damaged_file for damaged_file in damage(folder, thorough=False) if not _put_aside(folder, damaged_file)]
    if damaged:
        listed = "\n".join(f"  {damaged_file.file}: {damaged_file.what}" for damaged_file in damaged[:3])
        more = f"\n  and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        raise DataError(
            f"{folder.path} has finished files that were changed after they were written:\n{listed}{more}\n"
            "Restore them. Or remove them together with all that was made from them (votes, examples, agents, scores, "
            "later iterations), to have them made again. `maft verify` lists them all."
        )
    present = [known for known in _seals(folder).values() if (folder.path / known.file).exists()]
    if len(present) < len(_seals(folder)):
        files.write_records(folder.checksums, present)


def damage(folder: RunFolder, *, thorough: bool = True) -> list[Damage]:
    """Return the finished files that differ from what was written.

    `thorough` compares the content of large files, too, and names removed files, which a resumed run makes again.
    """
    damaged_file: list[Damage] = []
    for known in _seals(folder).values():
        file = folder.path / known.file
        if not file.exists():
            if thorough:
                damaged_file.append(Damage(file=known.file, what="it is missing"))
            continue
        size = file.stat().st_size
        if size != known.bytes:
            damaged_file.append(Damage(file=known.file, what=f"it has {size:,} bytes, and had {known.bytes:,}"))
        elif (thorough or size < LARGE) and files.digest(file) != known.blake2b:
            damaged_file.append(Damage(file=known.file, what="its content differs"))
    return damaged_file


def _put_aside(folder: RunFolder, damaged_file: Damage) -> bool:
    """Rename the agent that a damaged file belongs to; False if it belongs to none."""
    iteration, kind, *rest = Path(damaged_file.file).parts
    if kind != "agents":
        return False
    agent = folder.path / iteration / kind / rest[0]
    if agent.exists():
        agent.rename(agent.with_name(f".{agent.name}.damaged-{time.time_ns()}"))
        log.warning("%s: %s. The agent is moved away and finetuned again.", damaged_file.file, damaged_file.what)
    return True


def num_sealed(folder: RunFolder) -> int:
    """Return the number of finished files with a checksum."""
    return len(_seals(folder))


def _seals(folder: RunFolder) -> dict[str, Seal]:
    files.drop_torn_line(folder.checksums)
    path = folder.checksums
    return {seal.file: seal for seal in files.read_records(path, Seal)} if path.exists() else {}


def _finished(folder: RunFolder) -> Iterator[Path]:
    """Yield the finished files of the run."""
    yield from (file for side in ("train", "eval") if (file := folder.problems(side)).exists())
    for other in folder.others:
        yield from _finished(other)
    for number in range(folder.config.num_iterations + 1):
        if (turns := folder.iteration(number) / "online").is_dir():
            config = folder.config.model_copy(
                update={"num_iterations": len(list(turns.glob("iter_*"))), "eval": EvalConfig()}
            )
            yield from _finished(RunFolder(turns, config))
        if folder.votes(number).exists():
            yield from (folder.debates(number), folder.votes(number))
        if folder.examples_summary(number).exists():
            yield from sorted(folder.examples_summary(number).parent.glob("*.json*"))
        if folder.evaluated(number):
            yield from sorted({*folder.evaluation(number).glob("*.json*")} - {folder.diversity(number)})
        for agent in sorted(folder.agent(number, "x").parent.glob("[!.]*")):
            yield from sorted(file for file in agent.rglob("*") if file.is_file() and file.name != "README.md")
