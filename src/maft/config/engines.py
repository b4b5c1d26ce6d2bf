"""Settings of what samples and trains, where, and who looks on."""

import datetime
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from maft.config.base import FREE, Positive, Price, Section, Share
from maft.extensions import Part

SAMPLERS = ("auto", "vllm", "openvino", "transformers", "openai", "scripted")
TRAINERS = ("sft", "openai", "null")


def _name_of_null(value: object) -> object:
    """Take YAML's null, as in `engine.trainer=null`, for the trainer of that name."""
    return "null" if value is None else value


class EngineConfig(Section):
    """What samples and what trains."""

    sampler: Annotated[str, AfterValidator(Part("sampler", SAMPLERS))] = "auto"
    """`auto` is vllm on CUDA and openvino on a CPU, each where it is installed, and transformers elsewhere; `openai` is
    a hosted service or a server."""
    trainer: Annotated[str, BeforeValidator(_name_of_null), AfterValidator(Part("trainer", TRAINERS))] = "sft"
    """`sft` is TRL and PEFT; `openai` are jobs of a hosted service; `null` learns nothing."""
    batch_size: Annotated[Positive, FREE] = 128
    """Questions debated at a time: more are faster, and a kill loses more, for only finished batches are kept."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """What weights are held and calculated in. Hardware without bfloat16, such as a CPU with AVX2 alone, calculates in
    float32 all the same, and so does openvino where it has one core only."""
    cache_gb: Annotated[Positive, FREE] = 2
    """openvino, and vllm on a CPU: memory for the key-value cache."""
    num_threads: Annotated[Positive | None, FREE] = None
    """CPU threads of sampling, and as many of finetuning; null is one for each core."""
    num_train_processes: Annotated[Positive, FREE] = 1
    """Processes that finetune an agent together, each with a GPU of its own where there are any; they share the
    examples of each `train.batch_size`, so that results do not depend on their number but for rounding."""
    train_sharding: Annotated[Literal["none", "fsdp", "deepspeed"], FREE] = "none"
    """What several processes divide among them beside the examples: `none` (each holds all weights), or all weights,
    gradients and optimiser states, by FSDP2 (`fsdp`) or ZeRO-3 (`deepspeed`)."""
    max_sequences: Annotated[Positive | None, FREE] = None
    """Most replies generated at the same time; null is 256 for openvino and vllm, and 64 for transformers."""
    max_failures: Annotated[Share, FREE] = 0.1
    """Largest share of debates that may fail before the stage stops with an error."""
    trust_remote_code: Annotated[bool, FREE] = False
    """Run Python code that comes with a model; the manifest records it."""
    date: datetime.date | None = None
    """The date, such as 2026-01-31, that a chat template which writes one is given; null is today's."""


class VllmConfig(Section):
    """vLLM in maft's own care: `engine.sampler: vllm`. A vLLM server elsewhere is `openai.load_adapters`."""

    tensor_parallel_size: Annotated[Positive, FREE] = 1
    """GPUs that a model is spread over."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1), FREE] = 0.9
    """Share of each GPU's memory for weights, adapters and key-value cache."""
    max_model_len: Positive | None = None
    """Longest dialogue in tokens, reply included; null is all that the model can, which takes the most memory."""
    max_loras: Annotated[Positive | None, FREE] = None
    """Adapters in GPU memory at a time; null is all of the society. With fewer, agents wait for each other."""


def _address(url: str) -> str:
    if "@" in url:
        raise ValueError("must hold no user name or password, since it is written to files.")  # and is not shown here
    if not re.match(r"https?://[^/]", url):
        raise ValueError(f"must be an address such as http://localhost:8080/v1, got {url!r}.")
    return url


def _name_of_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):  # what stands there may be the key, so it is not shown
        raise ValueError("must be the name of an environment variable in capitals, such as OPENAI_API_KEY, not a key.")
    return name


