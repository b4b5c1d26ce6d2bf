"""How long a run takes on GPUs.

Rates are shares of a GPU's data sheet, with what does not grow with the work: launching kernels and starting processes.
The shares were fitted to measurements on one NVIDIA H200 with the transformers engine and maft's own training loop,
which docs/scale.md has beside the plans; other GPUs and engines are scaled by their data sheets.
"""

import heapq
import math
from typing import NamedTuple

from maft.config import RunConfig
from maft.method import protocol_of
from maft.models.shapes import Shape
from maft.planning import costs, hardware
from maft.planning.forecast import Forecast, Stage
from maft.planning.hardware import Gpu
from maft.records import Record

GPUS_OF_A_MACHINE = 8


class Hours(Record):
    """How long a run takes on GPUs of a kind."""

    gpu: str
    num_gpus: int
    gpus_per_engine: int
    """GPUs that one copy of the model is spread over while sampling."""
    sequences: int
    """Replies that one engine writes at the same time."""
    gpus_per_training: int
    trainings_at_once: int
    starting: float
    """Loading the model, capturing graphs, starting processes."""
    sampling: float
    training: float
    bound_by: str
    """The part that takes the most time."""

    @property
    def total(self) -> float:
        """Starting, sampling and finetuning."""
        return self.starting + self.sampling + self.training


class Sampling(NamedTuple):
    """Seconds of one engine."""

    reading: float
    """Prompts."""
    products: float
    """Matrix products of replies."""
    bandwidth: float
    """Reading weights and cache for every token of the replies."""
    kernels: float
    """Launching kernels, and those that are neither of both."""

    @property
    def total(self) -> float:
        """Products and bandwidth overlap."""
        return self.reading + max(self.products, self.bandwidth) + self.kernels


