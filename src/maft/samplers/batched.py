"""The transformers engine on CUDA: agents of one base in one batch, replies in slots (`maft.samplers.slots`).

Models and adapters that `maft.samplers.fused` does not know, and other devices, are left to plain transformers. So is
a model whose agents do not pass the probe: before an adapter speaks here for the first time, it writes a few likeliest
tokens, which plain transformers with PEFT must find likely too.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maft import models
from maft.errors import TooLarge
from maft.models.adapters import WEIGHTS, uniform
from maft.models.shapes import Shape
from maft.samplers.chat import Chat, Generated
from maft.samplers.local import ADVICE, Job, Take
from maft.samplers.transformers import Transformers, device

log = logging.getLogger(__name__)

MAX_SLOTS = 1024
PROBE_TOKENS = 8
PROBE_GAP = 1.0
"""Logits by which a token of the probe may be less likely than the likeliest: bfloat16 rounds to about 0.2."""


class _Unlike(Exception):
    """Mixed batches would not say what plain transformers says."""


class Batched(Transformers):
    """Samples with transformers' models; with its own batches where that is faster."""

    devices: tuple[str, ...] = ("cuda",)
    """Where slots are used."""
    mixes_agents = True
    _fused: Any = None
    _slots: Any = None

    def load(self, model: str, chat: Chat) -> None:
        """Load the base model."""
        super().load(model, chat)
        self._voices: dict[Path | None, int] = {None: -1}
        self._loaded_adapters: dict[Path, Any] = {}
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

    def run(self, take: Take) -> Iterator[tuple[Job, Generated]]:
        """Answer jobs in slots, in fewer where memory runs out, or with plain transformers."""
        import torch

        held: dict[int, Job] = {}

        def more(limit: int) -> list[Job]:
            jobs = take(limit)
            held.update((job.number, job) for job in jobs)
            return jobs

        while self._fused is not None and (held or more(self._max_slots)):
            try:
                self._make_room(list(held.values()))
                for job, generated in self._slots.run(list(held.values()), more, self._admit):
                    del held[job.number]
                    yield job, generated
            except torch.OutOfMemoryError:
                count = self._slots.count if self._slots else self._max_slots
                self._slots = None
                torch.cuda.empty_cache()
                self._max_slots = min(count, self._max_slots) // 2
                if not self._max_slots:
                    raise TooLarge(f"model {self._folder} leaves no memory for one reply. {ADVICE}") from None
                log.info("GPU memory ran out: from now on at most %d replies at a time.", self._max_slots)
            except _Unlike as error:
                log.warning("%s Plain transformers is used, which is slower.", error)
                self._fused = self._slots = None
        yield from self._one_by_one(list(held.values()), take)

    def _one_by_one(self, jobs: list[Job], take: Take) -> Iterator[tuple[Job, Generated]]:
        """Answer jobs with plain transformers, agent after agent."""
        while jobs or (jobs := take(8 * self.max_sequences)):
            own = [job for job in jobs if job.adapter == jobs[0].adapter]
            jobs = [job for job in jobs if job.adapter != jobs[0].adapter]
            yield from super().run(lambda limit, own=own: [own.pop(0) for _ in range(min(limit, len(own)))])  # type: ignore[misc]

    def _make_room(self, jobs: Sequence[Job]) -> None:
        """Have slots for these jobs: as many, and as long, as they need and memory allows."""
        import torch

        from maft.samplers.slots import SIZES, Slots

        limits = [job.prompt.max_new_tokens for job in jobs]
        length = -(-max(len(job.prompt.token_ids) + n for job, n in zip(jobs, limits, strict=True)) // 256) * 256
        steps = -(-max(limits) // 64) * 64
        count = next((size for size in SIZES if size >= 2 * len(jobs)), SIZES[-1])  # replies lead to requests
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
        self._slots.voices = self._voices

    def _admit(self, jobs: Sequence[Job], running: bool) -> None:
        """Have the adapters of these jobs in the batch, each new one probed.

        Raises:
            _Unlike: an adapter is of another kind, or writes what plain transformers finds unlikely.
        """
        first = {job.adapter: job for job in reversed(jobs) if job.adapter is not None}
        new = [adapter for adapter in sorted(first) if adapter not in self._voices]
        if not new:
            return
        kept = [adapter for adapter in self._voices if adapter and (running or adapter in first)]
        everybody = [*kept, *new]
        if self._fused.adapt([self._tensors(adapter) for adapter in everybody]):
            self._slots.drop_graphs()
        self._voices.clear()
        self._voices |= {None: -1} | {adapter: number for number, adapter in enumerate(everybody)}
        unknown = [adapter for adapter in new if adapter not in self._probed]
        written = self._slots.greedy([first[adapter] for adapter in unknown], PROBE_TOKENS) if unknown else []
        for adapter, ids in zip(unknown, written, strict=True):
            gap = self._gap(adapter, first[adapter].prompt.token_ids, ids)
            if not gap <= PROBE_GAP:
                raise _Unlike(
                    f"Adapter {adapter}: mixed batches write tokens that plain transformers finds less likely by "
                    f"{gap:.1f} logits."
                )
            self._probed.add(adapter)

    def _tensors(self, adapter: Path) -> Any:
        """Return an adapter's weights."""
        from safetensors.torch import load_file

        from maft.samplers.fused import Adapter

        if adapter not in self._loaded_adapters:
            scales = models.check_adapter(adapter, self._folder, trust=self.settings.trust_remote_code)
            folder, scale = uniform(adapter, scales)
            tensors = load_file(folder / WEIGHTS, device=str(self._model.device))
            if not self._fused.names >= set(tensors):
                raise _Unlike(f"Adapter {adapter} has weights that mixed batches do not know.")
            self._loaded_adapters[adapter] = Adapter(tensors, scale)
        return self._loaded_adapters[adapter]

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
