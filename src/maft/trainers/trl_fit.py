"""Finetuning of one agent by TRL: several processes, all weights, packed rows, and what the packed loop cannot do."""

import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from maft.config import Training
from maft.errors import DataError
from maft.trainers.base import TrainJob, TrainProgress
from maft.trainers.base_model import BaseModel, num_processes, sharded
from maft.trainers.dialogue_tokens import DialogueTokens

Report = Callable[[TrainProgress], None]
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def fit(
    job: TrainJob, training: Training, base: BaseModel, model: Any, rows: Sequence[DialogueTokens], report: Report
) -> tuple[list[float], dict[str, Any] | None]:
    """Run the optimiser; return the loss of each step and, where weights are divided, the whole of them."""
    from datasets import Dataset

    from maft.trainers.fast_sft import FastSFTTrainer

    if not base.knows.setdefault("fast_sft", False):
        FastSFTTrainer.forget_model()
        base.knows["fast_sft"] = True
    dataset = Dataset.from_list([row._asdict() for row in rows])
    with tempfile.TemporaryDirectory() as scratch:
        trainer = FastSFTTrainer(
            model=model,
            args=arguments(job, training, base.dtype, scratch),
            train_dataset=dataset,
            processing_class=base.tokenizer,
            callbacks=[_reporter(job, report)],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded() else None


def arguments(job: TrainJob, training: Training, dtype: str, scratch: str) -> Any:
    """Return our settings in TRL's words."""
    import torch
    from trl import SFTConfig

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


def _reporter(job: TrainJob, report: Report) -> Any:
    """Return a callback that reports every optimiser step and stops at a loss that is no number."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked here
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" not in logs:
                return
            if not math.isfinite(logs["loss"]):
                raise DataError(
                    f"training {job.agent}: the loss is {logs['loss']} at step {state.global_step}. "
                    "Use a smaller train.learning_rate, or engine.dtype=float32."
                )
            report(
                TrainProgress(
                    agent=job.agent,
                    step=state.global_step,
                    num_steps=state.max_steps,
                    loss=logs["loss"],
                    tokens=int(logs["num_tokens"]),
                    learning_rate=logs.get("learning_rate"),
                )
            )

    return Reporter()
