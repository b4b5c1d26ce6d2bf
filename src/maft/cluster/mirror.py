"""A run folder kept at a URL: finished files are stored there, and fetched on a machine that lacks them.

Only whole files go there, in the order in which they were made, so that what is stored is at any moment a run folder
that was interrupted. A file that grows by lines is stored in pieces, each named after the byte at which it begins.
"""

import os
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maft import files
from maft.cluster.storage import WHOLE, Remote
from maft.config import RunConfig
from maft.errors import DataError, MaftError, StageFailed

GROWING = {"debates.jsonl", "events.jsonl", "checksums.jsonl"}
REPLIES = "replies.sqlite"
"""Is removed when a stage ends."""
STATE = ".mirror.json"
OWNER = ".owner"
"""Tells which copy of the folder was stored last."""


@contextmanager
def mirrored(config: RunConfig, folder: Path) -> Iterator[Callable[[], None]]:
    """Fetch a run folder from `cluster.storage`, if there is one; give a function that stores what is new.

    Raises:
        DataError: the folder has a copy of the run that is not the one that was stored last.
    """
    if config.cluster.storage is None:
        yield lambda: None
        return
    mirror = Mirror(folder, Remote(config.cluster.storage) / config.name)
    mirror.restore()
    try:
        yield mirror.push
    except BaseException:
        with suppress(MaftError):  # the error that ended the run is the one to report
            if mirror.owns:
                mirror.push()
        raise
    mirror.push()


class Mirror:
    """One run folder and its place at a URL."""

    def __init__(self, folder: Path, remote: Remote) -> None:
        self.folder, self.remote = folder, remote
        self._state = folder / STATE
        state: Mapping[str, Any] = files.read_json(self._state) if self._state.exists() else {}
        self.owner: str = state.get("owner") or uuid.uuid4().hex
        self.half_fetched: bool = state.get("half_fetched", False)
        self.stored: dict[str, list[int]] = state.get("stored", {})
        """What was stored last, by path: its size and time, or for a file that grows its size and inode."""
        self.owns = False

    def restore(self) -> None:
        """Fetch the folder, unless this copy is the one that was stored last.

        Raises:
            DataError: this is another copy, which may lack files of the stored one.
        """
        names = self.remote.names()
        if OWNER not in names or self._is_last():
            return
        ours = [path for path in self.folder.iterdir() if not path.name.startswith(".")]
        if ours and not self.half_fetched:
            raise DataError(
                f"{self.folder} is not the copy of {self.remote.url} that was stored last: the run "
                "was continued elsewhere. Move this folder away, and the same command fetches the newer one."
            )
        for path in ours:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._remember(half_fetched=True)
        self._fetch([name for name in names if name != OWNER])

    def push(self) -> None:
        """Store what is new; from the first time on, this copy is the one that counts.

        Raises:
            StageFailed: the run was continued elsewhere.
        """
        if not self.owns:
            (self.remote / OWNER).write(self.owner.encode())
            self._remember()
            self.owns = True
        news = [(path, name, now) for path, name, now in self._finished() if self.stored.get(name) != now]
        ended = REPLIES in self.stored and not (self.folder / REPLIES).exists()
        if (news or ended) and not self._is_last():
            raise StageFailed(
                f"{self.remote.url} was taken over by another process with the same command; this one stops."
            )
        if ended:
            (self.remote / REPLIES).remove()
            del self.stored[REPLIES]
            self._remember()
        for path, name, now in news:
            if path.name in GROWING:
                self._store_lines(path, name, now)
            else:
                (self.remote / name).put(path)
            self.stored[name] = now
        if news:
            self._remember()

    def _is_last(self) -> bool:
        """Say whether this copy is the one that was stored last."""
        return (self.remote / OWNER).read() == self.owner.encode()

    def _finished(self) -> list[tuple[Path, str, list[int]]]:
        """Return files and finished agents, oldest first, with their names and what changes when they do."""
        paths: list[Path] = []
        for top, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths += [Path(top) / name for name in names if not name.startswith(".") and not name.endswith("-journal")]
            if Path(top).name == "agents":
                paths += [Path(top) / name for name in folders]
                folders.clear()
        finished = []
        for path, state in sorted(
            ((path, path.stat()) for path in paths), key=lambda one: (one[1].st_mtime_ns, one[0])
        ):
            change = state.st_ino if path.name in GROWING else state.st_mtime_ns
            finished.append((path, path.relative_to(self.folder).as_posix(), [state.st_size, change]))
        return finished

    def _store_lines(self, path: Path, name: str, now: list[int]) -> None:
        """Store what was added to a file, or all of it if it was rewritten."""
        size, inode = self.stored.get(name, (0, now[1]))
        begin = size if inode == now[1] and size <= now[0] else 0
        if begin == 0:
            for piece in reversed((self.remote / name).names()):
                (self.remote / name / piece).remove()
        with path.open("rb") as file:
            file.seek(begin)
            (self.remote / name / f"{begin:015d}").write(file.read(now[0] - begin))

    def _fetch(self, names: list[str]) -> None:
        pieces: dict[str, dict[int, str]] = defaultdict(dict)
        for name in names:
            path = Path(name)
            if path.name == WHOLE:
                folder = path.parent.as_posix()
                (self.remote / folder).get_folder(self.folder / folder)
            elif path.parent.name in GROWING:
                pieces[path.parent.as_posix()][int(path.name)] = name
            elif path.parent.parent.name != "agents":
                (self.remote / name).get_file(self.folder / name)
        for name, by_offset in pieces.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (self.folder / name).open("wb") as file:
                while (piece := by_offset.get(file.tell())) is not None and (data := (self.remote / piece).read()):
                    file.write(data)
        self.stored = {name: now for _, name, now in self._finished()}

    def _remember(self, *, half_fetched: bool = False) -> None:
        state = {"owner": self.owner, "half_fetched": half_fetched, "stored": self.stored}
        files.write_json(self._state, state)
