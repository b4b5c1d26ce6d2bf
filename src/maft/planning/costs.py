"""What calls and tokens cost on a machine: compute, memory, disk, hours."""

import heapq
import math

from maft.config import RunConfig
from maft.config.prompts import Prompts
from maft.method import bases, learners, protocol_of
from maft.models import shapes
from maft.models.shapes import BYTES, Shape
from maft.planning import hardware
from maft.planning.forecast import Forecast
from maft.planning.hardware import Gpu
from maft.records import Record

METHODS = ("lora", "qlora", "full")
QUANTISED_BYTES = 0.516
"""Of a parameter in 4 bits (NF4), with its share of the doubly quantised scales."""
SEQUENCES = 256
"""Replies written at the same time by one engine, where engine.max_sequences is not set."""
BYTES_PER_CALL, BYTES_PER_TOKEN = 150.0, 3.5
"""Of a debate on the disk: of a call, and of each token that is new in it."""
GPUS_OF_A_MACHINE = 8
FLOAT32, ADAM = 4, 8
GIGA = 1e9


class Memory(Record):
    """Bytes of memory, by use."""

    weights: float
    adapters: float = 0.0
    cache: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0

    @property
    def total(self) -> float:
        """All bytes."""
        return float(sum(value for _, value in self))


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
    sampling: float
    training: float
    bound_by: str
    """The part that takes the most time."""

    @property
    def total(self) -> float:
        """Sampling and finetuning."""
        return self.sampling + self.training


def lora_parameters(config: RunConfig, shape: Shape) -> int:
    """Return the parameters of one adapter."""
    return shape.lora_parameters(config.train.lora.rank, config.train.lora.target_modules)


def sampling_flops(shape: Shape, run: Forecast) -> float:
    """Return the FLOP of all debates, without a prefix cache."""
    return sum(
        stage.calls * shape.forward_flops(stage.prompt_tokens / stage.calls, stage.generated_tokens / stage.calls)
        for stage in run.stages
        if stage.calls
    )


def training_flops(config: RunConfig, shape: Shape, run: Forecast, method: str) -> float:
    """Return the FLOP of all finetunings."""
    lora = lora_parameters(config, shape)
    return sum(shape.training_flops(training.tokens, training.row, method, lora) for training in run.trainings)


def sampling_memory(config: RunConfig, shape: Shape, tokens: float, sequences: int) -> Memory:
    """Return the memory of an engine with the society's bases and adapters, and a cache for `sequences`."""
    dtype = config.engine.dtype
    held = 0 if config.train.method == "full" else config.vllm.max_loras or len(learners(config))
    adapters = held * lora_parameters(config, shape) * BYTES[dtype]
    cache = sequences * tokens * shape.kv_bytes_per_token(dtype)
    return Memory(weights=weights(config, shape), adapters=adapters, cache=cache)


def weights(config: RunConfig, shape: Shape) -> float:
    """Return the bytes of all base models; an unknown one counts as `model`."""
    each = (shape if base == config.model else shapes.of_model(base) or shape for base in bases(config))
    return float(sum(one.weight_bytes(config.engine.dtype) for one in each))


def training_memory(config: RunConfig, shape: Shape, row: float, method: str) -> Memory:
    """Return the memory of one finetuning, with gradient checkpointing.

    LoRA: the base in its dtype (QLoRA: its linear layers in 4 bits), the adapter, its gradients and Adam's two moments
    in float32. Full: weights, gradients and moments of everything in float32, 16 bytes for each parameter. Activations:
    the input of every block, all of one block (34 bytes for each token and hidden unit), and the logits with their
    gradient in float32.
    """
    lora = lora_parameters(config, shape)
    trained = shape.parameters if method == "full" else lora
    base = float(shape.weight_bytes(config.engine.dtype))
    if method == "qlora":
        base += shape.linear_parameters * (QUANTISED_BYTES - BYTES[config.engine.dtype])
    roles, iterations = ("generator", "critic"), range(1, config.num_iterations + 1)
    widest = max(config.train.of(role, number).batch_size for role in roles for number in iterations)
    tokens = math.ceil(widest / config.engine.num_train_processes) * row
    blocks = tokens * shape.hidden * (shape.layers * 2 + 34)
    return Memory(
        weights=shape.parameters * FLOAT32 if method == "full" else base,
        adapters=0 if method == "full" else lora * FLOAT32,
        gradients=trained * FLOAT32,
        optimizer=trained * ADAM,
        activations=blocks + tokens * shape.vocab * 2 * FLOAT32,
    )


def disk(config: RunConfig, shape: Shape, run: Forecast, method: str) -> dict[str, float]:
    """Return the bytes of a run folder: debates, and agents of all iterations."""
    new = sum(stage.generated_tokens for stage in run.stages)
    new += sum(stage.prompt_tokens for stage in run.stages) / 2  # a dialogue is written once, and sent again each round
    num_agents = len(learners(config)) * config.num_iterations
    each = shape.weight_bytes(config.engine.dtype) if method == "full" else lora_parameters(config, shape) * FLOAT32
    return {"debates": new * BYTES_PER_TOKEN + run.calls * BYTES_PER_CALL, "agents": num_agents * each}


