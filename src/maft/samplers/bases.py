"""Several base models: an engine for each, side by side as far as memory allows."""

from collections.abc import Callable, Sequence

from maft.errors import TooLarge
from maft.records import Reply, Request
from maft.samplers.base import Answered, Feed, Sampler, Streaming, answer


class Bases(Streaming):
    """Gives each request to the engine of its base model; all agents of one base share an engine.

    Engines stay loaded from one step of the debates to the next. A model that does not fit beside the others has them
    freed; they are loaded again when their agents speak.
    """

    def __init__(self, make: Callable[[int], Sampler], most: int) -> None:
        """Load nothing yet.

        Args:
            make: makes an engine that stands beside others, so many in all.
            most: engines at a time.
        """
        self._make = make
        self._most = most
        self._engines: dict[str, Sampler] = {}
        """By base model, the one that spoke last at the end."""

    def answer(self, requests: Sequence[Request], on_reply: Answered) -> None:
        """Answer requests; see `maft.samplers.base.Streaming`. Loaded bases come first, then the largest group."""
        feed = Feed(requests, on_reply)
        waiting: dict[str, dict[int, Request]] = {}
        _put(waiting, feed.first)
        while waiting:
            model = min(waiting, key=lambda model: (model not in self._engines, -len(waiting[model]), model))
            self._answer(model, waiting, feed)

    def release(self) -> None:
        """Free all models; the next `sample` loads them again."""
        self._free(list(self._engines))

    def _answer(self, model: str, waiting: dict[str, dict[int, Request]], feed: Feed) -> None:
        """Answer all that waits for one base, and what follows for it."""
        engine = self._engines.pop(model, None) or self._make(self._most)
        self._free(list(self._engines)[: max(0, len(self._engines) + 1 - self._most)])
        self._engines[model] = engine
        try:
            return _relay(engine, model, waiting, feed)
        except TooLarge:
            self._free([other for other in self._engines if other != model])
        try:
            return _relay(engine, model, waiting, feed)
        except TooLarge:  # for its part of the memory, perhaps: from now on one base has all of it at a time
            self._free([model])
            self._most, self._engines[model] = 1, self._make(1)
        return _relay(self._engines[model], model, waiting, feed)

    def _free(self, models: Sequence[str]) -> None:
        for model in models:
            self._engines.pop(model).release()


def _relay(engine: Sampler, model: str, waiting: dict[str, dict[int, Request]], feed: Feed) -> None:
    """Have an engine answer what waits for it, in its own numbers; what follows for another base waits."""
    numbers = list(waiting[model])

    def take(place: int, reply: Reply) -> list[Request]:
        number = numbers[place]
        del waiting[model][number]
        new = feed.reply(number, reply)
        _put(waiting, new)
        own = [number for number, request in new if request.agent.model == model]
        numbers.extend(own)
        return [waiting[model][number] for number in own]

    answer(engine, list(waiting[model].values()), take)
    del waiting[model]


def _put(waiting: dict[str, dict[int, Request]], numbered: Sequence[tuple[int, Request]]) -> None:
    for number, request in numbered:
        waiting.setdefault(request.agent.model, {})[number] = request
