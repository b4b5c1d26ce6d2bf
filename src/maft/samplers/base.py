"""The seam to language models: requests in, replies out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from maft.records import Reply, Request

OnReply = Callable[[Reply], None]
Answered = Callable[[int, Reply], Sequence[Request]]
"""Takes the number of a request and its reply; returns the requests that follow from it."""


class Sampler(Protocol):
    """Answers requests of any mix of agents.

    A request means the same to every engine: the model's own chat template without a second BOS, the adapter of
    `request.agent` and no other, `request.sampling`, and a random stream seeded by `request.seed`.
    """

    def sample(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """Return one reply per request, in order; call `on_reply` with each as soon as it is complete.

        A request that cannot be answered, such as one longer than the context, gets a reply with an `error`.

        Raises:
            maft.errors.DataError: a model or an adapter cannot be loaded.
        """
        ...

    def release(self) -> None:
        """Free the memory of the model; the next `sample` loads it again."""
        ...


class Streaming(ABC):
    """A sampler that takes further requests while it answers."""

    @abstractmethod
    def answer(self, requests: Sequence[Request], on_reply: Answered) -> None:
        """Answer requests, and those that `on_reply` returns, until none is left; see `Sampler`.

        Requests are numbered from 0 in the order of `requests`; those that `on_reply(number, reply)` returns get the
        next numbers. It is called once per request, as soon as the reply is complete, and never concurrently.
        """

    @abstractmethod
    def release(self) -> None:
        """Free the memory of the model; the next call loads it again."""

    def sample(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """Answer requests; see `Sampler`."""
        replies: dict[int, Reply] = {}

        def take(number: int, reply: Reply) -> Sequence[Request]:
            replies[number] = reply
            if on_reply:
                on_reply(reply)
            return ()

        self.answer(requests, take)
        return [replies[number] for number in range(len(requests))]


class Feed:
    """Numbers the requests of one call of `answer`."""

    def __init__(self, requests: Iterable[Request], on_reply: Answered) -> None:
        self._on_reply = on_reply
        self._count = 0
        self.first = self._number(requests)

    def reply(self, number: int, reply: Reply) -> list[tuple[int, Request]]:
        """Pass a reply on; return the requests that follow, with their numbers."""
        return self._number(self._on_reply(number, reply))

    def _number(self, requests: Iterable[Request]) -> list[tuple[int, Request]]:
        numbered = list(enumerate(requests, self._count))
        self._count += len(numbered)
        return numbered


def answer(sampler: Sampler, requests: Sequence[Request], on_reply: Answered) -> None:
    """Answer requests and those that follow, see `Streaming.answer`; a plain `Sampler` works batch by batch."""
    if isinstance(sampler, Streaming):
        sampler.answer(requests, on_reply)
        return
    feed = Feed(requests, on_reply)
    ready = feed.first
    while ready:
        replies = sampler.sample([request for _, request in ready])
        assert len(replies) == len(ready), f"the sampler gave {len(replies)} replies to {len(ready)} requests"
        pairs = zip(ready, replies, strict=True)
        ready = [new for (number, _), reply in pairs for new in feed.reply(number, reply)]
