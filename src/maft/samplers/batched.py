"""The transformers engine on CUDA: agents of one base in one batch, replies in slots (`maft.samplers.slots`).

Models and adapters that `maft.samplers.fused` does not know, and other devices, are left to plain transformers. So is
a model whose agents do not pass the probe: before an adapter speaks here for the first time, it writes a few likeliest
tokens, which plain transformers with PEFT must find likely too.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maft import models
from maft.errors import TooLarge
from maft.models.adapters import WEIGHTS, uniform
from maft.models.shapes import Shape
from maft.records import Reply, Request, SamplingParams
from maft.samplers.chat import Chat, Encoded
from maft.samplers.local import ADVICE, OnReply
from maft.samplers.transformers import Transformers, device

log = logging.getLogger(__name__)

MAX_SLOTS = 1024
PROBE_TOKENS = 8
PROBE_GAP = 1.0
"""Logits by which a token of the probe may be less likely than the likeliest: bfloat16 rounds to about 0.2."""


class Batched(Transformers):
    """Samples with transformers' models; with its own batches where that is faster."""

    devices: tuple[str, ...] = ("cuda",)
    """Where slots are used."""
    _fused: Any = None
    _slots: Any = None

    def load(self, model: str, chat: Chat) -> None:
        """Load the base model."""
        super().load(model, chat)
        self._agents: list[Path] = []
        self._tensors: dict[Path, Any] = {}
        self._probed: set[Path] = set()
        self._max_slots = self.settings.max_sequences or MAX_SLOTS
        if device() in self.devices:
            from maft.samplers import fused

            if fused.supports(self._model):
                self._fused = fused.Fused(self._model, _operations(self._model))

    def unload(self) -> None:
        """Drop the model, its adapters and the cache."""
        self._fused = self._slots = None
        super().unload()

    def cache_bytes(self, shape: Shape, limits: Sequence[int]) -> float:
        """Return the key-value cache of the fewest slots that are of use."""
        if device() not in self.devices:
            return super().cache_bytes(shape, limits)
        return 8 * max(limits, default=0) * shape.kv_bytes_per_token(self.settings.dtype)

    def sample(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """Answer requests; see `maft.samplers.base.Sampler`."""
        replies: dict[int, Reply] = {}

        def answer(number: int, reply: Reply) -> None:
            replies[number] = reply
            if on_reply:
                on_reply(reply)

        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(request.agent.model, []).append(number)
        for model, numbers in sorted(groups.items()):
            chat = self._ready(model, [requests[number].sampling.max_new_tokens for number in numbers])
            adapters = sorted({Path(requests[n].agent.adapter or "") for n in numbers if requests[n].agent.adapter})
            if self._fused is None or not self._knows(adapters):
                replies |= zip(numbers, super().sample([requests[n] for n in numbers], on_reply), strict=True)
                continue
            encoded = {number: chat.encode(requests[number]) for number in numbers}
            prompts: dict[int, Encoded] = {}
            for number, prompt in encoded.items():
                if isinstance(prompt, Reply):
                    answer(number, prompt)
                else:
                    prompts[number] = prompt
            if not self._speak({n: requests[n] for n in prompts}, prompts, adapters):
                replies |= zip(numbers, super().sample([requests[n] for n in numbers], on_reply), strict=True)
                continue
            for number, ids, logprobs in self._run(self._jobs(requests, prompts)):
                answer(number, chat.reply(prompts[number].token_ids, ids, logprobs))
        return [replies[number] for number in range(len(requests))]

    def _jobs(self, requests: Any, prompts: dict[int, Encoded]) -> list[Any]:
        from maft.samplers.slots import Job

        numbers = {adapter: number for number, adapter in enumerate(self._agents)}
        jobs = []
        for number, prompt in prompts.items():
            request = requests[number]
            agent = numbers[Path(request.agent.adapter)] if request.agent.adapter else -1
            jobs.append(Job(number, prompt.token_ids, prompt.max_new_tokens, request.sampling, request.seed, agent))
        return jobs

    def _run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, list[int], list[float]]]:
        """Make the replies; where memory runs out, in half as many slots."""
        import torch

        waiting = {job.number: job for job in jobs}
        while waiting:
            try:
                self._make_room(list(waiting.values()))
                for made in self._slots.run(deque(waiting.values())):
                    del waiting[made[0]]
                    yield made
            except torch.OutOfMemoryError:
                count = self._slots.count if self._slots else self._max_slots
                self._slots = None
                torch.cuda.empty_cache()
                self._max_slots = min(count, self._max_slots) // 2
                if not self._max_slots:
                    raise TooLarge(f"model {self._folder} leaves no memory for one reply. {ADVICE}") from None
                log.info("GPU memory ran out: from now on at most %d replies at a time.", self._max_slots)

    def _make_room(self, jobs: Sequence[Any]) -> None:
        """Have slots for these jobs: as many, and as long, as they need and memory allows."""
        import torch

        from maft.samplers.slots import SIZES, Slots

        length = -(-max(len(job.token_ids) + job.max_new_tokens for job in jobs) // 128) * 128
        steps = -(-max(job.max_new_tokens for job in jobs) // 64) * 64
        count = next((size for size in SIZES if size >= len(jobs)), SIZES[-1])
        old = self._slots
        if old and old.length >= length and old.steps >= steps and old.count >= min(count, self._max_slots):
            return
        if old:
            length, steps, count = max(length, old.length), max(steps, old.steps), max(count, old.count)
            self._slots = old = None
        count = min(count, self._max_slots)
        if device() == "cuda":
            torch.cuda.empty_cache()
            fused = self._fused
            like = fused.model.model.embed_tokens.weight
            one = 2 * len(fused.layers) * fused.kv_heads * fused.width * like.element_size() * length
            free = 0.85 * torch.cuda.mem_get_info()[0]
            count = max(1, min(count, int(free / (one + 8 * like.shape[0]))))
        self._slots = Slots(self._fused, self._stop_ids, count, length, steps)

    def _knows(self, adapters: Sequence[Path]) -> bool:
        """Say whether all adapters are such as can be mixed."""
        from safetensors.torch import load_file

        from maft.samplers.fused import Adapter

        known = {f"{name}.lora_{side}.weight" for _, linears in self._fused.layers for linear in linears
                 for name in linear.names for side in "AB"}  # fmt: skip
        for adapter in adapters:
            if adapter not in self._tensors:
                scales = models.check_adapter(adapter, self._folder, trust=self.settings.trust_remote_code)
                folder, scale = uniform(adapter, scales)
                tensors = load_file(folder / WEIGHTS, device=str(self._model.device))
                self._tensors[adapter] = Adapter(tensors, scale) if known >= set(tensors) else None
        return all(self._tensors[adapter] for adapter in adapters)

    def _speak(self, requests: dict[int, Request], prompts: dict[int, Encoded], adapters: Sequence[Path]) -> bool:
        """Have these adapters in the batch; return whether each new one writes what plain transformers finds likely."""
        if not set(adapters) <= set(self._agents):
            self._agents = list(adapters)
            moved = self._fused.adapt([self._tensors[adapter] for adapter in adapters])
            if self._slots and moved:
                self._slots.drop_graphs()
        new = [adapter for adapter in adapters if adapter not in self._probed]
        if not new:
            return True
        first = {str(request.agent.adapter): number for number, request in reversed(requests.items())}
        numbers = [first[str(adapter)] for adapter in new if str(adapter) in first]
        limit = min(PROBE_TOKENS, *(prompts[number].max_new_tokens for number in numbers))
        greedy = {n: requests[n].model_copy(update={"sampling": SamplingParams(temperature=0, max_new_tokens=limit)})
                  for n in numbers}  # fmt: skip
        short = {n: prompts[n]._replace(max_new_tokens=limit) for n in numbers}
        for number, ids, _ in self._run(self._jobs(greedy, short)):
            adapter = Path(str(requests[number].agent.adapter))
            gap = self._gap(adapter, prompts[number].token_ids, ids)
            if not gap <= PROBE_GAP:
                log.warning(
                    "Adapter %s: mixed batches write tokens that plain transformers finds less likely by %.1f logits. "
                    "Going on with plain transformers, which is slower.", adapter, gap)  # fmt: skip
                self._fused = self._slots = None
                return False
            self._probed.add(adapter)
        return True

    def _gap(self, adapter: Path, prompt: Sequence[int], reply: Sequence[int]) -> float:
        """Return by how much plain transformers finds a reply's tokens less likely than its own, at most."""
        import torch

        model = self.speaking(adapter)
        with torch.inference_mode():
            ids = torch.tensor([[*prompt, *reply]], device=model.device)
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        own = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
        return float((logits.amax(-1) - own).max())


def _operations(model: Any) -> Any:
    """Return the operations for a model: Triton's kernels on CUDA, where it is installed."""
    from maft.samplers import plain_ops

    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if device() == "cuda" and width >= 16:
        try:
            from maft.samplers import triton_ops
        except ImportError:
            return plain_ops
        return triton_ops
    return plain_ops
