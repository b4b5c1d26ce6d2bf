"""How the worker is started: alone, or as several processes by `accelerate launch`, with configs made from ours."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import maft
from maft import models
from maft.config import EngineConfig, RunConfig, TrainConfig
from maft.errors import ConfigError, MissingExtra
from maft.models import memory, shapes
from maft.trainers import objectives
from maft.trainers.base import TrainJob

WORKER_BYTES = 2.5e9
"""Memory of a worker on a CPU beside the weights: libraries, activations, optimiser."""
WORKER = (sys.executable, "-P", "-m", "maft.trainers.sft_worker")


def check(config: RunConfig) -> None:
    """Refuse, before anything is loaded, a finetuning that this machine or environment cannot do.

    Raises:
        MissingExtra: TRL, PEFT, bitsandbytes or DeepSpeed is needed and not installed.
        ConfigError: there are no GPUs for it, or too few.
    """
    engine, method = config.engine, config.train.method
    if not all(map(find_spec, ("torch", "trl", "peft", "datasets"))):
        raise MissingExtra("engine.trainer=local", "hf")
    chosen = set(config.train.objectives(config.num_iterations).values())
    for name in chosen:
        objectives.make(name)
    if chosen != {"sft"} and (method == "full" or config.train.packing or engine.num_train_processes > 1):
        raise ConfigError(
            f"train.objective = {max(chosen - {'sft'})} needs train.method=lora or qlora, train.packing=false and "
            "engine.num_train_processes=1."
        )
    if config.train.online_questions and (method == "full" or config.train.packing or engine.num_train_processes > 1):
        raise ConfigError(
            "train.online_questions continues each agent's optimiser from turn to turn, which TRL's trainer does not. "
            "Set train.method=lora or qlora, train.packing=false and engine.num_train_processes=1."
        )
    if method != "qlora" and engine.num_train_processes == 1:
        return
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = f"{gpus} CUDA GPU{'s' * (gpus != 1)}" if gpus else "no CUDA GPU"
    if method == "qlora" and not gpus:
        raise ConfigError(
            f"train.method = qlora quantises with bitsandbytes on CUDA, and this machine has {there}. "
            "Use train.method=lora here, or run on a machine with a CUDA GPU."
        )
    if method == "qlora" and find_spec("bitsandbytes") is None:
        raise MissingExtra("train.method=qlora", "qlora")
    if engine.train_sharding != "none" and not gpus:
        raise ConfigError(
            f"engine.train_sharding = {engine.train_sharding} divides a model among CUDA GPUs, and this machine has "
            f"{there}. Use engine.train_sharding=none here, which several processes on a CPU can do."
        )
    if engine.train_sharding == "deepspeed" and find_spec("deepspeed") is None:
        raise MissingExtra("engine.train_sharding=deepspeed", "deepspeed")
    if gpus and engine.num_train_processes > gpus:
        raise ConfigError(
            f"engine.num_train_processes = {engine.num_train_processes} asks for a GPU each, and this machine has "
            f"{there}. Set it to {gpus} or fewer."
        )


def side_by_side(engine: EngineConfig, jobs: Sequence[TrainJob], settings: TrainConfig) -> int:
    """Return how many workers share the jobs: on a CPU one for each core, as far as jobs and memory suffice."""
    import torch

    if torch.accelerator.is_available() or settings.method == "full" or settings.together is True:
        return 1
    threads = engine.num_threads or memory.num_cores()
    sizes = [shape.weight_bytes("float32") for shape in map(_shape, {job.base_model for job in jobs}) if shape]
    fit = int(memory.free_ram() // (max(sizes, default=0.0) + WORKER_BYTES)) if sizes else 1
    return max(1, min(threads, fit, len(jobs)))


def _shape(model: str) -> shapes.Shape | None:
    return shapes.of_model(models.resolve(model))


def command(engine: EngineConfig, jobs: Path) -> list[str]:
    """Return the command that trains a jobs file, after writing what it needs beside that file."""
    if engine.num_train_processes == 1:
        return [*WORKER, str(jobs)]
    folder = jobs.parent
    file = folder / "accelerate.json"
    if engine.train_sharding == "deepspeed":
        (folder / "deepspeed.json").write_text(json.dumps(DEEPSPEED, indent=2), encoding="utf-8")
    file.write_text(json.dumps(accelerate_config(engine, folder), indent=2), encoding="utf-8")
    start = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file", str(file)]
    return [*start, "-m", "maft.trainers.sft_worker", str(jobs)]


def accelerate_config(engine: EngineConfig, folder: Path) -> dict[str, Any]:
    """Return the config of `accelerate launch` for one machine."""
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        # Its one way to start processes without MPI, on a CPU as well: the worker itself looks what hardware there is.
        "distributed_type": "MULTI_GPU",
        "num_machines": 1,
        "machine_rank": 0,
        "num_processes": engine.num_train_processes,
        "main_process_port": 0,  # any that is free
        "main_training_function": "main",
        "mixed_precision": "bf16" if engine.dtype == "bfloat16" else "no",
        "use_cpu": False,
        "debug": False,
    }
    if engine.train_sharding == "fsdp":
        config |= {"distributed_type": "FSDP", "fsdp_config": FSDP2}
    if engine.train_sharding == "deepspeed":
        file = {"deepspeed_config_file": str(folder / "deepspeed.json"), "zero3_init_flag": True}
        config |= {"distributed_type": "DEEPSPEED", "deepspeed_config": file}
        del config["mixed_precision"]  # stands in DeepSpeed's own file
    return config


FSDP2: Mapping[str, Any] = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_reshard_after_forward": True,
    "fsdp_state_dict_type": "FULL_STATE_DICT",
    "fsdp_cpu_ram_efficient_loading": True,
    "fsdp_offload_params": False,
    "fsdp_activation_checkpointing": False,
}
"""FSDP2: weights, gradients and optimiser states divided. Checkpointing of activations is the trainer's business."""


DEEPSPEED: Mapping[str, Any] = {
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "bf16": {"enabled": "auto"},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
"""DeepSpeed's own config: ZeRO-3; `auto` is filled in by transformers from each job's settings."""


def environment(engine: EngineConfig, share: int = 1) -> dict[str, str]:
    """Return the environment of a worker: ours, with our own package to be found, over the defaults.

    Args:
        engine: threads, and processes that train one agent together.
        share: how many workers share the threads.
    """
    paths = [str(Path(maft.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Nothing of the working folder is imported, such as somebody's trl.py, by processes of a launcher neither.
    made = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    processes = engine.num_train_processes * share
    # With several visible GPUs and one process transformers would wrap the model in DataParallel, which TRL refuses.
    one_gpu = {"CUDA_VISIBLE_DEVICES": "0"} if engine.num_train_processes == 1 else {}
    defaults = {"TOKENIZERS_PARALLELISM": "false"} | one_gpu
    if engine.num_threads or processes > 1:
        threads = engine.num_threads or memory.num_cores()
        made["OMP_NUM_THREADS"] = str(max(1, threads // processes))
    return defaults | os.environ | made
