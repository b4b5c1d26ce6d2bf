"""The child process of `maft.trainers.sft`: trains the jobs of a jobs file in turn, with the base model loaded once.

python -m maft.trainers.sft_worker jobs.json < pipe-that-closes-when-the-parent-dies

With several processes `accelerate launch` starts one of these for each; only the first one writes and reports.
"""

import json
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import maft
from maft import files, models
from maft.config import EngineConfig, TrainConfig, Training
from maft.errors import DataError
from maft.files import appearing_whole
from maft.models import probe
from maft.records import Example
from maft.trainers import cards
from maft.trainers.base import TrainJob, TrainProgress
from maft.trainers.base_model import BaseModel, is_first, num_processes, sharded
from maft.trainers.dialogue_tokens import DialogueTokens, tokenize

Report = Callable[[TrainProgress], None]

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
LIBRARIES = ("torch", "transformers", "trl", "peft")


def main() -> int:
    """Train the jobs of the file named on the command line, reporting on standard output."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    channel = _private_stdout()
    _end_with_parent()
    jobs = [TrainJob.model_validate(job) for job in request["jobs"]]

    def report(progress: TrainProgress) -> None:
        if is_first():
            _send(channel, {"progress": progress.model_dump()})

    try:
        settings = TrainConfig.model_validate(request["settings"])
        train_all(jobs, settings, request["dtype"], report, EngineConfig.model_validate(request["engine"]))
    except DataError as error:
        _send(channel, {"error": {"kind": "DataError", "message": str(error)}})
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _send(channel, {"error": {"kind": "memory", "message": str(error).splitlines()[0]}})
        return 1
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    """Recognise what torch raises on GPUs and what its allocator says on a CPU."""
    said = f"{type(error).__name__} {error}"
    return any(words in said for words in ("OutOfMemory", "out of memory", "MemoryError", "can't allocate memory"))


def _private_stdout() -> IO[str]:
    """Return what was standard output, and send what libraries print there to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _send(channel: IO[str], event: dict[str, Any]) -> None:
    channel.write(json.dumps(event) + "\n")
    channel.flush()


def _end_with_parent() -> None:
    """End this process when its standard input closes: the parent is dead, even if by kill -9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too, but it is the parent who decides

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def train_all(
    jobs: Sequence[TrainJob], settings: TrainConfig, dtype: str, report: Report, engine: EngineConfig | None = None
) -> None:
    """Make the output folder of each job."""
    base: BaseModel | None = None
    dtype = models.usable_dtype(dtype)
    if dtype == "float32":  # `accelerate launch` was told the precision before anyone had looked at the hardware
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    # Where weights are divided, the libraries must know of it before they load any: while this object lives, they do.
    announced = _arguments(jobs[0], jobs[0].training(settings), dtype, os.devnull) if sharded() else None
    for job in jobs:
        if base is None or base.name != job.base_model or not base.pristine:
            base = None  # free the old one before the new one is there
            base = BaseModel(job.base_model, dtype, settings.method, engine)
        train(job, settings, base, report)
    del announced


def train(job: TrainJob, settings: TrainConfig, base: BaseModel, report: Report) -> None:
    """Finetune one agent and make its output folder."""
    started = time.monotonic()
    examples = files.read_records(job.examples, Example)
    training = job.training(settings)
    rows = [tokenize(base.template, e.messages, training.loss_turns, e.token_ids) for e in examples]
    kept = [row for row in rows if len(row.input_ids) <= training.max_length]
    model = base.trainable(job, training)
    losses, state = _fit(job, training, base, model, kept, report) if kept else ([], None)
    summary = _summary(job, training, base, rows, kept, losses) | {"seconds": round(time.monotonic() - started, 1)}
    if base.method == "lora" and not sharded():
        summary["probe"] = probe.of_adapter(model, probe.token_ids(base.tokenizer)).model_dump()
    if is_first():
        with appearing_whole(job.output) as folder:
            if not kept and job.init_adapter is not None and base.method != "full":
                shutil.copytree(job.init_adapter, folder, dirs_exist_ok=True)
            else:
                base.save(model, folder, state)
            (folder / "training.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            (folder / "README.md").write_text(_card(job, training, summary), encoding="utf-8")
    if not sharded():  # divided weights stay divided, and this process ends
        base.restore(model)
    if not kept:
        report(TrainProgress(agent=job.agent, step=0, num_steps=0, loss=None, tokens=0))


def _fit(
    job: TrainJob, training: Training, base: BaseModel, model: Any, rows: Sequence[DialogueTokens], report: Report
) -> tuple[list[float], dict[str, Any] | None]:
    """Run the optimiser; return the loss of each step and, where weights are divided, the whole of them."""
    from datasets import Dataset

    from maft.trainers.fast_sft import FastSFTTrainer

    dataset = Dataset.from_list([row._asdict() for row in rows])
    with tempfile.TemporaryDirectory() as scratch:
        trainer = FastSFTTrainer(
            model=model,
            args=_arguments(job, training, base.dtype, scratch),
            train_dataset=dataset,
            processing_class=base.tokenizer,
            callbacks=[_reporter(job, report)],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded() else None


def _arguments(job: TrainJob, training: Training, dtype: str, scratch: str) -> Any:
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


def _summary(
    job: TrainJob,
    training: Training,
    base: BaseModel,
    rows: Sequence[DialogueTokens],
    kept: Sequence[DialogueTokens],
    losses: Sequence[float],
) -> dict[str, Any]:
    """Return what training.json says."""
    epochs = training.num_epochs
    return {
        "agent": job.agent,
        "role": job.role,
        "iteration": job.iteration,
        "seed": job.seed,
        "init_adapter": job.init_adapter and job.init_adapter.name,
        "method": base.method,
        "trained": bool(kept),
        "num_examples": len(rows),
        "num_dropped_too_long": len(rows) - len(kept),
        "steps": len(losses),
        "tokens": epochs * sum(len(row.input_ids) for row in kept),
        "completion_tokens": epochs * sum(row.num_completion_tokens for row in kept),
        "losses": list(losses),
        "dtype": base.dtype,
        "num_processes": num_processes(),
        "versions": {"maft": maft.__version__} | {name: metadata.version(name) for name in LIBRARIES},
    }


def _card(job: TrainJob, training: Training, summary: dict[str, Any]) -> str:
    base = models.public_name(job.base_model)
    return cards.card(cards.Finetuned(job.agent, job.role, job.iteration, base, training, summary))


if __name__ == "__main__":
    sys.exit(main())
