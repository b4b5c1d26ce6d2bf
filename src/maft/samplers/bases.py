"""Several base models: one engine per base, loaded at the same time as far as memory allows."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from maft.errors import TooLarge
from maft.records import Reply, Request
from maft.samplers.base import Answered, Feed, Sampler, Streaming, answer


class Bases(Streaming):
    """Gives each request to the engine of its base model; all agents of one base share an engine.

    Engines stay loaded between calls. A model that does not fit beside the others has them freed; they are loaded
    again at their next request.
    """

    def __init__(self, make: Callable[[int], Sampler], max_engines: int) -> None:
        """Load nothing yet.

        Args:
            make: makes an engine; its argument is the number of engines that share the memory.
            max_engines: maximum number of engines loaded at the same time.
        """
        self._make, self._max_engines = make, max_engines
        self._engines: dict[str, Sampler] = {}
        """By base model; the last one was used last."""

    def answer(self, requests: Sequence[Request], on_reply: Answered) -> None:
        """Answer requests; see `maft.samplers.base.Streaming`. Loaded bases come first, then the largest group."""
        feed = Feed(requests, on_reply)
        waiting: dict[str, dict[int, Request]] = defaultdict(dict)
        for number, request in feed.first:
            waiting[request.agent.model][number] = request
        while waiting:
            model = min(waiting, key=lambda model: (model not in self._engines, -len(waiting[model]), model))
            engine = self._engines.pop(model, None) or self._make(self._max_engines)
            self._free(list(self._engines)[: max(0, len(self._engines) + 1 - self._max_engines)])
            self._engines[model] = engine
            try:
                _relay(engine, model, waiting, feed)
            except TooLarge:
                if len(self._engines) > 1:
                    self._free([other for other in self._engines if other != model])
                elif self._max_engines > 1:  # too large for its share of the memory: use one engine at a time from now
                    self.release()
                    self._max_engines = 1
                else:
                    raise

    def release(self) -> None:
        """Free all models; the next `sample` loads them again."""
        self._free(list(self._engines))

    def _free(self, models: Sequence[str]) -> None:
        for model in models:
            self._engines.pop(model).release()


def _relay(engine: Sampler, model: str, waiting: dict[str, dict[int, Request]], feed: Feed) -> None:
    """Have an engine answer all requests of its base, and those of them that follow; others are left waiting."""
    numbers = list(waiting[model])

    def take(place: int, reply: Reply) -> list[Request]:
        number = numbers[place]
        del waiting[model][number]
        own = []
        for new, request in feed.reply(number, reply):
            waiting[request.agent.model][new] = request
            if request.agent.model == model:
                numbers.append(new)
                own.append(request)
        return own

    answer(engine, list(waiting[model].values()), take)
    del waiting[model]
