"""TRL's SFTTrainer, quicker on a CPU: the same loss and the same steps, less work.

Measured with SmolLM2-135M on two cores, TRL 1.16 spends more than half of a step in the language-model head: for all
positions, in float32, twice. Its head is made for GPUs, where this class leaves everything as it is. On a CPU:

1. logits are computed at the positions that predict a token with loss, by the model's own forward, with the input of
   its head narrowed to these positions, so that what a model does to its logits (scaling, soft-capping) is kept;
2. the batch of a step goes through the model in parts of equal length, which saves most padding. The loss is a sum
   over tokens divided by the tokens of the whole step, so the gradient does not depend on the parts;
3. no attention mask: padding stands at the right, and no token sees what is to the right of it.

The first step compares the loss with TRL's own and goes back to TRL's way where they differ.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from maft.trainers.dialogue_tokens import IGNORED

if TYPE_CHECKING:
    import torch

PART_TOKENS = 1024
"""Size of a part, padding included: fewer make matrix products less efficient, more make more padding."""
TOLERANCE = 0.02
"""Relative difference from TRL's loss that rounding to bfloat16 explains, on a few hundred tokens."""


def lengths_to_parts(lengths: list[int], limit: int) -> list[list[int]]:
    """Group places by length so that a part has at most `limit` tokens with its padding, or one row.

    >>> lengths_to_parts([90, 300, 100, 95], 310)
    [[0, 3, 2], [1]]
    """
    parts: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if parts and (len(parts[-1]) + 1) * lengths[place] <= limit:
            parts[-1].append(place)
        else:
            parts.append([place])
    return parts


@cache
def fast_trainer_class() -> Any:
    """Return the class; it is made at the first call, since importing TRL takes ten seconds."""
    import torch
    from trl import SFTTrainer

    class FastSFTTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
        """See the module."""

        narrow: bool | None = None
        """Whether the narrowed head gives TRL's loss for this model; None until it was tried."""

        def training_step(
            self, model: Any, inputs: dict[str, Any], num_items_in_batch: "torch.Tensor | int | None" = None
        ) -> "torch.Tensor":
            """Do the forward and backward passes of a batch, on a CPU in parts of equal length."""
            if self.args.device.type != "cpu" or num_items_in_batch is None:
                return super().training_step(model, inputs, num_items_in_batch)
            lengths = inputs["attention_mask"].sum(1).tolist()
            losses = []
            for part in lengths_to_parts(lengths, PART_TOKENS):
                longest = max(lengths[place] for place in part)
                rows = {name: tensor[part, :longest] for name, tensor in inputs.items()}
                losses.append(super(FastSFTTrainer, self).training_step(model, rows, num_items_in_batch))
            return torch.stack(losses).sum()

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: "torch.Tensor | int | None" = None,
        ) -> Any:
            """Return TRL's loss, on a CPU without the work that does not change it."""
            plain = self.args.device.type != "cpu" or return_outputs or num_items_in_batch is None
            if plain or self.aux_loss_enabled or not self._can_narrow(model, inputs):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            self._total_train_tokens += int(inputs["attention_mask"].sum())
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            return self._narrowed_loss(model, inputs) / num_items_in_batch

        def _can_narrow(self, model: Any, inputs: dict[str, Any]) -> bool:
            """Compare both losses on the shortest and the longest row of the first part, once for a model."""
            if type(self).narrow is None:
                rows = {name: tensor[[0, -1]] for name, tensor in inputs.items()}
                count = (rows["labels"][:, 1:] != IGNORED).sum()
                tokens = self._total_train_tokens
                model.eval()
                with torch.no_grad():
                    theirs = super().compute_loss(model, dict(rows), num_items_in_batch=count)
                    try:
                        ours = self._narrowed_loss(model, rows) / count
                    except (AttributeError, IndexError, RuntimeError, TypeError):
                        ours = theirs.new_tensor(float("nan"))  # this model does not call its head in the usual way
                model.train()
                self._metrics["eval"].clear()
                self._total_train_tokens = tokens
                type(self).narrow = bool((ours - theirs).abs() <= TOLERANCE * theirs.abs())
            return bool(type(self).narrow)

        def _narrowed_loss(self, model: Any, inputs: dict[str, Any]) -> "torch.Tensor":
            """Return the summed negative log-likelihood of the tokens with loss."""
            labels = inputs["labels"][:, 1:]
            predicting = labels != IGNORED

            def narrow(_: Any, arguments: tuple["torch.Tensor", ...]) -> tuple["torch.Tensor", ...]:
                return (arguments[0][:, :-1][predicting].unsqueeze(0), *arguments[1:])

            hook = self.model.get_output_embeddings().register_forward_pre_hook(narrow)
            try:
                logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
            finally:
                hook.remove()
            return NegativeLogLikelihood.apply(logits.view(-1, logits.shape[-1]), labels[predicting])

    class NegativeLogLikelihood(torch.autograd.Function):  # type: ignore[misc]
        """Cross-entropy summed over rows; gradients are made on the way and the float32 copy is a few rows at a time."""

        @staticmethod
        def forward(ctx: Any, logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
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
        def backward(ctx: Any, gradient: "torch.Tensor") -> "tuple[torch.Tensor, None]":
            """Return the kept gradient, scaled."""
            (kept,) = ctx.saved_tensors
            return kept * gradient.to(kept.dtype), None

    return FastSFTTrainer
