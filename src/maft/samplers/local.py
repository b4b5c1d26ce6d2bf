"""What engines with a model in this process share: one base at a time, requests grouped by what may share a batch.

An engine is a subclass with three methods: `load` and `unload` for the base model, and `run`, which answers jobs. A job
is a request as tokens. `run` takes jobs when it has room for them, and yields each with what was generated as soon as
it has ended. Between a yield and the next `take`, what follows from the reply has joined the queue.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
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
"""Returns jobs that are ready now, at most the given number of them, those with the shortest prompts first."""
Key = tuple[str, str]
"""A base model, and which of its requests may share a batch."""


class Queue:
    """Requests that wait, in groups that may share a batch."""

    def __init__(self, feed: Feed, group: Callable[[Request], str]) -> None:
        """Let the first requests of a feed wait; `group` names the part of a base's requests that one belongs to."""
        self._feed, self._group = feed, group
        self.waiting: dict[Key, list[tuple[int, Request]]] = {}
        self.put(feed.first)

    def largest(self, base: str) -> Key:
        """Return the group with the most requests, among those of base model `base` if there are any."""
        return min(self.waiting, key=lambda key: (key[0] != base, -len(self.waiting[key]), key))

    def put(self, numbered: Iterable[tuple[int, Request]]) -> None:
        """Let requests wait."""
        for number, request in numbered:
            self.waiting.setdefault((request.agent.model, self._group(request)), []).append((number, request))

    def reply(self, number: int, reply: Reply) -> None:
        """Tell of a reply, and let what follows from it wait."""
        self.put(self._feed.reply(number, reply))


class Jobs:
    """The requests of one group as jobs, shortest prompts first."""

    def __init__(self, queue: Queue, key: Key, chat: Chat) -> None:
        """Take what waits in a group, now and later."""
        self._queue, self._key, self._chat = queue, key, chat
        self._ready: list[tuple[int, int, Request]] = []

    def take(self, limit: int) -> list[Job]:
        """Return jobs, see `Take`; what does not fit the context is answered at once."""
        jobs: list[Job] = []
        while len(jobs) < limit:
            for number, request in self._queue.waiting.pop(self._key, ()):
                heappush(self._ready, (sum(len(message.content) for message in request.messages), number, request))
            if not self._ready:
                break
            _, number, request = heappop(self._ready)
            prompt = self._chat.encode(request)
            if isinstance(prompt, Reply):
                self._queue.reply(number, prompt)
            else:
                jobs.append(Job(number, request, prompt))
        return jobs

    def ended(self, job: Job, generated: Generated) -> None:
        """Tell of what was generated for a job."""
        self._queue.reply(job.number, self._chat.reply(job.prompt.token_ids, generated.token_ids, generated.logprobs))


class LocalSampler(Streaming):
    """Groups requests by base and adapter, and has the engine answer all of a group that are ready before the next."""

    default_sequences = 64
    mixes_agents = False
    """Whether jobs with different adapters may share a batch; if not, `take` returns those of one agent."""

    def __init__(self, settings: EngineConfig, ledger: memory.Ledger | None = None) -> None:
        """Load nothing yet; engines side by side have one ledger."""
        self.settings = settings
        self._ledger = ledger or memory.Ledger()
        self.max_sequences = settings.max_sequences or self.default_sequences
        self._loaded: str | None = None
        self._base = ""
        """Name of the base model that is loaded."""
        self._chat: Chat | None = None

    def answer(self, requests: Sequence[Request], on_reply: Answered) -> None:
        """Answer requests; see `maft.samplers.base.Streaming`. The largest group that is ready is next."""
        queue = Queue(Feed(requests, on_reply), lambda r: "" if self.mixes_agents else r.agent.adapter or "")
        while queue.waiting:
            key = queue.largest(self._base)
            chat = self._ready(key[0], [request.sampling.max_new_tokens for _, request in queue.waiting[key]])
            jobs = Jobs(queue, key, chat)
            for job, generated in self.run(jobs.take):
                jobs.ended(job, generated)

    def release(self) -> None:
        """Free the model; the next `sample` loads it again."""
        self._loaded = self._chat = None
        self._ledger.strike(self)
        self.unload()

    @abstractmethod
    def load(self, model: str, chat: Chat) -> None:
        """Load a base model."""

    @abstractmethod
    def unload(self) -> None:
        """Free the base model and its adapters."""

    @abstractmethod
    def run(self, take: Take) -> Iterator[tuple[Job, Generated]]:
        """Take jobs and yield each when it has ended, until none is running and `take` has no more."""

    def cache_bytes(self, shape: Shape, limits: Sequence[int]) -> float:
        """Return what the key-value cache will take at least, for replies with these limits of tokens."""
        longest = sorted(limits, reverse=True)[: self.max_sequences]
        return sum(longest) * shape.kv_bytes_per_token(self.settings.dtype)

    def room(self) -> tuple[float, str]:
        """Return the bytes that are free where the model goes, and the name of that place."""
        return memory.free_ram(), "main memory"

    def _ready(self, model: str, limits: Sequence[int] = ()) -> Chat:
        folder = models.resolve(model)
        if self._chat is None or self._loaded != folder:
            self.release()
            self._chat = Chat(folder, trust=self.settings.trust_remote_code, today=self.settings.date)
            self._refuse_what_does_not_fit(folder, limits)
            self.load(folder, self._chat)
            self._loaded, self._base = folder, model
        return self._chat

    def _refuse_what_does_not_fit(self, folder: str, limits: Sequence[int]) -> None:
        """Say before loading that there is too little memory, where the size of the model is known."""
        shape = shapes.of_model(folder)
        if shape is not None:
            parts = {
                "of weights": shape.weight_bytes(self.settings.dtype),
                "of key-value cache": self.cache_bytes(shape, limits),
            }
            free, where = self.room()
            memory.check(folder, parts, self._ledger.room(free), where, ADVICE)
            self._ledger.enter(self, sum(parts.values()))


class BatchSampler(LocalSampler):
    """An engine that answers a batch at a time: the largest that is ready, with prompts of like lengths together."""

    def run(self, take: Take) -> Iterator[tuple[Job, Generated]]:
        """Take batch after batch."""
        while batch := take(self.max_sequences):
            for generated in self.generate(batch):
                yield batch[generated.place], generated

    @abstractmethod
    def generate(self, jobs: Sequence[Job]) -> Iterator[Generated]:
        """Yield what is generated for each job, all of them by one agent."""
