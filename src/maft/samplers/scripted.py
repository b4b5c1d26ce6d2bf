"""The fake: replies from a script instead of a model, for tests, demonstrations and bug reports."""

from collections import deque
from collections.abc import Callable, Sequence

from maft import seeds
from maft.records import Reply, Request
from maft.samplers.base import Answered, Feed, Streaming


class Scripted(Streaming):
    """Answers with given texts in turn, or with a function of the request; remembers its requests.

    >>> from maft.records import AgentRef, Message, Request, SamplingParams
    >>> sampler = Scripted(["It is 4."])
    >>> ask = Request(agent=AgentRef(role="generator", index=0, model="none"),
    ...               messages=(Message(role="user", content="What is 2 + 2?"),), sampling=SamplingParams(), seed=1)
    >>> sampler.sample([ask])[0].text
    'It is 4.'
    """

    def __init__(self, replies: Sequence[str] | Callable[[Request], str | Reply], *, remember: bool = True) -> None:
        """Take a list of texts, which must not run out, or a function that returns a text or a whole reply."""
        texts = None if callable(replies) else iter(replies)
        self._say = replies if callable(replies) else lambda _: next(texts)  # type: ignore[arg-type]
        self._remember = remember
        self.history: list[Request] = []

    def answer(self, requests: Sequence[Request], on_reply: Answered) -> None:
        """Answer each request in turn; see `maft.samplers.base.Streaming`."""
        feed = Feed(requests, on_reply)
        waiting = deque(feed.first)
        while waiting:
            number, request = waiting.popleft()
            waiting += feed.reply(number, self._answer(request))

    def release(self) -> None:
        """Do nothing: there is no model."""

    def _answer(self, request: Request) -> Reply:
        if self._remember:
            self.history.append(request)
        try:
            reply = self._say(request)
        except StopIteration:
            raise AssertionError(f"the script ran out at request {len(self.history)}") from None
        if isinstance(reply, Reply):
            return reply
        prompt_tokens = sum(len(message.content.split()) for message in request.messages)
        completion_tokens = len(reply.split())
        return Reply(text=reply, finish_reason="stop", prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def guess(request: Request) -> str:
    r"""Answer any question with one of three small numbers, drawn by the request's seed: society without a model."""
    number = seeds.rng("guess", request.seed).choice([0, 0, 1, 2])
    return f"I guess. \\boxed{{{number}}}"