def hours(config: RunConfig, shape: Shape, run: Forecast, gpu: Gpu, num_gpus: int, method: str) -> Hours | None:
    """Return the hours on GPUs, all of them busy; None where they do not hold the model."""
    usable = gpu.memory_gb * GIGA * hardware.USABLE_MEMORY
    one = sampling_memory(config, shape, run.longest, 1)
    per_engine = _spread(one.total, usable, num_gpus)
    rows = max((training.row for training in run.trainings), default=0.0)
    need = training_memory(config, shape, rows, method).total
    per_training = _spread(need, usable, num_gpus)
    if per_engine is None or per_training is None:
        return None
    room = usable * per_engine - one.weights - one.adapters
    most = config.engine.max_sequences or SEQUENCES
    widest = config.engine.batch_size * most_at_once(config)
    fitting = int(room // (run.mean * shape.kv_bytes_per_token(config.engine.dtype)))
    sequences = max(1, min(most, widest, fitting))
    engines = num_gpus // per_engine
    reading, by_work, by_memory = _sampling_seconds(config, shape, run, gpu, per_engine, sequences)
    sampling = (reading + max(by_work, by_memory)) / engines
    training, per_training = min(
        (_training_seconds(config, shape, run, gpu, num_gpus, wider, method), wider)
        for wider in (per_training << doublings for doublings in range(num_gpus.bit_length()))
        if wider <= num_gpus and wider <= max(per_training, GPUS_OF_A_MACHINE)
    )
    parts = {
        "reading prompts (matrix products)": reading / engines,
        "writing replies (matrix products)": by_work / engines if by_work >= by_memory else 0.0,
        "writing replies (memory bandwidth)": by_memory / engines if by_memory > by_work else 0.0,
        "finetuning (matrix products)": training,
    }
    return Hours(
        gpu=gpu.name,
        num_gpus=num_gpus,
        gpus_per_engine=per_engine,
        sequences=sequences,
        gpus_per_training=per_training,
        trainings_at_once=num_gpus // per_training,
        sampling=sampling / 3600,
        training=training / 3600,
        bound_by=max(parts, key=lambda name: parts[name]),
    )


def _spread(need: float, usable: float, num_gpus: int) -> int | None:
    """Return the smallest power of two of GPUs that hold `need` bytes; None if that is more than `num_gpus`."""
    count = 1 << max(0, math.ceil(math.log2(need / usable)))
    return count if count <= num_gpus else None


def _training_seconds(
    config: RunConfig, shape: Shape, run: Forecast, gpu: Gpu, num_gpus: int, per_training: int, method: str
) -> float:
    """Return the seconds of all finetunings, `num_gpus // per_training` of them at a time."""
    lora, at_once = lora_parameters(config, shape), num_gpus // per_training
    rate = gpu.tflops * 1e12 * per_training * hardware.TRAINING_UTILISATION
    seconds = 0.0
    for iteration in sorted({training.iteration for training in run.trainings}):
        jobs = [
            shape.training_flops(training.tokens / training.jobs, training.row, method, lora) / rate
            for training in run.trainings
            if training.iteration == iteration
            for _ in range(training.jobs)
        ]
        busy = [0.0] * min(at_once, len(jobs))
        for job in sorted(jobs, reverse=True):  # the longest first, each on the GPUs that are free first
            heapq.heapreplace(busy, busy[0] + job)
        seconds += max(busy)
    return seconds


def _sampling_seconds(
    config: RunConfig, shape: Shape, run: Forecast, gpu: Gpu, per_engine: int, sequences: int
) -> tuple[float, float, float]:
    """Return the seconds of one engine: reading all prompts; writing all replies by work, and by memory bandwidth."""
    rate = gpu.tflops * 1e12 * per_engine * hardware.SAMPLING_UTILISATION
    whole = sampling_flops(shape, run)
    reading = sum(
        stage.calls * shape.forward_flops(stage.prompt_tokens / stage.calls, 0) for stage in run.stages if stage.calls
    )
    dtype = config.engine.dtype
    step = shape.weight_bytes(dtype) + sequences * run.mean * shape.kv_bytes_per_token(dtype)
    bandwidth = gpu.bandwidth_gb * GIGA * per_engine * hardware.BANDWIDTH_UTILISATION
    steps = run.generated_tokens / sequences
    return reading / rate, (whole - reading) / rate, steps * step / bandwidth


def most_at_once(config: RunConfig) -> int:
    """Return the largest number of calls that one debate can have answered at the same time."""
    return max(kind.times for kind in protocol_of(config.debate).kinds(config.debate, Prompts()))
