"""The child process of `maft.trainers.sft`: trains the jobs of a jobs file in turn, with the base model loaded once.

python -m maft.trainers.sft_worker jobs.json < pipe-that-closes-when-the-parent-dies
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
from maft import models, store
from maft.config import TrainConfig
from maft.errors import DataError
from maft.records import Example
from maft.trainers.base import TrainJob, TrainProgress
from maft.trainers.dialogue_tokens import DialogueTokens, tokenize
from maft.trainers.fast_sft import fast_trainer_class
from maft.trainers.folder import appearing_whole

Report = Callable[[TrainProgress], None]

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
LIBRARIES = ("torch", "transformers", "trl", "peft")


def main() -> int:
    """Train the jobs of the file named on the command line, reporting on standard output."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    channel = _private_stdout()
    _end_with_parent()
    jobs = [TrainJob.model_validate(job) for job in request["jobs"]]
    try:
        train_all(
            jobs,
            TrainConfig.model_validate(request["settings"]),
            request["dtype"],
            lambda progress: _send(channel, {"progress": progress.model_dump()}),
        )
    except DataError as error:
        _send(channel, {"error": {"kind": "DataError", "message": str(error)}})
        return error.exit_code
    return 0


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


def train_all(jobs: Sequence[TrainJob], settings: TrainConfig, dtype: str, report: Report) -> None:
    """Make the output folder of each job."""
    base: BaseModel | None = None
    for job in jobs:
        if base is None or base.name != job.base_model:
            base = None  # free the old one before the new one is there
            base = BaseModel(job.base_model, dtype)
        train(job, settings, base, report)


