"""Several base models: an engine for each, side by side as far as memory allows."""

from collections.abc import Callable, Sequence

from maft.errors import TooLarge
from maft.records import Reply, Request
from maft.samplers.base import Sampler

OnReply = Callable[[Reply], None]


class Bases:
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

    def sample(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """Answer requests; see `maft.samplers.base.Sampler`."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(request.agent.model, []).append(number)
        replies: dict[int, Reply] = {}
        for model, numbers in sorted(groups.items(), key=lambda group: (group[0] not in self._engines, group[0])):
            answers = self._answer(model, [requests[number] for number in numbers], on_reply)
            replies |= zip(numbers, answers, strict=True)
        return [replies[number] for number in range(len(requests))]

    def release(self) -> None:
        """Free all models; the next `sample` loads them again."""
        self._free(list(self._engines))

    def _answer(self, model: str, requests: Sequence[Request], on_reply: OnReply | None) -> list[Reply]:
        engine = self._engines.pop(model, None) or self._make(self._most)
        self._free(list(self._engines)[: max(0, len(self._engines) + 1 - self._most)])
        self._engines[model] = engine
        try:
            return engine.sample(requests, on_reply)
        except TooLarge:
            self._free([other for other in self._engines if other != model])
        try:
            return engine.sample(requests, on_reply)
        except TooLarge:  # for its part of the memory, perhaps: from now on one base has all of it at a time
            self._free([model])
            self._most, self._engines[model] = 1, self._make(1)
        return self._engines[model].sample(requests, on_reply)

    def _free(self, models: Sequence[str]) -> None:
        for model in models:
            self._engines.pop(model).release()
