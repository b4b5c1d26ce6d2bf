"""A sampler that never asks twice: replies are kept on disk by what was asked and of which weights."""

import hashlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from maft.models.adapters import weights
from maft.records import Reply, Request
from maft.samplers.base import Sampler


class Replies:
    """Replies by the digest of what was asked, in a file."""

    def __init__(self, file: Path, *, keep_tokens: bool = False) -> None:
        """Use a file, which is made if it is not there; `keep_tokens` keeps token ids and log-probabilities too."""
        self._keep_tokens = keep_tokens
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(file, check_same_thread=False)
        self._file.execute("CREATE TABLE IF NOT EXISTS replies (request BLOB PRIMARY KEY, reply TEXT NOT NULL)")

    def find(self, k: bytes) -> Reply | None:
        """Return a reply that was kept."""
        row = self._file.execute("SELECT reply FROM replies WHERE request = ?", (k,)).fetchone()
        return None if row is None else Reply.from_json(row[0])

    def keep(self, replies: Mapping[bytes, Reply]) -> None:
        """Keep replies; those with an error are left out."""
        good = [
            (k, (reply if self._keep_tokens else reply.without_tokens()).to_json())
            for k, reply in replies.items()
            if reply.error is None
        ]
        with self._file:
            self._file.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", good)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class CachedSampler:
    """Looks every request up in a file, and gives only the others to an engine.

    Two requests are the same if they have the same weights, messages, sampling parameters and seed; who asks does not
    matter. The file belongs to one engine and model: another engine may round differently.
    """

    def __init__(self, engine: Sampler, file: Path, *, keep_tokens: bool = False) -> None:
        """Use `engine` for what is not in `file`, which is made if it is not there; see `Replies`."""
        self.engine = engine
        self._replies = Replies(file, keep_tokens=keep_tokens)

    def sample(self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None) -> list[Reply]:
        """Answer requests; see `maft.samplers.base.Sampler`. Replies with an error are not kept."""
        keys = [key(request) for request in requests]
        known = {k: reply for k in keys if (reply := self._replies.find(k)) is not None}
        for k in keys:
            if k in known and on_reply:
                on_reply(known[k])
        owed = {k: request for k, request in zip(keys, requests, strict=True) if k not in known}
        made = dict(zip(owed, self.engine.sample(list(owed.values()), on_reply), strict=True)) if owed else {}
        self._replies.keep(made)
        return [(known | made)[k] for k in keys]

    def release(self) -> None:
        """Free the engine's memory."""
        self.engine.release()


def key(request: Request) -> bytes:
    """Return what a reply depends on, as a digest."""
    asked = request.model_dump_json(exclude={"agent"})
    return hashlib.blake2b(f"{weights(request.agent)}\n{asked}".encode(), digest_size=16).digest()
