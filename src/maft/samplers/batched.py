"""The transformers engine on CUDA: agents of one base in one batch, replies in slots (`maft.samplers.slots`).

Models and adapters that `maft.samplers.fused` does not know, and other devices, are left to plain transformers. So is
a model whose agents do not pass the probe: before an adapter speaks here for the first time, it writes a few likeliest
tokens, which plain transformers with PEFT must find likely too.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maft import models
from maft.errors import TooLarge
from maft.models.adapters import WEIGHTS, uniform
from maft.models.shapes import Shape
from maft.records import SamplingParams
from maft.samplers.chat import Chat, Generated
from maft.samplers.local import ADVICE, Job, Take
from maft.samplers.transformers import Transformers, device

log = logging.getLogger(__name__)

MAX_SLOTS = 1024
MANY = 1 << 30
"""Jobs that are taken at a time: all that are ready."""
PROBE_TOKENS = 8
PROBE_GAP = 1.0
"""Logits by which a token of the probe may be less likely than the likeliest: bfloat16 rounds to about 0.2."""


class Batched(Transformers):
    """Samples with transformers' models; with its own batches where that is faster."""

    mixes_agents = True
    devices: tuple[str, ...] = ("cuda",)
    """Where slots are used."""
    _fused: Any = None
    _slots: Any = None

    def load(self, model: str, chat: Chat) -> None:
        """Load the base model."""
        super().load(model, chat)
        self._agents: list[Path] = []
        self._tensors: dict[Path, Any] = {}
        self._probed: set[Path | None] = set()
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

    def run(self, take: Take) -> Iterator[tuple[Job, Generated]]:
        """Answer in slots what can be mixed, and the rest as plain transformers do, agent by agent."""
        waiting: dict[int, Job] = {}
        while True:
            waiting |= {job.number: job for job in take(MANY)}
            if not waiting:
                return
            jobs = list(waiting.values())
            adapters = sorted({job.adapter for job in jobs if job.adapter})
            if self._fused is not None and self._knows(adapters) and self._speak(jobs, adapters):
                yield from self._in_slots(waiting, take)
                continue
            ((largest, _),) = Counter(job.adapter for job in jobs).most_common(1)
            of_one = [job for job in jobs if job.adapter == largest]
            of_one = sorted(of_one, key=lambda job: len(job.prompt.token_ids))[: self.max_sequences]
            for generated in self.generate(of_one):
                yield waiting.pop(of_one[generated.place].number), generated

    def _in_slots(self, waiting: dict[int, Job], take: Take) -> Iterator[tuple[Job, Generated]]:
        """Answer what waits, and what comes meanwhile as far as it fits the slots; where memory runs out, in fewer."""
        import torch

        try:
            self._make_room(list(waiting.values()))
            queue = deque(self._slot_job(job) for job in waiting.values())
            for number, ids, logprobs in self._slots.run(queue):
                yield waiting.pop(number), Generated(0, ids, logprobs)
                for job in take(MANY):
                    waiting[job.number] = job
                    if self._fits(job):
                        queue.append(self._slot_job(job))
        except torch.OutOfMemoryError:
            count = self._slots.count if self._slots else self._max_slots
            self._slots = None
            torch.cuda.empty_cache()
            self._max_slots = min(count, self._max_slots) // 2
            if not self._max_slots:
                raise TooLarge(f"model {self._folder} leaves no memory for one reply. {ADVICE}") from None
            log.info("GPU memory ran out: from now on at most %d replies at a time.", self._max_slots)

    def _fits(self, job: Job) -> bool:
        """Say whether a job can join those that run: its agent is among theirs, and its dialogue not too long."""
        length = len(job.prompt.token_ids) + job.prompt.max_new_tokens
        known = job.adapter is None or job.adapter in self._agents
        return known and length <= self._slots.length and job.prompt.max_new_tokens <= self._slots.steps

    def _slot_job(self, job: Job) -> Any:
        from maft.samplers import slots

        agent = -1 if job.adapter is None else self._agents.index(job.adapter)
        prompt, request = job.prompt, job.request
        return slots.Job(job.number, prompt.token_ids, prompt.max_new_tokens, request.sampling, request.seed, agent)

    def _make_room(self, jobs: Sequence[Job]) -> None:
        """Have slots for these jobs: as many, and as long, as they need and memory allows."""
        import torch

        from maft.samplers.slots import SIZES, Slots

        length = -(-max(len(job.prompt.token_ids) + job.prompt.max_new_tokens for job in jobs) // 128) * 128
        steps = -(-max(job.prompt.max_new_tokens for job in jobs) // 64) * 64
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

    def _speak(self, jobs: Sequence[Job], adapters: Sequence[Path]) -> bool:
        """Have these adapters in the batch; return whether each new one writes what plain transformers finds likely."""
        if not set(adapters) <= set(self._agents):
            self._agents = list(adapters)
            moved = self._fused.adapt([self._tensors[adapter] for adapter in adapters])
            if self._slots and moved:
                self._slots.drop_graphs()
        first = {job.adapter: job for job in reversed(jobs) if job.adapter not in (None, *self._probed)}
        if not first:
            return True
        limit = min(PROBE_TOKENS, *(job.prompt.max_new_tokens for job in first.values()))
        greedy = SamplingParams(temperature=0, max_new_tokens=limit)
        probes = {
            job.number: job._replace(
                request=job.request.model_copy(update={"sampling": greedy}),
                prompt=job.prompt._replace(max_new_tokens=limit),
            )
            for job in first.values()
        }
        answered: list[tuple[Job, Generated]] = []
        while probes:  # again in fewer slots, where memory ran out
            answered += self._in_slots(probes, lambda _: [])
        for job, generated in answered:
            gap = self._gap(job.adapter, job.prompt.token_ids, generated.token_ids)
            if not gap <= PROBE_GAP:
                log.warning(
                    "Adapter %s: mixed batches write tokens that plain transformers finds less likely by %.1f logits. "
                    "Going on with plain transformers, which is slower.", job.adapter, gap)  # fmt: skip
                self._fused = self._slots = None
                return False
            self._probed.add(job.adapter)
        return True

    def _gap(self, adapter: Path | None, prompt: Sequence[int], reply: Sequence[int]) -> float:
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
