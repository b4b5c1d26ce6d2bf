"""The engine that runs anywhere: generation with transformers, adapters with PEFT.

On CUDA, models and adapters that `maft.samplers.fused` knows run in slots instead, agents of one base in one batch
(`maft.samplers.slots`). Before an adapter is used there for the first time, it writes a few likeliest tokens, which
plain transformers with PEFT must find likely too; otherwise the model is left to plain transformers.
"""

import gc
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maft import models
from maft.errors import DataError, MissingExtra, TooLarge
from maft.models import probe
from maft.models.adapters import WEIGHTS, uniform
from maft.models.shapes import Shape
from maft.records import Request
from maft.samplers.chat import Chat, Generated
from maft.samplers.local import ADVICE, Ended, Job, LocalSampler, Take

log = logging.getLogger(__name__)

MAX_SLOTS = 1024
PROBE_TOKENS = 8
PROBE_GAP = 1.0
"""Logits by which a token of the probe may be less likely than the likeliest: bfloat16 rounds to about 0.2."""


BATCH_BYTES = 2**29
"""Memory for the next-token distributions of a forward pass of `likelihoods`."""


class Likelihoods(NamedTuple):
    """Log-likelihoods (natural) of the tokens of a text, each given those before it; None for the first."""

    tokens: list[float | None]
    top: list[dict[int, float] | None]
    """The likeliest tokens at each position."""


class _Unlike(Exception):
    """Slots would not give the replies of plain transformers."""


