"""The engine that runs anywhere: batched generation with transformers, adapters with PEFT."""

import gc
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maft import models
from maft.errors import MissingExtra, TooLarge
from maft.models import probe
from maft.samplers.chat import Chat, Generated
from maft.samplers.local import ADVICE, BatchSampler, Job

log = logging.getLogger(__name__)

BATCH_BYTES = 2**29
"""Memory for the next-token distributions of a forward pass of `likelihoods`."""


class Likelihoods(NamedTuple):
    """How likely the tokens of a text are, each after those before it, as natural logarithms; None of the first."""

    tokens: list[float | None]
    top: list[dict[int, float] | None]
    """The likeliest tokens in each place."""


class Transformers(BatchSampler):
    """Samples with transformers on CUDA, Apple's MPS or the CPU."""

    _model: Any = None

    def load(self, model: str, chat: Chat) -> None:
        """Load the base model in the dtype of the settings."""
        try:
            import torch
            from transformers import AutoModelForCausalLM, GenerationConfig
        except ImportError:
            raise MissingExtra("the transformers sampler", "hf") from None
        models.load_quietly()
        with models.loading(model):
            dtype = getattr(torch, models.usable_dtype(self.settings.dtype))
            loaded = AutoModelForCausalLM.from_pretrained(
                model, dtype=dtype, trust_remote_code=self.settings.trust_remote_code
            )
        self._model = loaded.to(device()).eval()
        self._model.generation_config = GenerationConfig()  # only the request says how replies are drawn
        if self.settings.num_threads:
            torch.set_num_threads(self.settings.num_threads)
        self._folder = model
        self._adapters: dict[Path, str] = {}
        self._stop_ids = sorted(chat.stop_ids)
        self._probe = probe.token_ids(chat.tokenizer)
        self._of_base = probe.measure(self._model, self._probe)

    def room(self) -> tuple[float, str]:
        """Return what is free on the GPU, where there is one."""
        import torch

        return (float(torch.cuda.mem_get_info()[0]), "the GPU") if device() == "cuda" else super().room()

    def unload(self) -> None:
        """Drop the model and its adapters."""
        if self._model is not None:
            self._model = None
            gc.collect()
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def generate(self, jobs: Sequence[Job]) -> Iterator[Generated]:
        """Generate one batch, in halves where memory runs out."""
        import torch

        try:
            yield from self._generate(jobs)
            return
        except torch.OutOfMemoryError:
            half = len(jobs) // 2
        if not half:
            raise TooLarge(f"model {self._folder} leaves no memory for one reply. {ADVICE}")
        torch.cuda.empty_cache()
        self.max_sequences = min(self.max_sequences, half)
        log.info("GPU memory ran out: from now on at most %d replies at a time.", self.max_sequences)
        for start, part in ((0, jobs[:half]), (half, jobs[half:])):
            for made in self.generate(part):
                yield made._replace(place=start + made.place)

    def _generate(self, jobs: Sequence[Job]) -> list[Generated]:
        """Generate one left-padded batch; every row has its own random stream.

        `generate` draws all rows from one global stream, so that a reply would depend on its neighbours in the batch.
        Here row i uses one uniform number a step, from a generator seeded by its request.
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

        def keep_chosen(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """Leave one token in each row."""
            token = choose(scores, draws[:, input_ids.shape[1] - longest], *parameters)[:, None]
            logprobs.append((scores.gather(1, token).float() - scores.float().logsumexp(-1, keepdim=True))[:, 0])
            return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)

        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=model.device),
                attention_mask=torch.tensor(
                    [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device
                ),
                max_new_tokens=max(limits),
                do_sample=False,
                logits_processor=[keep_chosen],
                eos_token_id=self._stop_ids,
                pad_token_id=pad,
            )
        rows, likely = output[:, longest:].tolist(), torch.stack(logprobs, dim=1).tolist()
        made = []
        for place, limit in enumerate(limits):
            ids = self._until_stop(rows[place], limit)
            made.append(Generated(place, ids, likely[place][: len(ids)]))
        return made

    def likelihoods(self, adapter: Path | None, texts: Sequence[Sequence[int]], num_top: int) -> list[Likelihoods]:
        """Return how likely an agent of the loaded base finds texts, with the `num_top` likeliest in each place."""
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
        result, expected = probe.of_adapter(self._model, self._probe), probe.recorded(adapter, len(self._probe))
        probe.refuse_changed_base(adapter, self._of_base, result)
        if expected is not None:
            probe.check(adapter, expected, result)
        self._adapters[adapter] = name

    def _until_stop(self, row: list[int], limit: int) -> list[int]:
        end = next((place + 1 for place, token in enumerate(row) if token in self._stop_ids), len(row))
        return row[: min(end, limit)]


def device() -> str:
    """Return the best device there is: cuda, mps or cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
