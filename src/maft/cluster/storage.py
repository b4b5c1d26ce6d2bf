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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from maft.config import RunConfig
from maft.errors import ConfigError, DataError, MissingExtra
from maft.files import appearing_whole, writing
from maft.records import AgentRef

WHOLE = ".whole"
PART = ".part"
ATTEMPT = ".attempt"
APPEAR_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory"}
"""Protocols of stores whose objects appear only when they are written to the end."""


class Storage(NamedTuple):
    """Files at a URL, by keys such as `run/iter_01/votes.jsonl`."""

    url: str

    def put_file(self, file: Path, key: str) -> None:
        """Store a file, whole or not at all."""
        self._store(key, lambda system, path: system.put_file(str(file), path))

    def write(self, data: bytes, key: str) -> None:
        """Store bytes, whole or not at all."""
        self._store(key, lambda system, path: system.pipe_file(path, data))

    def read(self, key: str) -> bytes | None:
        """Return the content of a file; None if it is not there."""
        with self._opened(key) as (system, path):
            return bytes(system.cat_file(path)) if system.exists(path) else None

    def get_file(self, key: str, file: Path) -> None:
        """Fetch a file, whole or not at all."""
        with writing(file) as part, self._opened(key) as (system, path):
            system.get_file(path, part.name)

    def remove(self, key: str) -> None:
        """Remove a file."""
        with self._opened(key) as (system, path):
            system.rm_file(path)

    def keys(self, key: str) -> list[str]:
        """Return the keys of all files below a key, relative to it, in order."""
        with self._opened(key) as (system, path):
            found = system.find(path) if system.exists(path) else []
            # some protocols add a leading slash to paths, others remove it
            names = [one.lstrip("/").removeprefix(path.lstrip("/")).lstrip("/") for one in found]
            return sorted(name for name in names if name and not name.endswith(PART))

    def put_folder(self, folder: Path, key: str) -> None:
        """Store a finished folder, unless it is stored already."""
        if self.list_of_files(key) is not None:
            return
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        for name, file in files.items():
            self.put_file(file, f"{key}/{name}")
        listed = json.dumps({name: _digest(file) for name, file in files.items()})
        self.write(listed.encode(), f"{key}/{WHOLE}")

    def list_of_files(self, key: str) -> bytes | None:
        """Return the list of files of a folder that is whole, names and digests as JSON; otherwise None."""
        return self.read(f"{key}/{WHOLE}")

    def get_folder(self, key: str, folder: Path) -> None:
        """Fetch a folder that does not exist here, whole or not at all."""
        listed = self.list_of_files(key)
        if listed is None:
            raise DataError(f"{self.url}/{key} is not there. Was it removed? Remove what was made from it as well.")
        with appearing_whole(folder) as unfinished:
            for name in json.loads(listed):
                self.get_file(f"{key}/{name}", unfinished / name)

    def _store(self, key: str, write: Callable[[Any, str], object]) -> None:
        """Write to a temporary path, unless files of this protocol appear whole anyway, and rename it."""
        with self._opened(key) as (system, path):
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
            part = path if protocols & APPEAR_WHOLE else f"{path}.{socket.gethostname()}.{os.getpid()}{PART}"
            write(system, part)
            if part != path:
                system.mv(part, path)

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[Any, str]]:
        """Give fsspec's file system and the path in it; an error there names the URL."""
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
    """How this machine and the workers find each other's files; pickled to the workers."""

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

    def publish(self, *names: Path | str | None) -> None:
        """Make sure that workers can fetch files and finished folders of this machine; names of the hub are skipped."""
        for name in names:
            if name is not None and os.path.isabs(name) and self.storage is not None:
                path = Path(name)
                if (key := self.key(path)) is not None:
                    (self.storage.put_folder if path.is_dir() else self.storage.put_file)(path, key)

    def fetch(self, path: Path) -> Path:
        """Return, on a worker's machine, where a finished folder of the driver's is; fetched ones are kept.

        Raises:
            DataError: this node does not see it.
        """
        import filelock

        key = self.key(path)
        if self.storage is None or key is None:
            if not path.exists():
                raise DataError(
                    f"node {socket.gethostname()} does not see {path}. All nodes must have it at the same path: put "
                    "runs_dir on a file system that they share, or set cluster.storage to a URL such as s3://bucket/runs."
                )
            return path
        listed = self.storage.list_of_files(key) or b""
        content = hashlib.blake2b(listed, digest_size=8).hexdigest()
        home = Path(tempfile.gettempdir()) / f"maft-{getpass.getuser()}" / content
        home.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(home / ".lock"):
            local = home / path.name
            if not local.exists():
                self.storage.get_folder(key, local)
        return local

    def fetch_file(self, file: Path, scratch: Path) -> Path:
        """Return, on a worker's machine, where a file of the driver's is; it is fetched to `scratch` if need be."""
        key = self.key(file)
        if self.storage is None or key is None:
            return self.fetch(file)
        self.storage.get_file(key, scratch / file.name)
        return scratch / file.name

    def here(self, agent: AgentRef) -> AgentRef:
        """Return an agent with the paths that its weights have on a worker's machine."""
        adapter = agent.adapter and self.weights(agent.adapter)
        return agent.model_copy(update={"model": self.weights(agent.model), "adapter": adapter})

    def weights(self, name: str) -> str:
        """Return, on a worker's machine, the path of a folder of the driver's, or a hub name as it is."""
        return str(self.fetch(Path(name))) if os.path.isabs(name) else name

    @contextmanager
    def delivering(self, output: Path) -> Iterator[Path]:
        """Give, on a worker's machine, the path of a folder to make, which becomes `output` or is stored as that.

        An attempt that was given up may still be running: every attempt has its own path, and the first wins.
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
        """Fetch what was delivered to the driver's machine."""
        key = self.key(output)
        if self.storage is not None and key is not None and not output.exists():
            self.storage.get_folder(key, output)
