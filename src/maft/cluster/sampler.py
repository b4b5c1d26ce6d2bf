"""Many engines on the nodes of a Ray cluster, in the place of one.

Each worker holds an engine that answers its share of the requests of a step. Shares are equal in number. Agents stay
together, since changing weights costs an engine time; of one agent, or of a society that is untrained, each share has
whole questions, whose requests begin alike and share an engine's prefix cache.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

from maft.cluster.pool import Pool, on_worker
from maft.cluster.storage import Place
from maft.config import RunConfig
from maft.records import Reply, Request
from maft.samplers.base import Sampler

ADVICE = (
    "If memory is short: fewer engine.max_sequences, less engine.cache_gb, engine.dtype=bfloat16, or fewer workers on "
    "a node (more cluster.cpus_per_worker, or cluster.memory_gb_per_worker set)."
)


class RaySampler:
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

    def sample(self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None) -> list[Reply]:
        """Answer requests; see `maft.samplers.base.Sampler`."""
        if not requests:
            return []
        for agent in {request.agent for request in requests}:
            self._place.publish_weights(agent)
        shares = divide(requests, self._pool.size())
        replies: dict[int, Reply] = {}

        def take(number: int, answers: list[Reply]) -> None:
            for position, reply in zip(shares[number], answers, strict=True):
                replies[position] = reply
                if on_reply:
                    on_reply(reply)

        self._pool.run([[requests[position] for position in share] for share in shares], take)
        return [replies[position] for position in range(len(requests))]

    def release(self) -> None:
        """End the workers, so that the cluster is free; the next `sample` starts them again."""
        self._pool.close()


class _Answers:
    """The work of a worker: a share of requests to their replies."""

    def __init__(self, engine: Callable[[], Sampler], place: Place) -> None:
        self.engine, self.place = engine(), place

    def __call__(self, requests: Sequence[Request]) -> Iterator[list[Reply]]:
        local = {agent: self.place.here(agent) for agent in {request.agent for request in requests}}
        yield self.engine.sample([one.model_copy(update={"agent": local[one.agent]}) for one in requests])


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
