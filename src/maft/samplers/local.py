"""What engines with a model in this process share: one base at a time, requests grouped by what may share a batch.

An engine is a subclass with three methods: `load` and `unload` for the base model, and `run`, which answers jobs. A job
is a request as tokens. `run` takes jobs when it has room for them, and yields each with what was generated as soon as
it has ended. Between a yield and the next `take`, requests that follow from the reply have joined the queue.
"""

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

from maft import models
from maft.config import EngineConfig
from maft.models import memory, shapes
from maft.models.shapes import Shape
from maft.records import Reply, Request
from maft.samplers.base import Answered, Feed, Streaming
from maft.samplers.chat import Chat, Encoded, Generated

ADVICE = (
    "Choose a smaller model, engine.dtype=bfloat16, fewer engine.max_sequences or less engine.cache_gb, or free "
    "memory; `maft plan` tells what a run needs."
)


class Job(NamedTuple):
    """A request as an engine sees it."""

    number: int
    request: Request
    prompt: Encoded

    @property
    def adapter(self) -> Path | None:
        """Folder of the agent's adapter; None is the bare base."""
        return Path(self.request.agent.adapter) if self.request.agent.adapter else None


Take = Callable[[int], list[Job]]
"""Returns jobs that are ready now, at most the given number of them, shortest prompts first."""
Ended = Generator[tuple[Job, Generated], None, None]
Key = tuple[str, str]
"""A base model, and which of its requests may share a batch."""


class Queue:
    """Requests that wait, in groups that may share a batch, shortest first."""

    def __init__(self, feed: Feed, group: Callable[[Request], str]) -> None:
        """Queue the first requests of a feed; `group` names the part of a base's requests that one belongs to."""
        self._feed, self._group = feed, group
        self.waiting: dict[Key, list[tuple[int, int, Request]]] = {}
        self._put(feed.first)

    def largest(self, base: str) -> Key:
        """Return the group with the most requests, among those of base model `base` if there are any."""
        return min(self.waiting, key=lambda key: (key[0] != base, -len(self.waiting[key]), key))

    def requests(self, key: Key) -> list[Request]:
        """Return the requests of a group."""
        return [request for _, _, request in self.waiting[key]]

    def take(self, key: Key, chat: Chat, limit: int) -> list[Job]:
        """Return jobs of a group, see `Take`; a request that does not fit the context is answered at once."""
        jobs: list[Job] = []
        while len(jobs) < limit and (group := self.waiting.get(key)):
            _, number, request = heappop(group)
            if not group:
                del self.waiting[key]
            prompt = chat.encode(request)
            if isinstance(prompt, Reply):
                self._put(self._feed.reply(number, prompt))
            else:
                jobs.append(Job(number, request, prompt))
        return jobs

    def ended(self, job: Job, chat: Chat, generated: Generated) -> None:
        """Pass on the reply to a job, and queue the requests that follow."""
        self._put(self._feed.reply(job.number, chat.reply(job.prompt.token_ids, *generated)))

    def _put(self, numbered: Iterable[tuple[int, Request]]) -> None:
        for number, request in numbered:
            length = sum(len(message.content) for message in request.messages)
            group = self.waiting.setdefault((request.agent.model, self._group(request)), [])
            heappush(group, (length, number, request))


class LocalSampler(Streaming):
    """Groups requests by base and adapter, and has the engine answer all of a group that are ready before the next."""

    default_sequences = 64
    on_tokens: Callable[[int, Sequence[int]], None] | None = None
    """Is given a request's number and new tokens of its reply as they are generated, by engines that can: openvino."""

    def __init__(self, settings: EngineConfig, ledger: memory.Ledger | None = None) -> None:
        self.settings = settings
        self._ledger = ledger or memory.Ledger()
        self.max_sequences = settings.max_sequences or self.default_sequences
        self._base = ""
        """Name of the base model that is loaded."""
        self._chat: Chat | None = None

    def answer(self, requests: Sequence[Request], on_reply: Answered) -> None:
        """Answer requests; see `maft.samplers.base.Streaming`. The largest group that is ready is next."""
        queue = Queue(Feed(requests, on_reply), self.group)
        while queue.waiting:
            key = queue.largest(self._base)
            chat = self.ready(key[0], queue.requests(key))
            with closing(self.run(partial(queue.take, key, chat))) as ended:
                for job, generated in ended:
                    queue.ended(job, chat, generated)

    def release(self) -> None:
        """Free the model; the next `sample` loads it again."""
        self._chat = None
        self._ledger.strike(self)
        self.unload()

    @abstractmethod
    def load(self, model: str, chat: Chat) -> None:
        """Load a base model."""

    @abstractmethod
    def unload(self) -> None:
        """Free the base model and its adapters."""

    @abstractmethod
    def run(self, take: Take) -> Ended:
        """Take jobs and yield each when it has ended, until none is running and `take` has no more."""

    def group(self, request: Request) -> str:
        """Return which requests of a base may share a batch: by default those of one adapter."""
        return request.agent.adapter or ""

    def ready(self, model: str, requests: Sequence[Request] = ()) -> Chat:
        """Load a base model for these requests, unless it is loaded.

        Raises:
            DataError: it cannot be loaded, or does not fit into memory.
        """
        if self._chat is None or self._base != model:
            if self._chat is not None:
                self.release()
            folder = models.resolve(model)
            self._chat = Chat(folder, trust=self.settings.trust_remote_code, today=self.settings.date)
            self._base = ""
            self.check_fit(folder, requests)
            self.load(folder, self._chat)
            self._base = model
        return self._chat

    def check_fit(self, folder: str, requests: Sequence[Request]) -> None:
        """Refuse a model that does not fit into memory before it is loaded, where its size is known.

        Raises:
            TooLarge: weights and key-value cache need more bytes than are free.
        """
        shape = shapes.of_model(folder)
        if shape is not None:
            cache = self.cache_bytes(shape, [request.sampling.max_new_tokens for request in requests])
            parts = {"of weights": shape.weight_bytes(self.settings.dtype), "of key-value cache": cache}
            free, where = self.room()
            memory.check(folder, parts, self._ledger.room(free), where, ADVICE)
            self._ledger.enter(self, sum(parts.values()))

    def cache_bytes(self, shape: Shape, limits: Sequence[int]) -> float:
        """Return the least size of the key-value cache in bytes, for replies with these limits of tokens."""
        longest = sorted(limits, reverse=True)[: self.max_sequences]
        return sum(longest) * shape.kv_bytes_per_token(self.settings.dtype)

    def room(self) -> tuple[float, str]:
        """Return the bytes that are free where the model goes, and the name of that place."""
        return memory.free_ram(), "main memory"
