"""A sampler that never asks twice: replies are kept on disk, by the request and the weights that answer it."""

import hashlib
import itertools
import sqlite3
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from maft.errors import DataError
from maft.models.adapters import weights
from maft.records import Reply, Request
from maft.samplers.base import Answered, Feed, Sampler, Streaming, answer


class Replies:
    """Replies by the digest of their request, in an SQLite file."""

    def __init__(self, file: Path, *, paid: bool = False, keep_tokens: bool = False, shared: bool = False) -> None:
        """Open a file, which is created if it does not exist.

        Replies survive a kill, and a power cut if `paid`; `keep_tokens` keeps token ids and log-probabilities. Several
        processes can use a `shared` file, at some cost in time.

        Raises:
            DataError: the file is damaged, or in use by another process and not shared.
        """
        self._keep_tokens = keep_tokens
        file.parent.mkdir(parents=True, exist_ok=True)
        # isolation_level=None: a transaction for each reply
        self._file = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        try:
            self._file.execute(f"PRAGMA synchronous={'FULL' if paid else 'OFF'}")
            self._file.execute(f"PRAGMA {'busy_timeout=60000' if shared else 'locking_mode=EXCLUSIVE'}")
            self._file.execute("CREATE TABLE IF NOT EXISTS replies (request BLOB PRIMARY KEY, reply TEXT NOT NULL)")
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise DataError(
                    f"{file} is in use by another process. Wait for it, or choose another name=..."
                ) from None
            raise DataError(f"{file} cannot be read: {error}. Remove it to ask everything in it again.") from None
        self.close = self._file.close

    def find(self, key: bytes) -> Reply | None:
        """Return a reply that was kept."""
        row = self._file.execute("SELECT reply FROM replies WHERE request = ?", (key,)).fetchone()
        return None if row is None else Reply.from_json(row[0])

    def keep(self, key: bytes, reply: Reply) -> None:
        """Keep a reply, unless it has an error."""
        if reply.error is None:
            text = (reply if self._keep_tokens else reply.without_tokens()).to_json()
            self._file.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, text))


def drop(file: Path) -> None:
    """Remove a file of replies, if it exists, with the journal of a killed process."""
    for path in (file, file.with_name(f"{file.name}-journal")):
        path.unlink(missing_ok=True)


class CachedSampler(Streaming):
    """Looks every request up in a file, and gives only the others to an engine.

    Two requests are the same if they have the same weights, messages, sampling parameters and seed; who asks does not
    matter. A file belongs to one engine and model: another engine may round differently.
    """

    def __init__(
        self, engine: Sampler, file: Path, *, paid: bool = False, keep_tokens: bool = False, shared: bool = False
    ) -> None:
        """Ask nothing yet; for the settings, see `Replies`."""
        self.engine = engine
        self._open = partial(Replies, file, paid=paid, keep_tokens=keep_tokens, shared=shared)

    def answer(self, requests: Sequence[Request], on_reply: Answered) -> None:
        """Answer requests; see `maft.samplers.base.Streaming`. Replies with an error are not kept."""
        feed, count = Feed(requests, on_reply), itertools.count()
        keys: dict[int, bytes] = {}
        """Keys of the engine's requests, by its numbers."""
        waiting: dict[bytes, list[int]] = {}
        """Our numbers that wait for each of these keys."""

        def unknown(numbered: Iterable[tuple[int, Request]]) -> list[Request]:
            """Answer what is known, and what follows from that; return what is not."""
            left, asked = deque(numbered), []
            while left:
                number, request = left.popleft()
                k = key(request)
                if k in waiting:
                    waiting[k].append(number)
                elif (reply := kept.find(k)) is not None:
                    left += feed.reply(number, reply)
                else:
                    keys[next(count)], waiting[k] = k, [number]
                    asked.append(request)
            return asked

        def take(place: int, reply: Reply) -> list[Request]:
            k = keys.pop(place)
            kept.keep(k, reply)
            return unknown(new for number in waiting.pop(k) for new in feed.reply(number, reply))

        with closing(self._open()) as kept:
            if asked := unknown(feed.first):
                answer(self.engine, asked, take)

    def release(self) -> None:
        """Free the engine's memory."""
        self.engine.release()


def key(request: Request) -> bytes:
    """Return a digest of everything that a reply depends on."""
    try:
        speaker = weights(request.agent)
    except FileNotFoundError:  # the engine reports it, and there is no reply
        speaker = str(request.agent.adapter)
    asked = request.model_dump_json(exclude={"agent"})
    return hashlib.blake2b(f"{speaker}\n{asked}".encode(), digest_size=16).digest()
