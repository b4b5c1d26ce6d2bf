"""A sampler that never asks twice: replies are kept on disk by what was asked and of which weights."""

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from maft.records import AgentRef, Reply, Request
from maft.samplers.base import Sampler


class CachedSampler:
    """Looks every request up in a file, and gives only the others to an engine.

    Two requests are the same if they have the same weights, messages, sampling parameters and seed; who asks does not
    matter. The file belongs to one engine and model: another engine may round differently.
    """

    def __init__(self, engine: Sampler, file: Path) -> None:
        """Use `engine` for what is not in `file`, which is made if it is not there."""
        self.engine = engine
        file.parent.mkdir(parents=True, exist_ok=True)
        self._replies = sqlite3.connect(file)
        self._replies.execute("CREATE TABLE IF NOT EXISTS replies (request BLOB PRIMARY KEY, reply TEXT NOT NULL)")

    def sample(self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None) -> list[Reply]:
        """Answer requests; see `maft.samplers.base.Sampler`. Replies with an error are not kept."""
        keys = [key(request) for request in requests]
        known = {k: reply for k in keys if (reply := self._find(k)) is not None}
        for k in keys:
            if k in known and on_reply:
                on_reply(known[k])
        owed = {k: request for k, request in zip(keys, requests, strict=True) if k not in known}
        made = dict(zip(owed, self.engine.sample(list(owed.values()), on_reply), strict=True)) if owed else {}
        good = [(k, reply.to_json()) for k, reply in made.items() if reply.error is None]
        with self._replies:
            self._replies.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", good)
        return [(known | made)[k] for k in keys]

    def release(self) -> None:
        """Free the engine's memory."""
        self.engine.release()

    def _find(self, k: bytes) -> Reply | None:
        row = self._replies.execute("SELECT reply FROM replies WHERE request = ?", (k,)).fetchone()
        return None if row is None else Reply.from_json(row[0])


def key(request: Request) -> bytes:
    """Return what a reply depends on, as a digest."""
    asked = request.model_dump_json(exclude={"agent"})
    return hashlib.blake2b(f"{weights(request.agent)}\n{asked}".encode(), digest_size=16).digest()


def weights(agent: AgentRef) -> str:
    """Return what identifies the weights that speak: the model's name, and the content of the adapter."""
    return agent.model if agent.adapter is None else f"{agent.model} {digest(Path(agent.adapter))}"


@cache
def digest(folder: Path) -> str:
    """Return the digest of all weights in an adapter's folder; a finished one never changes."""
    found = hashlib.blake2b(digest_size=16)
    kinds = (".safetensors", ".json", ".bin")
    for file in sorted(path for path in folder.iterdir() if path.suffix in kinds and path.name != "training.json"):
        found.update(file.name.encode())
        found.update(file.read_bytes())
    return found.hexdigest()
