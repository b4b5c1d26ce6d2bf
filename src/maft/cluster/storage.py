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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from maft.config import RunConfig
from maft.errors import ConfigError, DataError, MissingExtra
from maft.files import appearing_whole, writing
from maft.records import AgentRef

WHOLE = ".whole"
PART = ".part"
ATTEMPT = ".attempt"
APPEAR_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "hf", "memory"}
"""Protocols of stores whose objects appear only when they are written to the end."""


class Remote(NamedTuple):
    """A file or a folder at a URL."""

    url: str

    def __truediv__(self, name: str) -> "Remote":
        """Return what has a relative path below this folder."""
        return Remote(f"{self.url.rstrip('/')}/{name}")

    def put(self, local: Path) -> None:
        """Store a file, whole or not at all, or a finished folder, unless it is stored already."""
        if not local.is_dir():
            self._store(lambda system, path: system.put_file(str(local), path))
        elif self.listing() is None:
            digests = {}
            for file in sorted(path for path in local.rglob("*") if path.is_file()):
                name = file.relative_to(local).as_posix()
                (self / name).put(file)
                with file.open("rb") as opened:
                    digests[name] = hashlib.file_digest(opened, "sha256").hexdigest()
            (self / WHOLE).write(json.dumps(digests).encode())

    def write(self, data: bytes) -> None:
        """Store bytes as a file, whole or not at all."""
        self._store(lambda system, path: system.pipe_file(path, data))

    def read(self) -> bytes | None:
        """Return the content of a file; None if it does not exist."""
        with self._opened() as (system, path):
            return bytes(system.cat_file(path)) if system.exists(path) else None

    def remove(self) -> None:
        """Remove a file, if it is there."""
        with self._opened() as (system, path), suppress(FileNotFoundError):
            system.rm_file(path)

    def names(self) -> list[str]:
        """Return the relative paths of all files in a folder, in order."""
        with self._opened() as (system, path):
            files = system.find(path) if system.exists(path) else []
            # some protocols add a leading slash to paths, others remove it
            names = [file.lstrip("/").removeprefix(path.lstrip("/")).lstrip("/") for file in files]
            return sorted(name for name in names if name and not name.endswith(PART))

    def listing(self) -> bytes | None:
        """Return the list of files of a folder that is whole, names and digests as JSON; otherwise None."""
        return (self / WHOLE).read()

    def get_file(self, local: Path) -> None:
        """Fetch a file, whole or not at all."""
        with writing(local) as file, self._opened() as (system, path):
            system.get_file(path, file.name)

    def get_folder(self, local: Path) -> None:
        """Fetch a folder that does not exist here, whole or not at all."""
        listed = self.listing()
        if listed is None:
            raise DataError(f"{self.url} is not there. Was it removed? Remove what was made from it as well.")
        with appearing_whole(local) as unfinished:
            for name in json.loads(listed):
                (self / name).get_file(unfinished / name)

    def _store(self, write: Callable[[Any, str], object]) -> None:
        """Write to a temporary path, unless files of this protocol appear whole anyway, and rename it."""
        with self._opened() as (system, path):
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
            part = path if protocols & APPEAR_WHOLE else f"{path}.{socket.gethostname()}.{os.getpid()}{PART}"
            write(system, part)
            if part != path:
                system.mv(part, path)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        """Give fsspec's file system and the path in it; errors in the block name the URL."""
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise MissingExtra("cluster.storage", "ray") from None
        try:
            system, path = url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"cluster.storage: {self.url} cannot be used: {error}") from None
        try:
            yield system, path
        except Exception as error:  # the library of each protocol has its own
            raise ConfigError(
                f"{self.url} cannot be read or written: {type(error).__name__}: {error}. Check the address and the "
                "credentials. Nothing is lost; run the same command again to continue."
            ) from error


class Place(NamedTuple):
    """How this machine and the workers find each other's files; pickled to the workers."""

    runs_dir: Path
    storage: Remote | None

    @classmethod
    def of(cls, config: RunConfig) -> "Place":
        """Return the place of a run's files."""
        url = config.cluster.storage
        return cls(config.runs_dir.expanduser().resolve(), None if url is None else Remote(url))

    def remote(self, path: Path) -> Remote | None:
        """Return where a path is stored; None if all nodes must see it themselves."""
        path = path if path.is_absolute() else Path.cwd() / path
        if self.storage is None or not path.is_relative_to(self.runs_dir):
            return None
        return self.storage / path.relative_to(self.runs_dir).as_posix()

    def publish(self, *names: Path | str | None) -> None:
        """Make sure that workers can fetch files and finished folders of this machine; names of the hub are skipped."""
        for name in names:
            if name is not None and os.path.isabs(name) and (remote := self.remote(Path(name))):
                remote.put(Path(name))

    def fetch(self, path: Path) -> Path:
        """Return, on a worker's machine, where a finished folder of the driver's is; fetched ones are kept.

        Raises:
            DataError: this node does not see it.
        """
        import filelock

        if (remote := self.remote(path)) is None:
            if not path.exists():
                raise DataError(
                    f"node {socket.gethostname()} does not see {path}. All nodes must have it at the same path: put "
                    "runs_dir on a file system that they share, or set cluster.storage to a URL such as s3://bucket/runs."
                )
            return path
        content = hashlib.blake2b(remote.listing() or b"", digest_size=8).hexdigest()
        home = Path(tempfile.gettempdir()) / f"maft-{getpass.getuser()}" / content
        home.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(home / ".lock"):
            if not (home / path.name).exists():
                remote.get_folder(home / path.name)
        return home / path.name

    def fetch_file(self, file: Path, scratch: Path) -> Path:
        """Return, on a worker's machine, where a file of the driver's is; it is fetched to `scratch` if need be."""
        if (remote := self.remote(file)) is None:
            return self.fetch(file)
        remote.get_file(scratch / file.name)
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
        remote = self.remote(output)
        home = Path(tempfile.gettempdir()) if remote else output.parent
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=ATTEMPT, dir=home) as scratch:
            attempt = Path(scratch) / output.name
            yield attempt
            if remote:
                remote.put(attempt)
            elif not output.exists():
                attempt.rename(output)

    def receive(self, output: Path) -> None:
        """Fetch what was delivered to the driver's machine."""
        if (remote := self.remote(output)) and not output.exists():
            remote.get_folder(output)
