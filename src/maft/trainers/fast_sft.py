"""TRL's SFTTrainer, quicker on a CPU: the same loss and the same steps, less work.

Measured with SmolLM2-135M on two cores, TRL 1.16 spends more than half of a step in the language-model head: for all
positions, in float32, twice. Its head is made for GPUs, where this class leaves everything as it is. On a CPU:

1. logits are computed at the positions that predict a token with loss, by the model's own forward, with the input of
   its head narrowed to these positions, so that what a model does to its logits (scaling, soft-capping) is kept;
2. the batch of a step goes through the model in parts of about equal length, which saves most padding. The loss is a
   sum over tokens divided by the tokens of the whole step, so the gradient does not depend on the parts;
3. no attention mask: padding stands at the right, and no token sees what is to the right of it;
4. attention by plain matrix products while they are small: the backward pass of the fused kernel is slow on a CPU;
5. no float32 copies of every adapter's input, which autocast would turn back into bfloat16.

The first step compares the loss with TRL's own and goes back to TRL's way for a model where they differ.

On any hardware, several processes see the same batches as one would, each its share of every batch: where the examples
of an epoch do not suffice for all, rows without loss fill up, where the library would repeat examples. And
packed examples must not see each other: the first step makes sure of it, for models differ in what keeps them apart.

Import this file where it is needed only: TRL takes ten seconds.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from trl import SFTTrainer

from maft.errors import DataError
from maft.trainers.dialogue_tokens import IGNORED
from maft.trainers.parts import lengths_to_parts

PART_TOKENS = 1024
"""Size of a part, padding included: fewer make matrix products less efficient, more make more padding."""
EAGER_TOKENS = 512
"""Longest dialogue for plain attention, whose memory grows with the square of the length."""
TOLERANCE = 0.02
"""Relative difference from TRL's loss that rounding to bfloat16 explains, on a few dozen tokens."""


class FastSFTTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """See the module."""

    narrow: bool | None = None
    """Whether the narrowed head gives TRL's loss for this base model; None until it was tried."""
    train_dataset: Any
    apart: bool | None = None
    """Whether this base model keeps packed examples apart; None until it was tried."""

    @classmethod
    def forget_model(cls) -> None:
        """Forget what was found out about the base model: there is another one."""
        cls.narrow = cls.apart = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.accelerator.num_processes > 1:
            self._num_rows = len(self.train_dataset)
            self.train_dataset = concatenate_datasets([self.train_dataset, self._row_without_loss()])
        self._base = getattr(self.model, "get_base_model", lambda: self.model)()
        self._fused_attention = self._base.config._attn_implementation
        if self.args.bf16 and self.args.device.type == "cpu":
            for module in self.model.modules():
                if hasattr(module, "cast_input_dtype_enabled"):
                    module.cast_input_dtype_enabled = False

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Do the forward and backward passes of a batch, on a CPU in parts of about equal length."""
        if self.padding_free and type(self).apart is None:
            self._refuse_mixing(model, self._prepare_inputs(inputs))
        if self.args.device.type != "cpu" or num_items_in_batch is None or self.padding_free:
            return super().training_step(model, inputs, num_items_in_batch)
        lengths = inputs["attention_mask"].sum(1).tolist()
        if type(self).narrow is None:
            ends = [lengths.index(min(lengths)), lengths.index(max(lengths))]
            agree = self._losses_agree(model, {name: rows[ends] for name, rows in inputs.items()})
            type(self).narrow = self._all(agree) and not self.aux_loss_enabled
        if not type(self).narrow:
            return super().training_step(model, inputs, num_items_in_batch)
        losses = []
        parts = lengths_to_parts(lengths, PART_TOKENS)
        for number, part in enumerate(parts, 1):
            longest = max(lengths[place] for place in part)
            self._base.set_attn_implementation("eager" if longest <= EAGER_TOKENS else self._fused_attention)
            rows = {name: tensor[part, :longest] for name, tensor in inputs.items()}
            # Processes may have different numbers of parts: they add up their gradients after the last one.
            with self.accelerator.no_sync(model) if number < len(parts) else nullcontext():
                losses.append(super().training_step(model, rows, num_items_in_batch))
        self._base.set_attn_implementation(self._fused_attention)
        counted = inputs["attention_mask"][(inputs["labels"] != IGNORED).any(1)].sum()  # but for rows that fill up
        self._total_train_tokens += int(self.accelerator.reduce(counted))
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return TRL's loss, on a CPU without the work that does not change it."""
        plain = return_outputs or num_items_in_batch is None or not model.training
        if plain or not type(self).narrow:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # The tokens are those of all processes, and the gradients of all will be averaged.
        return self._narrowed_loss(model, inputs) / num_items_in_batch * self.accelerator.num_processes

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the order of the examples; of several processes, the one that a single process would have."""
        if self.accelerator.num_processes == 1:
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.accelerator.num_processes
        return FilledSampler(SeedableRandomSampler(range(self._num_rows)), batch)

    def _row_without_loss(self) -> Any:
        """Return a data set of one row that has no part in the loss, to be put last."""
        row = {"input_ids": [[self._tokenizer.pad_token_id]], "labels": [[IGNORED]], "seq_lengths": [[1]]}
        columns = self.train_dataset.column_names
        return Dataset.from_dict({name: row[name] for name in columns}, features=self.train_dataset.features)

    def _all(self, holds: bool) -> bool:
        """Say whether it holds in all processes."""
        count = int(self.accelerator.reduce(torch.tensor(int(holds), device=self.accelerator.device)))
        return count == int(self.accelerator.num_processes)

    def _refuse_mixing(self, model: Any, inputs: dict[str, Any]) -> None:
        """Make sure that a row's last example is as likely whatever stands before it; rows of one tell nothing."""
        starts = (inputs["position_ids"][0] == 0).nonzero().flatten()
        if not self._all(len(starts) > 1):
            return
        ids, last = inputs["input_ids"], int(starts[-1])
        others = torch.cat([torch.full_like(ids[:, :last], self._tokenizer.pad_token_id), ids[:, last:]], dim=1)
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            a, b = (
                model(**inputs | {"input_ids": rows, "use_cache": False, "fused_lm_head": True}).log_probs
                for rows in (ids, others)
            )
        model.train()
        type(self).apart = self._all(bool((a - b)[:, last:].abs().max() <= TOLERANCE))
        if not type(self).apart:
            raise DataError(
                f"train.packing: in {self._base.config.model_type} models packed examples see each other, so that "
                "an agent would learn from answers to other questions. Set train.packing=false."
            )

    def _losses_agree(self, model: Any, inputs: dict[str, Any]) -> bool:
        """Compare TRL's loss with ours on a few rows, without dropout."""
        count = (inputs["labels"][:, 1:] != IGNORED).sum().clamp(min=1)
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            theirs = super().compute_loss(model, dict(inputs))
            try:
                ours = self._narrowed_loss(model, inputs) / count
            except (AttributeError, IndexError, RuntimeError, TypeError):
                return False  # this model does not call its head in the usual way
            finally:
                model.train()
                self._metrics["eval"].clear()
        return bool((ours - theirs).abs() <= TOLERANCE * theirs.abs())

    def _narrowed_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the summed negative log-likelihood of the tokens with loss."""
        labels = inputs["labels"][:, 1:]
        predicting = labels != IGNORED

        def narrow(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (arguments[0][:, :-1][predicting].unsqueeze(0), *arguments[1:])

        hook = self._base.get_output_embeddings().register_forward_pre_hook(narrow)
        try:
            logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
        finally:
            hook.remove()
        return NegativeLogLikelihood.apply(logits.view(-1, logits.shape[-1]), labels[predicting])


class FilledSampler(torch.utils.data.Sampler):  # type: ignore[misc]
    """The order of another sampler, and after it, as often as makes whole batches, the row behind its last."""

    def __init__(self, inner: Any, batch: int) -> None:
        self.inner, self.fill = inner, -len(inner) % batch

    def __iter__(self) -> Iterator[int]:
        yield from self.inner
        yield from [len(self.inner)] * self.fill

    def __len__(self) -> int:
        return len(self.inner) + self.fill

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, which is part of the seed."""
        self.inner.set_epoch(epoch)


class NegativeLogLikelihood(torch.autograd.Function):  # type: ignore[misc]
    """Summed cross-entropy; the gradient is made on the way, and only a few rows at a time are in float32."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the sum; keep softmax - onehot for the way back."""
        gradient = torch.empty_like(logits)
        total = logits.new_zeros((), dtype=torch.float32)
        for rows, target, out in zip(logits.split(64), targets.split(64), gradient.split(64), strict=True):
            row = rows.float()
            log_z = row.logsumexp(-1, keepdim=True)
            chosen = target.unsqueeze(-1)
            total += (log_z - row.gather(-1, chosen)).sum()
            row.sub_(log_z).exp_().scatter_add_(-1, chosen, row.new_full(chosen.shape, -1.0))
            out.copy_(row)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the kept gradient, scaled."""
        (kept,) = ctx.saved_tensors
        return kept * gradient.to(kept.dtype), None