def on_gpus(config: RunConfig, shape: Shape, run: Forecast, gpu: Gpu, num_gpus: int, method: str) -> Hours | None:
    """Return the hours on GPUs, all of them busy; None where they do not hold the model."""
    usable = gpu.memory_gb * costs.GIGA * hardware.USABLE_MEMORY
    one = costs.sampling_memory(config, shape, run.longest, 1)
    per_engine = _spread(one.total, usable, num_gpus)
    per_training = _spread(
        costs.training_memory(config, shape, run, method, hardware.NO_MEMORY).total, usable, num_gpus
    )
    if per_engine is None or per_training is None:
        return None
    full = costs.sampling_memory(config, shape, hardware.READ_TOKENS, 1)
    room = usable * per_engine - full.total + full.cache
    most = config.engine.max_sequences or costs.SEQUENCES
    widest = config.engine.batch_size * costs.most_at_once(config)
    fitting = int(room // (run.mean * shape.kv_bytes_per_token(config.engine.dtype)))
    sequences = max(1, min(most, widest, fitting))
    engines = num_gpus // per_engine
    seconds = _sampling(config, shape, run, gpu, per_engine, sequences, engines)
    training, per_training = min(
        (finetuning(config, shape, run, gpu, num_gpus, wider, method), wider)
        for wider in (per_training << doublings for doublings in range(num_gpus.bit_length()))
        if wider <= num_gpus and wider <= max(per_training, GPUS_OF_A_MACHINE)
    )
    starting = (config.num_iterations + 1) * hardware.ENGINE_START + config.num_iterations * hardware.TRAINING_START
    groups, at_once = costs.by_iteration(costs.jobs(config, shape, run, method)), num_gpus // per_training
    writing = max(seconds.products, seconds.bandwidth)
    parts = {
        "starting": starting,
        "reading prompts (matrix products)": seconds.reading,
        "writing replies (matrix products)": writing if seconds.products >= seconds.bandwidth else 0.0,
        "writing replies (memory bandwidth)": writing if seconds.bandwidth > seconds.products else 0.0,
        "writing replies (launching kernels)": seconds.kernels,
        "finetuning": training,
    }
    return Hours(
        gpu=gpu.name,
        num_gpus=num_gpus,
        gpus_per_engine=per_engine,
        sequences=sequences,
        gpus_per_training=per_training,
        trainings_at_once=max(map(len, groups)) if groups and _in_same_steps(config, num_gpus, method) else at_once,
        starting=starting / 3600,
        sampling=seconds.total / 3600,
        training=training / 3600,
        bound_by=max(parts, key=lambda name: parts[name]),
    )


def _spread(need: float, usable: float, num_gpus: int) -> int | None:
    """Return the smallest power of two of GPUs that hold `need` bytes; None if that is more than `num_gpus`."""
    count = 1 << max(0, math.ceil(math.log2(need / usable)))
    return count if count <= num_gpus else None


def _in_same_steps(config: RunConfig, num_gpus: int, method: str) -> bool:
    return num_gpus == 1 and costs.together(config, method)


def finetuning(
    config: RunConfig, shape: Shape, run: Forecast, gpu: Gpu, num_gpus: int, per_training: int, method: str
) -> float:
    """Return the seconds of all finetunings, `num_gpus // per_training` of them at a time."""
    rate = gpu.tflops * 1e12 * per_training * hardware.TRAINING_SHARE
    launch = shape.layers * hardware.TRAINING_LAUNCH
    seconds = 0.0
    for group in costs.by_iteration(costs.jobs(config, shape, run, method)):
        at_once = min(num_gpus // per_training, len(group))
        if _in_same_steps(config, num_gpus, method):
            seconds += sum(job.flops for job in group) / rate + max(job.passes for job in group) * launch
            continue
        busy = [0.0] * at_once
        for each in sorted((job.flops / rate + job.passes * launch for job in group), reverse=True):
            heapq.heapreplace(busy, busy[0] + each)  # the longest first, each on the GPUs that are free first
        seconds += max(busy)
    return seconds


def _sampling(
    config: RunConfig, shape: Shape, run: Forecast, gpu: Gpu, per_engine: int, sequences: int, engines: int
) -> Sampling:
    """Return the seconds of `engines` engines that share all calls."""
    rounds = protocol_of(config.debate).rounds(config.debate)
    parts = [
        of_stage(config, shape, gpu, stage, run.mean, max(1, min(sequences, stage.calls // rounds)), per_engine)
        for stage in run.stages
        if stage.calls
    ]
    return Sampling(*(sum(numbers) / engines for numbers in zip(*parts, strict=True)))


def of_stage(
    config: RunConfig, shape: Shape, gpu: Gpu, stage: Stage, mean: float, sequences: int, gpus: int = 1
) -> Sampling:
    """Return the seconds of a stage's calls on one engine of `gpus` GPUs, `sequences` replies at a time.

    `mean` is the number of tokens in the cache for a reply, `sequences` that of replies written at the same time.
    """
    dtype, adapted = config.engine.dtype, bool(stage.society) and config.train.method != "full"
    rate, bandwidth = gpu.tflops * 1e12 * gpus, gpu.bandwidth_gb * costs.GIGA * gpus
    prompt, reply = stage.prompt_tokens / stage.calls, stage.generated_tokens / stage.calls
    read = stage.calls * shape.forward_flops(prompt, 0)
    written = stage.calls * shape.forward_flops(prompt, reply) - read
    chunks, steps = math.ceil(stage.prompt_tokens / hardware.READ_TOKENS), stage.generated_tokens / sequences
    step = shape.weight_bytes(dtype) + sequences * mean * shape.kv_bytes_per_token(dtype)
    small = hardware.STEP_LAUNCH + adapted * hardware.ADAPTER_LAUNCH
    small += hardware.SMALL_KERNEL_BYTES * shape.hidden * sequences / bandwidth
    return Sampling(
        reading=read / (rate * hardware.READING_SHARE) + chunks * shape.layers * hardware.READ_LAUNCH,
        products=written / (rate * hardware.WRITING_SHARE),
        bandwidth=steps * step / (bandwidth * hardware.BANDWIDTH_SHARE),
        kernels=steps * shape.layers * small,
    )
