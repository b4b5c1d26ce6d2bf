"""What calls and tokens cost on a machine: compute, memory, disk."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from maft.config import RunConfig
from maft.config.prompts import Prompts
from maft.method import bases, learners, protocol_of
from maft.models import shapes
from maft.models.shapes import BYTES, Shape
from maft.planning import hardware
from maft.planning.forecast import Forecast
from maft.records import Record

METHODS = ("lora", "qlora", "full")
QUANTISED_BYTES = 0.516
"""Of a parameter in 4 bits (NF4), with its share of the doubly quantised scales."""
SEQUENCES = 256
"""Replies written at the same time by one engine, where engine.max_sequences is not set."""
BYTES_PER_CALL, BYTES_PER_TOKEN = 150.0, 3.5
"""Of a debate on the disk: of a call, and of each token that is new in it."""
HIDDEN_BYTES, INTERMEDIATE_BYTES = 24, 7
"""Of a block's activations in finetuning, for each token and unit; measured in sum, on one H200, from 135M to 1.5B."""
READING_BYTES, ADAPTED_BYTES = 38, 18
"""Of activations in reading prompts, for each hidden unit and token, and more with adapters; measured there, too."""
PART_TOKENS = (1024, 65536)
"""Tokens that maft's own training loop has in one pass, at most: on a CPU, on a GPU."""
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
    """Return the memory of an engine with the society's bases and adapters, and a cache for `sequences`.

    Activations are those of the prompts that are read at a time.
    """
    dtype = config.engine.dtype
    held = 0 if config.train.method == "full" else config.vllm.max_loras or len(learners(config))
    adapters = held * lora_parameters(config, shape) * BYTES[dtype]
    cache = sequences * tokens * shape.kv_bytes_per_token(dtype)
    read = min(hardware.READ_TOKENS, sequences * tokens)
    activations = read * shape.hidden * (READING_BYTES + (ADAPTED_BYTES if held else 0))
    return Memory(weights=weights(config, shape), adapters=adapters, cache=cache, activations=activations)


def weights(config: RunConfig, shape: Shape) -> float:
    """Return the bytes of all base models; an unknown one counts as `model`."""
    each = (shape if base == config.model else shapes.of_model(base) or shape for base in bases(config))
    return float(sum(one.weight_bytes(config.engine.dtype) for one in each))


class Job(NamedTuple):
    """The finetuning of one agent."""

    iteration: int
    passes: int
    """Forward and backward passes."""
    tokens: float
    """Of a pass."""
    flops: float


def jobs(config: RunConfig, shape: Shape, run: Forecast, method: str) -> list[Job]:
    """Return all finetunings of a run."""
    lora, processes = lora_parameters(config, shape), config.engine.num_train_processes
    made = []
    for training in run.trainings:
        settings = config.train.of(training.role, training.iteration)
        batch = math.ceil(settings.batch_size / processes)
        passes = math.ceil(training.examples / settings.batch_size) * settings.num_epochs
        flops = shape.training_flops(training.tokens / training.jobs, training.row, method, lora)
        made += [Job(training.iteration, passes, batch * training.row, flops)] * training.jobs
    return made


def by_iteration(found: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs of each iteration."""
    return [list(its) for _, its in itertools.groupby(found, lambda job: job.iteration)]


def own_loop(config: RunConfig, method: str) -> bool:
    """Say whether maft's own loop trains (docs/training.md), not TRL."""
    return method != "full" and not config.train.packing and config.engine.num_train_processes == 1


def together(config: RunConfig, method: str) -> bool:
    """Say whether one GPU trains all agents of an iteration in the same steps."""
    return own_loop(config, method) and config.train.together is not False


def training_memory(config: RunConfig, shape: Shape, run: Forecast, method: str, usable: float = 0.0) -> Memory:
    """Return the memory of finetuning on a GPU with `usable` bytes; 0: on a CPU.

    LoRA: the base in its dtype (QLoRA: its linear layers in 4 bits); of each agent in the same steps the adapter, its
    gradients and Adam's two moments in float32. Full: weights, gradients and moments in float32, 16 bytes for each
    parameter. Activations: those of the tokens of a pass, and logits with their gradient in float32 where there is
    loss. With checkpointing, the input of every block and all of one block (34 bytes for each token and hidden unit).
    Where memory is short, activations are recomputed, then agents are trained one after the other.
    """
    grouped = (True, False) if usable and together(config, method) else (False,)
    choice = config.train.gradient_checkpointing
    recomputing = (choice,) if choice is not None else (False, True) if own_loop(config, method) else (bool(usable),)
    for all_agents, recompute in itertools.product(grouped, recomputing):
        memory = _training_memory(config, shape, run, method, all_agents, recompute, PART_TOKENS[bool(usable)])
        if not usable or memory.total <= usable:
            break
    return memory


def _training_memory(
    config: RunConfig, shape: Shape, run: Forecast, method: str, all_agents: bool, recompute: bool, part: int
) -> Memory:
    lora = lora_parameters(config, shape)
    trained = shape.parameters if method == "full" else lora
    base = float(shape.weight_bytes(config.engine.dtype))
    if method == "qlora":
        base += shape.linear_parameters * (QUANTISED_BYTES - BYTES[config.engine.dtype])
    found = jobs(config, shape, run, method)
    groups = by_iteration(found) if all_agents else [[job] for job in found]
    agents = max(map(len, groups), default=1)
    tokens = max((sum(job.tokens for job in group) for group in groups), default=0.0)
    longest = max((training.row for training in run.trainings), default=1.0)
    if own_loop(config, method):
        tokens = min(tokens, max(part, longest))
    learned = tokens * min(1.0, run.generated_tokens / max(1, run.calls) / longest)
    kept = HIDDEN_BYTES * shape.hidden + INTERMEDIATE_BYTES * shape.intermediate
    blocks = shape.hidden * (shape.layers * 2 + 34) if recompute else shape.layers * kept
    return Memory(
        weights=shape.parameters * FLOAT32 if method == "full" else base,
        adapters=0 if method == "full" else agents * lora * FLOAT32,
        gradients=agents * trained * FLOAT32,
        optimizer=agents * trained * ADAM,
        activations=tokens * blocks + learned * shape.vocab * 2 * FLOAT32,
    )


def disk(config: RunConfig, shape: Shape, run: Forecast, method: str) -> dict[str, float]:
    """Return the bytes of a run folder: debates, and agents of all iterations."""
    new = sum(stage.generated_tokens for stage in run.stages)
    new += sum(stage.prompt_tokens for stage in run.stages) / 2  # a dialogue is written once, and sent again each round
    num_agents = len(learners(config)) * config.num_iterations
    each = shape.weight_bytes(config.engine.dtype) if method == "full" else lora_parameters(config, shape) * FLOAT32
    return {"debates": new * BYTES_PER_TOKEN + run.calls * BYTES_PER_CALL, "agents": num_agents * each}


def most_at_once(config: RunConfig) -> int:
    """Return the largest number of calls that one debate can have answered at the same time."""
    return max(kind.times for kind in protocol_of(config.debate).kinds(config.debate, Prompts()))
