"""The engine that runs anywhere: batched generation with transformers, adapters with PEFT."""

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maft import models
from maft.errors import MissingExtra
from maft.models import probe
from maft.records import SamplingParams
from maft.samplers.chat import Chat, Generated
from maft.samplers.local import BatchSampler, Job


class Transformers(BatchSampler):
    """Samples with transformers on CUDA, Apple's MPS or the CPU."""

    _model: Any = None

    def load(self, model: str, chat: Chat) -> None:
        """Load the base model in the dtype of the settings."""
        try:
            import torch
            from transformers import AutoModelForCausalLM
        except ImportError:
            raise MissingExtra("the transformers sampler", "hf") from None
        models.load_quietly()
        with models.loading(model):
            dtype = getattr(torch, models.usable_dtype(self.settings.dtype))
            loaded = AutoModelForCausalLM.from_pretrained(
                model, dtype=dtype, trust_remote_code=self.settings.trust_remote_code
            )
        self._model = loaded.to(device()).eval()
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
        """Generate one left-padded batch; every row has its own random stream."""
        import torch

        model = self.speaking(jobs[0].adapter)
        prompts, requests = [job.prompt for job in jobs], [job.request for job in jobs]
        longest = max(len(prompt.token_ids) for prompt in prompts)
        pad = self._stop_ids[0]
        padded = [[pad] * (longest - len(p.token_ids)) + p.token_ids for p in prompts]
        mask = [[0] * (longest - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts]
        limits = [prompt.max_new_tokens for prompt in prompts]
        drawn: list[Any] = []
        choose = _choose_by_row([r.sampling for r in requests], [r.seed for r in requests], limits, longest, drawn)
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=max(limits),
                do_sample=False,
                logits_processor=[choose],
                eos_token_id=self._stop_ids,
                pad_token_id=pad,
            )
        rows = output[:, longest:].tolist()
        logprobs = torch.stack(drawn, dim=1).tolist()
        for place, limit in enumerate(limits):
            ids = self._until_stop(rows[place], limit)
            yield Generated(place, ids, logprobs[place][: len(ids)])

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
        result, expected = probe.of_adapter(self._model, self._probe), probe.recorded(adapter)
        probe.refuse_changed_base(adapter, self._of_base, result)
        if expected is not None:
            probe.check(adapter, expected, result.adapted)
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


def _choose_by_row(
    sampling: Sequence[SamplingParams],
    seeds: Sequence[int],
    limits: Sequence[int],
    start: int,
    drawn: list[Any] | None = None,
) -> Any:
    """Return a logits processor that leaves one token per row: the one drawn with the row's own stream.

    `generate` draws all rows from one global stream, so that a reply would depend on its neighbours in the batch. Here
    row i uses one uniform number a step, from a generator seeded by `seeds[i]`, to invert its distribution after
    temperature, top-k and top-p. The log-probabilities of the chosen tokens, one a row, are appended to `drawn`.
    """
    import torch

    draws = torch.stack([torch.rand(max(limits), generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    temperature = torch.tensor([how.temperature for how in sampling])
    top_p = torch.tensor([how.top_p for how in sampling])
    top_k = [how.top_k for how in sampling]

    def choose(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - start
        width = scores.shape[-1] if 0 in top_k else max(top_k)
        logits, tokens = scores.float().topk(width, dim=-1)
        t, p, u = (x.to(scores.device)[:, None] for x in (temperature, top_p, draws[:, step]))
        k = torch.tensor([k or width for k in top_k], device=scores.device)[:, None]
        ranks = torch.arange(width, device=scores.device)[None]
        logits = (logits / t.clamp(min=1e-6)).masked_fill(ranks >= k, -torch.inf)
        probabilities = logits.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill((before >= p) & (ranks > 0), 0)
        reached = probabilities.cumsum(-1)
        chosen = (reached <= u * reached[:, -1:]).sum(-1, keepdim=True)
        # Rounding may put u at the very end, past the last token that is still possible.
        chosen = torch.where(t > 0, chosen.minimum((probabilities > 0).sum(-1, keepdim=True) - 1), 0)
        token = tokens.gather(1, chosen)
        if drawn is not None:
            drawn.append((scores.gather(1, token).float() - scores.float().logsumexp(-1, keepdim=True))[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)

    return choose
