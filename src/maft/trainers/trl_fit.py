"""Finetuning of one agent by TRL: several processes, all weights, packed rows, and what the loop of maft cannot do.

Several processes see the same batches as one would, each its share of every batch: where the examples of an epoch do
not suffice for all, rows without loss fill up, where the library would repeat examples.

Import this file where it is needed only: TRL takes ten seconds.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from maft.config import Training
from maft.errors import DataError
from maft.trainers.base import TrainJob, TrainProgress
from maft.trainers.base_model import BaseModel, num_processes, sharded
from maft.trainers.dialogue_tokens import IGNORED, DialogueTokens
from maft.trainers.stack import SCHEDULES

Report = Callable[[TrainProgress], None]
TOLERANCE = 0.02
"""Difference of log-probabilities that rounding to bfloat16 explains."""


def fit(
    job: TrainJob, training: Training, base: BaseModel, model: Any, rows: Sequence[DialogueTokens], report: Report
) -> tuple[list[float], dict[str, Any] | None]:
    """Run the optimiser; return the loss of each step and, where weights are divided, the whole of them.

    Raises:
        DataError: a loss is not a number, or packed examples see each other in this model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        trainer = FilledSFTTrainer(
            model=model,
            args=arguments(job, training, base.dtype, scratch),
            train_dataset=Dataset.from_list([row._asdict() for row in rows]),
            processing_class=base.tokenizer,
            callbacks=[_Reporter(job, report)],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded() else None


def arguments(job: TrainJob, training: Training, dtype: str, scratch: str) -> SFTConfig:
    """Return our settings in TRL's words."""
    on_cpu = not torch.accelerator.is_available()
    recompute = not on_cpu if training.gradient_checkpointing is None else training.gradient_checkpointing
    return SFTConfig(
        output_dir=scratch,
        seed=job.seed % 2**32,  # what numpy accepts
        num_train_epochs=training.num_epochs,
        learning_rate=training.learning_rate,
        lr_scheduler_type=SCHEDULES[training.lr_schedule],
        warmup_steps=min(training.warmup_ratio, 1 - 1e-9),  # below 1 it is a share of all steps
        per_device_train_batch_size=training.batch_size // num_processes(),
        gradient_accumulation_steps=training.gradient_accumulation,
        average_tokens_across_devices=True,  # a loss is a mean over the tokens of a whole step, whoever holds them
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        packing=training.packing,
        packing_strategy="bfd",  # whole examples; the other ways cut them
        max_length=training.max_length if training.packing else None,  # too long ones are out; TRL would cut them
        bf16=dtype == "bfloat16",
        use_cpu=on_cpu,
        gradient_checkpointing=recompute,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


class _Reporter(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked here
    """Reports every optimiser step, and stops at a loss that is not a number."""

    def __init__(self, job: TrainJob, report: Report) -> None:
        self.job, self.report = job, report

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise DataError(
                f"training {self.job.agent}: the loss is {logs['loss']} at step {state.global_step}. "
                "Use a smaller train.learning_rate, or engine.dtype=float32."
            )
        progress = TrainProgress(
            agent=self.job.agent,
            step=state.global_step,
            num_steps=state.max_steps,
            loss=logs["loss"],
            tokens=int(logs["num_tokens"]),
            learning_rate=logs.get("learning_rate"),
        )
        self.report(progress)


class FilledSFTTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer, with batches that do not depend on the number of processes, and a check of packed rows."""

    train_dataset: Any
    _total_train_tokens: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checked = not self.padding_free
        self._num_rows = len(self.train_dataset)
        if self.accelerator.num_processes > 1:
            self.train_dataset = concatenate_datasets([self.train_dataset, self._row_without_loss()])

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Do the forward and backward passes of a batch."""
        if not self._checked:
            self._refuse_mixing(model, self._prepare_inputs(inputs))
        if self.accelerator.num_processes == 1 or self.padding_free:
            return super().training_step(model, inputs, num_items_in_batch)
        tokens = inputs["attention_mask"][(inputs["labels"] != IGNORED).any(1)].sum()  # TRL counts rows that fill up
        total = self._total_train_tokens + int(self.accelerator.reduce(tokens.to(self.accelerator.device)))
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._total_train_tokens = total
        self._metrics["train"]["num_tokens"] = [total]
        return loss

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
        """Make sure that a row's last example is as likely whatever precedes it; rows of one example tell nothing."""
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
        self._checked = self._all(bool((a - b)[:, last:].abs().max() <= TOLERANCE))
        if not self._checked:
            raise DataError(
                f"train.packing: in {self.model.config.model_type} models packed examples see each other, so that "
                "an agent would learn from answers to other questions. Set train.packing=false."
            )


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
        """Set the epoch, which is part of the seed."""
        self.inner.set_epoch(epoch)
