"""Engines on the nodes of a Ray cluster, in place of one in this process.

Each worker holds an engine that answers its share of the requests that are ready. Shares are equal in number. Agents
stay together, since changing weights costs an engine time; of one agent, or of an untrained society, each share has
whole questions, whose requests begin alike and share an engine's prefix cache.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

from maft.cluster.pool import Pool, on_worker, reported
from maft.cluster.storage import Place
from maft.config import RunConfig
from maft.records import Reply, Request
from maft.samplers.base import Answered, Feed, Sampler, Streaming, answer

ADVICE = (
    "If memory is short: fewer engine.max_sequences, less engine.cache_gb, engine.dtype=bfloat16, or fewer workers on "
    "a node (more cluster.cpus_per_worker, or cluster.memory_gb_per_worker set)."
)


class RaySampler(Streaming):
    """Divides requests among as many engines as the cluster has room for."""

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
                self._place.publish(agent.model, agent.adapter)
            parts = divide([request for _, request in numbered], num_workers)
            return [[numbered[position] for position in part] for part in parts]

        def take(_: int, answers: list[tuple[int, Reply]]) -> None:
            for number, reply in answers:
                if number in asked:  # a share that starts again after a death yields its answers again
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

        def work(report: Callable[[tuple[int, Reply]], None]) -> None:
            def take(place: int, reply: Reply) -> Sequence[Request]:
                report((share[place][0], reply))
                return ()

            answer(self.engine, requests, take)

        return reported(work)


def divide(requests: Sequence[Request], num_shares: int) -> list[list[int]]:
    """Return the positions of each share; sizes differ by at most one.

    Neighbouring questions go to different shares, since a data set may have its long ones together.
    """
    questions: dict[str, int] = {}

    def order(position: int) -> tuple[str, str, int, int]:
        request = requests[position]
        text = next((message.content for message in request.messages if message.role == "user"), "")
        question = questions.setdefault(text, len(questions))
        return (request.agent.model, request.agent.adapter or "", question % num_shares, position)

    ordered = sorted(range(len(requests)), key=order)
    ends = [len(ordered) * n // num_shares for n in range(num_shares + 1)]
    shares = [ordered[start:end] for start, end in pairwise(ends)]
    return [share for share in shares if share]