class BaseModel:
    """The weights that all jobs share, frozen, and their tokenizer."""

    def __init__(self, name: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import is_torch_bf16_gpu_available

        fast_trainer_class().narrow = None
        self.name = name
        self.on_cpu = not torch.accelerator.is_available()
        if dtype == "bfloat16" and not self.on_cpu and not is_torch_bf16_gpu_available():
            dtype = "float32"
        self.dtype = dtype
        folder = models.resolve(name)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        except (OSError, ValueError) as error:
            raise DataError(f"model {name} cannot be loaded: {str(error).splitlines()[0]}") from None

    def adapted(self, job: TrainJob, settings: TrainConfig) -> Any:
        """Return the model with a trainable adapter: the one to go on from, or a new one drawn by the job's seed."""
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import set_seed

        set_seed(_seed(job))
        if job.init_adapter is not None:
            models.check_adapter(job.init_adapter, models.resolve(self.name))
            return PeftModel.from_pretrained(self.model, job.init_adapter, is_trainable=True)
        lora = settings.lora
        targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        shape = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(self.model, shape)

    def restore(self, adapted: Any) -> None:
        """Take the adapter out of the base model, which is then as it was loaded."""
        self.model = adapted.unload()
        self.model.__dict__.pop("forward", None)  # where TRL puts its own language-model head
        self.model.__dict__.pop("peft_config", None)


def train(job: TrainJob, settings: TrainConfig, base: BaseModel, report: Report) -> None:
    """Finetune one agent and make its output folder."""
    started = time.monotonic()
    examples = store.read_records(job.examples, Example)
    rows = [tokenize(base.tokenizer, example.messages, settings.loss_turns) for example in examples]
    kept = [row for row in rows if len(row.input_ids) <= settings.max_length]
    adapted = base.adapted(job, settings)
    losses = _fit(job, settings, base, adapted, kept, report) if kept else []
    summary = _summary(job, settings, base, rows, kept, losses) | {"seconds": round(time.monotonic() - started, 1)}
    with appearing_whole(job.output) as folder:
        if not kept and job.init_adapter is not None:
            shutil.copytree(job.init_adapter, folder, dirs_exist_ok=True)
        else:
            _save(adapted, folder)
        (folder / "training.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_model_card(job, settings, summary), encoding="utf-8")
    base.restore(adapted)
    if not kept:
        report(TrainProgress(agent=job.agent, step=0, num_steps=0, loss=None, tokens=0))


def _save(adapted: Any, folder: Path) -> None:
    """Save the adapter in PEFT's format; equal adapters give equal bytes."""
    adapted.save_pretrained(folder, save_embedding_layers=False)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # PEFT holds them in a set
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _fit(
    job: TrainJob, settings: TrainConfig, base: BaseModel, adapted: Any, rows: Sequence[DialogueTokens], report: Report
) -> list[float]:
    """Run the optimiser; return the loss of each step."""
    from datasets import Dataset

    dataset = Dataset.from_list([row._asdict() for row in rows])
    with tempfile.TemporaryDirectory() as scratch:
        trainer = fast_trainer_class()(
            model=adapted,
            args=_arguments(job, settings, base, scratch),
            train_dataset=dataset,
            processing_class=base.tokenizer,
            callbacks=[_reporter(job, report)],
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _arguments(job: TrainJob, settings: TrainConfig, base: BaseModel, scratch: str) -> Any:
    """Return our settings in TRL's words."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=scratch,
        seed=_seed(job),
        num_train_epochs=settings.num_epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=SCHEDULES[settings.lr_schedule],
        warmup_steps=min(settings.warmup_ratio, 1 - 1e-9),  # below 1 it is a share of all steps
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        max_length=None,  # too long ones are out already; TRL would cut them
        bf16=base.dtype == "bfloat16",
        use_cpu=base.on_cpu,
        gradient_checkpointing=not base.on_cpu,  # it saves memory, which a CPU has, for time, which it has not
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
                )
            )

    return Reporter()


def _seed(job: TrainJob) -> int:
    return job.seed % 2**32  # what numpy accepts


def _summary(
    job: TrainJob,
    settings: TrainConfig,
    base: BaseModel,
    rows: Sequence[DialogueTokens],
    kept: Sequence[DialogueTokens],
    losses: Sequence[float],
) -> dict[str, Any]:
    """Return what training.json says."""
    epochs = settings.num_epochs
    return {
        "agent": job.agent,
        "role": job.role,
        "iteration": job.iteration,
        "seed": job.seed,
        "init_adapter": job.init_adapter and job.init_adapter.name,
        "trained": bool(kept),
        "num_examples": len(rows),
        "num_dropped_too_long": len(rows) - len(kept),
        "steps": len(losses),
        "tokens": epochs * sum(len(row.input_ids) for row in kept),
        "completion_tokens": epochs * sum(row.num_completion_tokens for row in kept),
        "losses": list(losses),
        "dtype": base.dtype,
        "versions": {"maft": maft.__version__} | {name: metadata.version(name) for name in LIBRARIES},
    }


_CARD = """\
---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags:
- maft
- lora
- multiagent-finetuning
---

# {agent}, iteration {iteration}

A LoRA adapter of `{base}`, made with `maft` by multiagent finetuning
([arXiv 2501.05707](https://arxiv.org/abs/2501.05707)): this {role} learnt from its own debate responses that agree with
the majority vote. No ground truth was used.

| | |
|---|---|
| Role | {role} |
| Started from | {start} |
| Data | {data} |
| Result | {result} |
| Hyperparameters | {hyperparameters} |
| Versions | {versions} |
"""


def _model_card(job: TrainJob, settings: TrainConfig, summary: dict[str, Any]) -> str:
    """Return the adapter's README.md."""
    losses = summary["losses"]
    dropped = summary["num_dropped_too_long"]
    chosen = settings.model_dump(mode="json")
    lora = chosen.pop("lora")
    return _CARD.format(
        base=_public_name(job.base_model),
        agent=job.agent,
        role=job.role,
        iteration=job.iteration,
        start="the base model" if job.init_adapter is None else f"the adapter `{job.init_adapter.name}`",
        data=f"{summary['num_examples']} examples, {dropped} dropped as longer than {settings.max_length} tokens; "
        f"{summary['tokens']} tokens over all epochs, {summary['completion_tokens']} of them with loss",
        result=f"loss {losses[0]:.4f} at the first of {len(losses)} steps, {losses[-1]:.4f} at the last"
        if losses
        else "not trained, for there was no example: the weights are those that it started from",
        hyperparameters=", ".join(f"{key} {value}" for key, value in [*_flat(lora), *chosen.items()]),
        versions=", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    )


def _flat(lora: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(f"lora.{key}", value) for key, value in lora.items()]


def _public_name(model: str) -> str:
    """Return a name that means something elsewhere: the hub's, or that of the folder without its path."""
    if model.lower() == models.PACKAGED:
        return "HuggingFaceTB/SmolLM2-135M-Instruct"
    return Path(model).name if Path(model).is_dir() else model


if __name__ == "__main__":
    sys.exit(main())
