"""A sampler that never asks twice: replies are kept on disk by what was asked and of which weights."""

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
    """Replies by the digest of what was asked, in a file."""

    def __init__(self, file: Path, *, paid: bool = False, keep_tokens: bool = False) -> None:
        """Use a file, which is made if it is not there.

        Args:
            file: of the replies.
            paid: see each reply onto the disk, so that it survives a power cut; otherwise it survives a kill.
            keep_tokens: keep token ids and log-probabilities too.

        Raises:
            DataError: the file is damaged.
        """
        self._keep_tokens = keep_tokens
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(
            file, check_same_thread=False, isolation_level=None
        )  # a transaction for each reply
        try:
            self._file.execute(f"PRAGMA synchronous={'FULL' if paid else 'OFF'}")
            self._file.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._file.execute("CREATE TABLE IF NOT EXISTS replies (request BLOB PRIMARY KEY, reply TEXT NOT NULL)")
        except sqlite3.DatabaseError as error:
            raise DataError(f"{file} cannot be read: {error}. Remove it to ask everything in it again.") from None

    def find(self, k: bytes) -> Reply | None:
        """Return a reply that was kept."""
        row = self._file.execute("SELECT reply FROM replies WHERE request = ?", (k,)).fetchone()
        return None if row is None else Reply.from_json(row[0])

    def keep(self, k: bytes, reply: Reply) -> None:
        """Keep a reply; one with an error is left out."""
        if reply.error is None:
            text = (reply if self._keep_tokens else reply.without_tokens()).to_json()
            self._file.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (k, text))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def drop(file: Path) -> None:
    """Remove a file of replies, if it is there, with what a kill left beside it."""
    file.unlink(missing_ok=True)
    file.with_name(f"{file.name}-journal").unlink(missing_ok=True)


class CachedSampler(Streaming):
    """Looks every request up in a file, and gives only the others to an engine.

    Two requests are the same if they have the same weights, messages, sampling parameters and seed; who asks does not
    matter. The file belongs to one engine and model: another engine may round differently.
    """

    def __init__(self, engine: Sampler, file: Path, *, paid: bool = False, keep_tokens: bool = False) -> None:
        """Use `engine` for what is not in `file`, which is made if it is not there; see `Replies`."""
        self.engine = engine
        self._open = partial(Replies, file, paid=paid, keep_tokens=keep_tokens)

    def answer(self, requests: Sequence[Request], on_reply: Answered) -> None:
        """Answer requests; see `maft.samplers.base.Streaming`. Replies with an error are not kept."""
        with closing(self._open()) as kept:
            self._answer(kept, Feed(requests, on_reply))

    def _answer(self, kept: Replies, feed: Feed) -> None:
        keys: dict[int, bytes] = {}
        """Of what the engine is asked, by its numbers."""
        waiting: dict[bytes, list[int]] = {}
        """Our numbers of each key that the engine is asked."""
        count = itertools.count()

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

        if asked := unknown(feed.first):
            answer(self.engine, asked, take)

    def release(self) -> None:
        """Free the engine's memory."""
        self.engine.release()


def key(request: Request) -> bytes:
    """Return what a reply depends on, as a digest."""
    try:
        speaker = weights(request.agent)
    except FileNotFoundError:  # the engine says what is wrong, and there is no reply
        speaker = str(request.agent.adapter)
    asked = request.model_dump_json(exclude={"agent"})
    return hashlib.blake2b(f"{speaker}\n{asked}".encode(), digest_size=16).digest()