class Transformers(LocalSampler):
    """Samples with transformers on CUDA, Apple's MPS or the CPU."""

    devices: tuple[str, ...] = ("cuda",)
    """Where slots are used."""
    _model: Any = None
    _fused: Any = None
    _slots: Any = None

    def load(self, model: str, chat: Chat) -> None:
        """Load the base model in the dtype of the settings."""
        try:
            import torch
            from transformers import AutoModelForCausalLM, GenerationConfig
        except ImportError:
            raise MissingExtra("the transformers sampler", "hf") from None
        models.load_quietly()
        dtype, trust = getattr(torch, models.usable_dtype(self.settings.dtype)), self.settings.trust_remote_code
        with models.loading(model):
            loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=trust)
        self._model = loaded.to(device()).eval()
        self._model.generation_config = GenerationConfig()  # only the request says how replies are drawn
        if self.settings.num_threads:
            torch.set_num_threads(self.settings.num_threads)
        self._folder = model
        self._adapters: dict[Path, str] = {}
        self._stop_ids = sorted(chat.stop_ids)
        self._probe = probe.token_ids(chat.tokenizer)
        with probe.in_float32(self._model):
            self._of_base = probe.measure(self._model, self._probe)
        self._tensors: dict[Path, dict[str, Any]] = {}
        self._probed: set[Path] = set()
        self._max_slots = self.settings.max_sequences or MAX_SLOTS
        if device() in self.devices:
            from maft.samplers import fused

            if fused.supports(self._model):
                self._fused = fused.Fused(self._model)

    def unload(self) -> None:
        """Drop the model, its adapters and the cache."""
        self._fused = self._slots = None
        if self._model is not None:
            self._model = None
            gc.collect()
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def group(self, request: Request) -> str:
        """Mix agents: `run` divides them where they must not share a batch."""
        return ""

    def room(self) -> tuple[float, str]:
        """Return what is free on the GPU, where there is one."""
        import torch

        return (float(torch.cuda.mem_get_info()[0]), "the GPU") if device() == "cuda" else super().room()

    def cache_bytes(self, shape: Shape, limits: Sequence[int]) -> float:
        """Return the bytes of the key-value cache; in slots, of the fewest that are of use."""
        if device() not in self.devices:
            return super().cache_bytes(shape, limits)
        return 8 * max(limits, default=0) * shape.kv_bytes_per_token(self.settings.dtype)

    def run(self, take: Take) -> Ended:
        """Answer jobs in slots where that is possible, otherwise agent by agent with plain transformers."""
        held: dict[int, Job] = {}
        if self._fused is not None:
            yield from self._run_in_slots(take, held)
        jobs = list(held.values())
        while jobs or (jobs := take(8 * self.max_sequences)):
            batch = [job for job in jobs if job.adapter == jobs[0].adapter][: self.max_sequences]
            if (replies := self._try(batch)) is not None:
                numbers = {job.number for job in batch}
                jobs = [job for job in jobs if job.number not in numbers]
                yield from zip(batch, replies, strict=True)

    def _run_in_slots(self, take: Take, held: dict[int, Job]) -> Ended:
        """Answer jobs in slots, in fewer where memory runs out; those left in `held` are not answered."""
        import torch

        def more(limit: int) -> list[Job]:
            jobs = take(limit)
            held.update((job.number, job) for job in jobs)
            return jobs

        while held or more(self._max_slots):
            try:
                self._make_room(list(held.values()))
                for job, generated in self._slots.run(list(held.values()), more, self._admit):
                    del held[job.number]
                    yield job, generated
            except torch.OutOfMemoryError:
                count = self._slots.count if self._slots else self._max_slots
                self._slots = None
                self._max_slots = self._fewer(min(count, self._max_slots))
            except _Unlike as error:
                log.warning("%s Using plain transformers instead, which is slower.", error)
                self._fused = self._slots = None
                return

    def _fewer(self, count: int) -> int:
        """Return half as many replies at a time as ran out of memory."""
        import torch

        if count < 2:
            raise TooLarge(f"model {self._folder} leaves no memory for one reply. {ADVICE}") from None
        torch.cuda.empty_cache()
        log.info("GPU memory ran out: from now on at most %d replies at a time.", count // 2)
        return count // 2

    def _try(self, jobs: Sequence[Job]) -> list[Generated] | None:
        """Generate one batch of one agent; None where memory ran out and batches must be smaller."""
        import torch

        try:
            return self._generate(jobs)
        except torch.OutOfMemoryError:
            pass  # the error holds the frames with the batch's tensors: free them first
        self.max_sequences = self._fewer(len(jobs))
        return None

    def _generate(self, jobs: Sequence[Job]) -> list[Generated]:
        """Generate one left-padded batch; every row has its own random stream.

        `generate` draws all rows from one global stream, so that a reply would depend on its neighbours in the batch.
        Here row i uses one uniform number per step, from a generator seeded by its request.
        """
        import torch

        from maft.samplers.plain_ops import choose

        model = self.speaking(jobs[0].adapter)
        prompts, how = [job.prompt.token_ids for job in jobs], [job.request.sampling for job in jobs]
        limits = [job.prompt.max_new_tokens for job in jobs]
        longest, pad = max(map(len, prompts)), self._stop_ids[0]
        streams = [torch.Generator().manual_seed(job.request.seed) for job in jobs]
        draws = torch.stack([torch.rand(max(limits), generator=stream) for stream in streams]).to(model.device)
        parameters = [
            torch.tensor(values, device=model.device)
            for values in ([p.temperature for p in how], [p.top_k for p in how], [p.top_p for p in how])
        ]
        logprobs: list[Any] = []
        ends = torch.tensor(limits, device=model.device)

        def keep_chosen(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """Leave one token in each row: the next one, or past its limit one that ends it."""
            step = input_ids.shape[1] - longest
            token = choose(scores, draws[:, step], *parameters).masked_fill(ends <= step, pad)[:, None]
            logprobs.append((scores.gather(1, token).float() - scores.float().logsumexp(-1, keepdim=True))[:, 0])
            return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)

        padded = [[pad] * (longest - len(ids)) + ids for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=max(limits),
                do_sample=False,
                logits_processor=[keep_chosen],
                eos_token_id=self._stop_ids,
                pad_token_id=pad,
            )
        rows, likely = output[:, longest:].tolist(), torch.stack(logprobs, dim=1).tolist()
        replies = []
        for row, values, limit in zip(rows, likely, limits, strict=True):
            end = next((place + 1 for place, token in enumerate(row) if token in self._stop_ids), len(row))
            replies.append(Generated(row[: min(end, limit)], values[: min(end, limit)]))
        return replies

    def likelihoods(self, adapter: Path | None, texts: Sequence[Sequence[int]], num_top: int) -> list[Likelihoods]:
        """Return the log-likelihoods of texts under an agent of the loaded base, with the likeliest tokens."""
        import torch

        model = self.speaking(adapter)
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        read: dict[int, Likelihoods] = {}
        while order:
            longest = len(texts[order[-1]])
            size = max(1, BATCH_BYTES // (4 * longest * model.config.get_text_config().vocab_size))
            batch, order = order[-size:], order[:-size]
            rows = [[*texts[number], *[0] * (longest - len(texts[number]))] for number in batch]
            ids = torch.tensor(rows, device=model.device)
            with torch.inference_mode():  # padding comes after the text, where no token of it looks
                logits = model(input_ids=ids).logits
            for row, number in enumerate(batch):
                tokens = ids[row, 1 : len(texts[number]), None]
                scores = logits[row, : len(tokens)].float().log_softmax(-1)
                best = scores.topk(num_top, dim=-1)
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                top = [dict(zip(ids_, values, strict=True)) for ids_, values in pairs]
                read[number] = Likelihoods([None, *scores.gather(1, tokens)[:, 0].tolist()], [None, *top])
        return [read[number] for number in range(len(texts))]

    def speaking(self, adapter: Path | None) -> Any:
        """Return the model with just this adapter switched on."""
        if adapter is None:
            if self._adapters:
                self._model.base_model.disable_adapter_layers()
            return self._model
        if adapter not in self._adapters:
            self._attach(adapter)
        self._model.base_model.enable_adapter_layers()
        self._model.set_adapter(self._adapters[adapter])
        return self._model

    def _attach(self, adapter: Path) -> None:
        from peft import PeftModel

        models.check_adapter(adapter, self._folder, trust=self.settings.trust_remote_code)
        name = f"adapter_{len(self._adapters)}"
        if self._adapters:
            self._model.load_adapter(adapter, adapter_name=name)
        else:
            self._model = PeftModel.from_pretrained(self._model, adapter, adapter_name=name).eval()
        self._model.base_model.enable_adapter_layers()
        self._model.set_adapter(name)
        self._adapters[adapter] = name
        with probe.in_float32(self._model):
            result = probe.of_adapter(self._model, self._probe)
        expected = probe.recorded(adapter, len(self._probe))
        try:
            probe.refuse_changed_base(adapter, self._of_base, result)
            if expected is not None:
                probe.check(adapter, expected, result)
        except DataError:
            self.release()  # what is loaded is the base no longer
            raise

    def _make_room(self, jobs: Sequence[Job]) -> None:
        """Have as many slots as these jobs need and memory allows, as long as they need."""
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
            each = 2 * len(fused.layers) * fused.kv_heads * fused.width * like.element_size() * length
            free = 0.85 * torch.cuda.mem_get_info()[0]
            count = max(1, min(count, int(free / (each + 8 * like.shape[0]))))
        self._slots = Slots(self._fused, self._stop_ids, count, length, steps)

    def _admit(self, jobs: Sequence[Job], running: bool) -> None:
        """Load the adapters of these jobs into the batch, and probe each new one.

        Raises:
            _Unlike: an adapter is of another kind, changes likelihoods in another way than in plain transformers, or
                writes what it finds unlikely.
        """
        fused, first = self._fused, {job.adapter: job for job in reversed(jobs) if job.adapter is not None}
        new = [adapter for adapter in sorted(first) if adapter not in fused.numbers]
        if not new:
            return
        kept = [adapter for adapter in fused.numbers if adapter and (running or adapter in first)]
        if fused.adapt({adapter: self._weights(adapter) for adapter in [*kept, *new]}):
            self._slots.graphs.clear()
        unknown = [adapter for adapter in new if adapter not in self._probed]
        written = self._slots.greedy([first[adapter] for adapter in unknown], PROBE_TOKENS) if unknown else []
        for adapter, ids in zip(unknown, written, strict=True):
            self._refuse_another_strength(adapter)
            gap = self._gap(adapter, first[adapter].prompt.token_ids, ids)
            if not gap <= PROBE_GAP:
                raise _Unlike(
                    f"Adapter {adapter}: mixed batches write tokens that plain transformers finds less likely by "
                    f"{gap:.1f} logits."
                )
            self._probed.add(adapter)

    def _refuse_another_strength(self, adapter: Path) -> None:
        expected = probe.of_adapter(self.speaking(adapter), self._probe)
        base, adapted = (self._fused.likelihoods(self._probe, self._fused.numbers[who]) for who in (None, adapter))
        try:
            probe.check(adapter, expected, probe.Probe(base=base, adapted=adapted))
        except DataError as error:
            raise _Unlike(f"Mixed batches: {error}") from None

    def _weights(self, adapter: Path) -> dict[str, Any]:
        """Return the tensors of an adapter by name, B times its scale."""
        from safetensors.torch import load_file

        if adapter not in self._tensors:
            scales = models.check_adapter(adapter, self._folder, trust=self.settings.trust_remote_code)
            folder, scale = uniform(adapter, scales)
            tensors = load_file(folder / WEIGHTS, device=str(self._model.device))
            if not self._fused.names >= set(tensors):
                raise _Unlike(f"Adapter {adapter} has weights that mixed batches do not know.")
            self._tensors[adapter] = {
                name: tensor.float() * scale if ".lora_B." in name else tensor for name, tensor in tensors.items()
            }
        return self._tensors[adapter]

    def _gap(self, adapter: Path, prompt: Sequence[int], reply: Sequence[int]) -> float:
        """Return the largest difference in logits between plain transformers' likeliest tokens and a reply's."""
        import torch

        model = self.speaking(adapter)
        with torch.inference_mode():
            ids = torch.tensor([[*prompt, *reply]], device=model.device)
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        own = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
        return float((logits.amax(-1) - own).max())


def device() -> str:
    """Return the best device there is: cuda, mps or cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