class OpenAiConfig(Section):
    """Hosted models: OpenAI's service, or any server that speaks its API. The key is read from the environment."""

    base_url: Annotated[str, AfterValidator(_address)] | None = None
    """Such as `http://localhost:8080/v1`; null is OpenAI's service."""
    api_key_env: Annotated[str, AfterValidator(_name_of_variable), FREE] = "OPENAI_API_KEY"
    """Name of the environment variable with the key; a key never stands in a file of maft."""
    load_adapters: Annotated[bool, FREE] = False
    """The server at `base_url` is vLLM with `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and finds the run
    folder at the same path: agents that `engine.trainer: sft` finetunes are loaded into it as they are needed."""
    concurrency: Annotated[Positive, FREE] = 16
    """Most requests at the same time; fewer while the service says that they are too many."""
    timeout: Annotated[float, Field(gt=0), FREE] = 120.0
    """Seconds until a request without an answer is tried again."""
    max_retries: Annotated[int, Field(ge=0), FREE] = 8
    """Further tries of a request; never with another model."""
    omit: Annotated[tuple[Literal["seed", "temperature", "top_p", "top_k", "logprobs"], ...], FREE] = ()
    """Parameters that the service refuses. One that is refused is left out without this where that changes nothing, and
    that is said: `seed`, or any that is at its default."""
    rename: Annotated[dict[str, str], FREE] = {}  # noqa: RUF012  # pydantic copies it
    """Other names of parameters, such as `max_tokens: max_completion_tokens`, which is found out by itself."""
    learning_rate_multiplier: Annotated[float, Field(gt=0)] = 1.0
    """Of finetuning jobs; their epochs are `train.num_epochs`."""
    job_batch_size: Positive = 1
    """Of finetuning jobs."""
    suffix: Annotated[str, Field(max_length=18)] = "maft"
    """Goes into the names of finetuned models, before iteration and agent."""
    poll_seconds: Annotated[float, Field(gt=0), FREE] = 15.0
    """Time between two looks at the jobs."""
    prompt_price: Annotated[Price | None, FREE] = None
    """US dollars for a million prompt tokens of the dearest model used, often the finetuned one; null if not known."""
    completion_price: Annotated[Price | None, FREE] = None
    """The same for generated tokens."""
    training_price: Annotated[Price | None, FREE] = None
    """The same for tokens trained on, every epoch counted."""
    spending_limit: Annotated[Price | None, FREE] = None
    """US dollars after which a run stops before the next request or job; needs the prices. Null is no limit."""

    @model_validator(mode="after")
    def _limits_need_prices(self) -> Self:
        if self.spending_limit is not None and None in (self.prompt_price, self.completion_price, self.training_price):
            raise ValueError(
                "openai.spending_limit needs openai.prompt_price, openai.completion_price and openai.training_price "
                "(0 where something is free)."
            )
        return self

    @model_validator(mode="after")
    def _adapters_need_a_server(self) -> Self:
        if self.load_adapters and self.base_url is None:
            raise ValueError("openai.load_adapters needs the address of a vLLM server in openai.base_url.")
        return self


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _without_repeats(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


class TrackingConfig(Section):
    """Programs that show a run while it goes, beside `maft report`."""

    to: Annotated[
        tuple[Literal["tensorboard", "trackio", "wandb"], ...],
        BeforeValidator(_one_or_more),
        AfterValidator(_without_repeats),
    ] = ()
    """`tensorboard`, `trackio`, `wandb`, or several; wandb is offline where this machine has no account."""
    project: Annotated[str, Field(min_length=1)] = "maft"
    """trackio and wandb: the project that the run stands in."""


class ClusterConfig(Section):
    """Many machines by Ray: see docs/cluster.md. A run may go on with other settings here, or on another cluster."""

    ray: str | None = None
    """`auto` (the cluster that this machine is part of), an address such as `10.0.0.1:6379`, or `local` (all of this
    machine, as a cluster of one node); null is this process alone."""
    num_workers: Positive | None = None
    """Most workers at a time, each with a model of its own; null is as many as there is room for."""
    cpus_per_worker: Positive | None = None
    """CPUs and threads of a worker; null is 1 where it has GPUs, and else all of the smallest node."""
    gpus_per_worker: Annotated[int, Field(ge=0)] | None = None
    """Null is, where the cluster has GPUs, `vllm.tensor_parallel_size` for sampling and `engine.num_train_processes`
    for finetuning."""
    memory_gb_per_worker: Annotated[float, Field(gt=0)] | None = None
    """Main memory that Ray sets aside for a worker, so that a node gets no more of them than it can feed; null sets
    none aside."""
    storage: str | None = None
    """Where run folders are kept, as a URL that fsspec knows, such as `s3://bucket/runs`; `runs_dir` is then a copy on
    the machine that maft is started on. Null is a `runs_dir` that all nodes see at the same path."""
