"""The seam to language models: requests in, replies out."""

from collections.abc import Callable, Sequence
from typing import Protocol

from maft.records import Reply, Request


class Sampler(Protocol):
    """Answers requests of any mix of agents.

    The same request means the same to every engine: the model's own chat template without a doubled BOS, the adapter
    of `request.agent` and no other, `request.sampling`, and a random stream of its own from `request.seed`.
    """

    def sample(self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None) -> list[Reply]:
        """Return one reply for each request, in their order, and report each to `on_reply` once it is there.

        A request that cannot be answered, such as one longer than the context, gives a reply with an `error`.

        Raises:
            maft.errors.DataError: a model or an adapter cannot be loaded.
        """
        ...

    def release(self) -> None:
        """Free the memory of the model; the next `sample` loads it again."""
        ...
