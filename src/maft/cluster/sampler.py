"""Many engines on the nodes of a Ray cluster, in the place of one.

Each worker holds an engine that answers its share of the requests that are ready. Shares are equal in number. Agents
stay together, since changing weights costs an engine time; of one agent, or of a society that is untrained, each share
has whole questions, whose requests begin alike and share an engine's prefix cache.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from queue import SimpleQueue
from threading import Thread

from maft.cluster.pool import Pool, on_worker
from maft.cluster.storage import Place
from maft.config import RunConfig
from maft.records import Reply, Request
from maft.samplers.base import Answered, Feed, Sampler, Streaming, answer

ADVICE = (
    "If memory is short: fewer engine.max_sequences, less engine.cache_gb, engine.dtype=bfloat16, or fewer workers on "
    "a node (more cluster.cpus_per_worker, or cluster.memory_gb_per_worker set)."
)


class RaySampler(Streaming):
    """Divides requests among engines; as many as the cluster has room for."""

    def __init__(self, config: RunConfig, engine: Callable[[RunConfig], Sampler]) -> None:
        """Use workers that make their engine by `engine`, of a config that fits what a worker has."""
        self._place = Place.of(config)
        self._pool = Pool(
            config.cluster,
            config.vllm.tensor_parallel_size,
            lambda needs: partial(_Answers, partial(engine, on_worker(config, needs)), self._place),
            ADVICE,
        )

    def answer(self, requests: Sequence[Request], on_reply: Answered) -> None:
        """Answer requests; see `maft.samplers.base.Streaming`. An idle worker gets its share of what is ready."""
        feed = Feed(requests, on_reply)
        ready, asked = dict(feed.first), set[int]()

        def shares(num_workers: int) -> list[list[tuple[int, Request]]]:
            numbered = list(ready.items())
            asked.update(ready)
            ready.clear()
            for agent in {request.agent for _, request in numbered}:
                self._place.publish_weights(agent)
            parts = divide([request for _, request in numbered], num_workers)
            return [[numbered[position] for position in part] for part in parts]

        def take(_: int, answers: list[tuple[int, Reply]]) -> None:
            for number, reply in answers:
                if number in asked:  # a share that begins again, since its worker died, has answers once more
                    asked.remove(number)
                    ready.update(feed.reply(number, reply))

        if ready:
            self._pool.run(shares(self._pool.size()), take, shares)

    def release(self) -> None:
        """End the workers, so that the cluster is free; the next `sample` starts them again."""
        self._pool.close()


class _Answers:
    """The work of a worker: a share of requests to their replies."""

    def __init__(self, engine: Callable[[], Sampler], place: Place) -> None:
        self.engine, self.place = engine(), place

    def __call__(self, share: Sequence[tuple[int, Request]]) -> Iterator[list[tuple[int, Reply]]]:
        local = {agent: self.place.here(agent) for agent in {request.agent for _, request in share}}
        requests = [request.model_copy(update={"agent": local[request.agent]}) for _, request in share]
        for replies in _as_they_come(self.engine, requests):
            yield [(share[place][0], reply) for place, reply in replies]


def _as_they_come(engine: Sampler, requests: Sequence[Request]) -> Iterator[list[tuple[int, Reply]]]:
    """Yield the replies that are there, with their places, as soon as there are any."""
    told: SimpleQueue[tuple[int, Reply] | BaseException | None] = SimpleQueue()

    def take(place: int, reply: Reply) -> Sequence[Request]:
        told.put((place, reply))
        return ()

    def work() -> None:
        try:
            answer(engine, requests, take)
            told.put(None)
        except BaseException as error:
            told.put(error)

    Thread(target=work, daemon=True).start()
    while True:
        replies = [told.get()]
        while not told.empty():
            replies.append(told.get())
        if there := [one for one in replies if isinstance(one, tuple)]:
            yield there
        if isinstance(replies[-1], BaseException):
            raise replies[-1]
        if replies[-1] is None:
            return


def divide(requests: Sequence[Request], num_shares: int) -> list[list[int]]:
    """Return the positions of each share, of equal sizes up to one.

    Questions that are neighbours go to different shares, for a data set may have its long ones together.
    """
    questions: dict[str, int] = {}

    def order(position: int) -> tuple[str, str, int, int]:
        request = requests[position]
        question = questions.setdefault(_question(request), len(questions))
        return (request.agent.model, request.agent.adapter or "", question % num_shares, position)

    ordered = sorted(range(len(requests)), key=order)
    ends = [len(ordered) * n // num_shares for n in range(num_shares + 1)]
    shares = [ordered[start:end] for start, end in pairwise(ends)]
    return [share for share in shares if share]


def _question(request: Request) -> str:
    return next((message.content for message in request.messages if message.role == "user"), "")
