"""What all nodes see: a folder with one path on all of them, or a place at a URL that fsspec knows, such as a bucket.

At a URL files have the paths that they have below `runs_dir`. A file appears whole. A folder is whole when its list of
files, `.whole`, is there; it is written last.
"""

import getpass
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from maft.config import RunConfig
from maft.errors import ConfigError, DataError, MissingExtra
from maft.files import appearing_whole
from maft.records import AgentRef

WHOLE = ".whole"
PART = ".part"
APPEAR_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory"}
"""Protocols of stores whose objects are there only once they are written to the end."""


class Storage(NamedTuple):
    """Files at a URL, by keys such as `run/iter_01/votes.jsonl`."""

    url: str

    def put_file(self, file: Path, key: str) -> None:
        """Store a file, whole or not at all."""
        with self._whole(key) as (system, path):
            system.put_file(str(file), path)

    def write(self, data: bytes, key: str) -> None:
        """Store bytes, whole or not at all."""
        with self._whole(key) as (system, path):
            system.pipe_file(path, data)

    def read(self, key: str) -> bytes:
        """Return what is stored in a file."""
        with self._opened(key) as (system, path):
            return bytes(system.cat_file(path))

    def get_file(self, key: str, file: Path) -> None:
        """Fetch a file, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            with self._opened(key) as (system, path):
                system.get_file(path, str(part))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    def remove(self, key: str) -> None:
        """Remove a file."""
        with self._opened(key) as (system, path):
            system.rm_file(path)

    def keys(self, key: str) -> list[str]:
        """Return the keys of all files below a key, relative to it, in order."""
        with self._opened(key) as (system, path):
            found = system.find(path) if system.exists(path) else []
            # some protocols give paths with a leading slash for one without, and the other way round
            names = [one.lstrip("/").removeprefix(path.lstrip("/")).lstrip("/") for one in found]
            return sorted(name for name in names if name and not name.endswith(PART))

    def put_folder(self, folder: Path, key: str) -> None:
        """Store a folder that is finished, unless it is there."""
        if self.list_of_files(key) is not None:
            return
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        for name, file in files.items():
            self.put_file(file, f"{key}/{name}")
        listed = json.dumps({name: _digest(file) for name, file in files.items()})
        self.write(listed.encode(), f"{key}/{WHOLE}")

    def list_of_files(self, key: str) -> bytes | None:
        """Return the list of files of a folder that is there, whole: names and digests as JSON; else None."""
        with self._opened(f"{key}/{WHOLE}") as (system, path):
            return bytes(system.cat_file(path)) if system.exists(path) else None

    def get_folder(self, key: str, folder: Path) -> None:
        """Fetch a folder, whole or not at all; it must not be there."""
        listed = self.list_of_files(key)
        if listed is None:
            raise DataError(f"{self.url}/{key} is not there. Was it removed? Remove what was made from it as well.")
        with appearing_whole(folder) as unfinished:
            for name in json.loads(listed):
                self.get_file(f"{key}/{name}", unfinished / name)

    @contextmanager
    def _whole(self, key: str) -> Iterator[tuple[Any, str]]:
        """Give a path to write to, which becomes that of the key when it is written."""
        with self._opened(key) as (system, path):
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
            part = path if protocols & APPEAR_WHOLE else f"{path}.{socket.gethostname()}.{os.getpid()}{PART}"
            yield system, part
            if part != path:
                system.mv(part, path)

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[Any, str]]:
        """Give fsspec's file system and the path in it; what goes wrong there names the URL."""
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise MissingExtra("cluster.storage", "ray") from None
        where = f"{self.url.rstrip('/')}/{key}"
        try:
            system, path = url_to_fs(where, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"cluster.storage = {self.url} cannot be used: {error}") from None
        try:
            yield system, path
        except Exception as error:  # of whichever library serves this protocol
            raise ConfigError(
                f"{where} cannot be read or written: {type(error).__name__}: {error}. Check the address and the "
                "credentials. Nothing is lost; run the same command again to continue."
            ) from error


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class Place(NamedTuple):
    """How this machine and the workers find each other's files. It is given to the workers."""

    runs_dir: Path
    storage: Storage | None

    @classmethod
    def of(cls, config: RunConfig) -> "Place":
        """Return the place of a run's files."""
        url = config.cluster.storage
        return cls(config.runs_dir.expanduser().resolve(), None if url is None else Storage(url))

    def key(self, path: Path) -> str | None:
        """Return the key of a path at the URL; None for a path outside of `runs_dir`."""
        path = path if path.is_absolute() else Path.cwd() / path
        return path.relative_to(self.runs_dir).as_posix() if path.is_relative_to(self.runs_dir) else None

    def publish(self, path: Path) -> None:
        """Make sure that workers can fetch a file or a finished folder of this machine."""
        key = self.key(path)
        if self.storage is not None and key is not None:
            (self.storage.put_folder if path.is_dir() else self.storage.put_file)(path, key)

    def publish_weights(self, agent: AgentRef) -> None:
        """Make sure that workers can fetch what an agent speaks with."""
        for name in (agent.model, agent.adapter):
            if name is not None and os.path.isabs(name):
                self.publish(Path(name))

    def fetch(self, path: Path) -> Path:
        """Return, on a worker's machine, where a finished folder of the driver's is.

        Raises:
            DataError: this node does not see it.
        """
        key = self.key(path)
        if self.storage is None or key is None:
            if not path.exists():
                raise DataError(
                    f"node {socket.gethostname()} does not see {path}. All nodes must have it at the same path: put "
                    "runs_dir on a file system that they share, or set cluster.storage to a URL such as s3://bucket/runs."
                )
            return path
        return _kept(self.storage, key)

    def fetch_file(self, file: Path, scratch: Path) -> Path:
        """Return, on a worker's machine, where a file of the driver's is; what must be fetched goes into a folder."""
        key = self.key(file)
        if self.storage is None or key is None:
            return self.fetch(file)
        self.storage.get_file(key, scratch / file.name)
        return scratch / file.name

    def here(self, agent: AgentRef) -> AgentRef:
        """Return an agent with the paths that its weights have on a worker's machine."""
        model, adapter = (
            str(self.fetch(Path(name))) if name is not None and os.path.isabs(name) else name
            for name in (agent.model, agent.adapter)
        )
        return agent.model_copy(update={"model": model, "adapter": adapter})

    @contextmanager
    def delivering(self, output: Path) -> Iterator[Path]:
        """Give, on a worker's machine, a folder's name to make; it becomes `output`, or is stored as that one.

        An attempt that was given up may live on for a while: every attempt has a name of its own, and the first wins.
        """
        key = self.key(output)
        stored = self.storage is not None and key is not None
        home = Path(tempfile.gettempdir()) if stored else output.parent
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=ATTEMPT, dir=home) as scratch:
            made = Path(scratch) / output.name
            yield made
            if self.storage is not None and key is not None:
                self.storage.put_folder(made, key)
            elif not output.exists():
                made.rename(output)

    def receive(self, output: Path) -> None:
        """Have, on the driver's machine, what was delivered."""
        key = self.key(output)
        if self.storage is not None and key is not None and not output.exists():
            self.storage.get_folder(key, output)


ATTEMPT = ".attempt"


def _kept(storage: Storage, key: str) -> Path:
    """Return where this machine has a finished folder, which it fetches only once; its content is part of its name."""
    import filelock

    listed = storage.list_of_files(key)
    if listed is None:
        raise DataError(f"{storage.url}/{key} is not there. Was it removed? Remove what was made from it as well.")
    content = hashlib.blake2b(listed, digest_size=8).hexdigest()
    home = Path(tempfile.gettempdir()) / f"maft-{getpass.getuser()}" / content
    home.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(home / ".lock"):
        local = home / Path(key).name
        if not local.exists():
            storage.get_folder(key, local)
    return local
