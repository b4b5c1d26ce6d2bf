"""What engines with a model in this process share: one base at a time, requests grouped by adapter."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from maft import models
from maft.config import EngineConfig
from maft.models import memory, shapes
from maft.models.shapes import Shape
from maft.records import Reply, Request, SamplingParams
from maft.samplers.chat import Chat, Encoded, Generated

OnReply = Callable[[Reply], None]

ADVICE = (
    "Choose a smaller model, engine.dtype=bfloat16, fewer engine.max_sequences or less engine.cache_gb, or free "
    "memory; `maft plan` tells what a run needs."
)


class LocalSampler(ABC):
    """Groups requests by base and adapter, and gives each group to the engine in chunks."""

    default_sequences = 64
    continuous = False
    """Whether the engine starts the next request as soon as one ends; if so, it gets the whole group at once."""

    def __init__(self, settings: EngineConfig, ledger: memory.Ledger | None = None) -> None:
        """Load nothing yet; engines side by side have one ledger."""
        self.settings = settings
        self._ledger = ledger or memory.Ledger()
        self.max_sequences = settings.max_sequences or self.default_sequences
        self._loaded: str | None = None
        self._chat: Chat | None = None

    def sample(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """Answer requests; see `maft.samplers.base.Sampler`."""
        replies: dict[int, Reply] = {}

        def answer(number: int, reply: Reply) -> None:
            replies[number] = reply
            if on_reply:
                on_reply(reply)

        groups: dict[tuple[str, str], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault((request.agent.model, request.agent.adapter or ""), []).append(number)
        for (model, adapter), numbers in sorted(groups.items()):
            chat = self._ready(model, [requests[number].sampling.max_new_tokens for number in numbers])
            encoded = {number: chat.encode(requests[number]) for number in numbers}
            runnable = [(number, prompt) for number, prompt in encoded.items() if isinstance(prompt, Encoded)]
            for number, refused in encoded.items():
                if isinstance(refused, Reply):
                    answer(number, refused)
            for chunk in self._chunks(runnable):
                generated = self.generate(
                    [prompt for _, prompt in chunk],
                    [requests[number].sampling for number, _ in chunk],
                    [requests[number].seed for number, _ in chunk],
                    Path(adapter) if adapter else None,
                )
                for made in generated:
                    number, prompt = chunk[made.place]
                    answer(number, chat.reply(prompt.token_ids, made.token_ids, made.logprobs))
        return [replies[number] for number in range(len(requests))]

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
    def generate(
        self, prompts: Sequence[Encoded], sampling: Sequence[SamplingParams], seeds: Sequence[int], adapter: Path | None
    ) -> Iterator[Generated]:
        """Yield what is generated for each prompt as soon as it has ended.

        All are generated with one adapter, or the bare base.
        """

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
            self._loaded = folder
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

    def _chunks(self, runnable: list[tuple[int, Encoded]]) -> list[list[tuple[int, Encoded]]]:
        # Like lengths together: a chunk lasts as long as its longest member.
        runnable = sorted(runnable, key=lambda item: (len(item[1].token_ids), item[0]))
        size = max(1, len(runnable)) if self.continuous else self.max_sequences
        return [runnable[start : start + size] for start in range(0, len(runnable), size)]
