"""Settings of sampling and training engines, hosted services, clusters and trackers."""

import datetime
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from maft.config.base import FREE, Positive, Price, Section, Share
from maft.extensions import Part

SAMPLERS: Mapping[str, str] = {
    "auto": "vllm on CUDA and openvino on a CPU, where they are installed; otherwise transformers",
    "vllm": "vLLM: GPUs, continuous batching, one adapter per request",
    "openvino": "OpenVINO GenAI: CPUs, one agent at a time with its adapter fused into the base",
    "transformers": "transformers and PEFT: all hardware of torch; on CUDA, agents mixed in one batch",
    "openai": "a hosted service, or a server with OpenAI's API",
    "scripted": "random guesses without a model, for demonstrations and tests",
}
"""Engines that sample, in a few words each."""
TRAINERS: Mapping[str, str] = {
    "local": "torch, PEFT and TRL on this machine: adapters or all weights, every train.objective",
    "openai": "finetuning jobs of OpenAI (which ends them on 6 January 2027), or of a server with its API",
    "together": "finetuning jobs of Together",
    "fireworks": "finetuning jobs of Fireworks",
    "tinker": "training steps on Tinker's GPUs, or on a server with its API",
    "null": "nothing is trained, for demonstrations and tests",
}
"""Engines that finetune, in a few words each."""


class HostedTraining(NamedTuple):
    """A service that finetunes."""

    base_url: str | None
    """Where its models are sampled; None: the default of the client."""
    api_key_env: str
    objectives: tuple[str, ...]
    methods: tuple[str, ...] | None
    """Values of `train.method`; None: the service decides."""


HOSTED = {
    "openai": HostedTraining(None, "OPENAI_API_KEY", ("sft", "dpo"), None),
    "together": HostedTraining("https://api.together.ai/v1", "TOGETHER_API_KEY", ("sft", "dpo"), ("lora", "full")),
    "fireworks": HostedTraining(
        "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", ("sft", "dpo"), ("lora",)
    ),
    "tinker": HostedTraining(
        "https://tinker.thinkingmachines.dev/services/tinker-prod/oai/api/v1",
        "TINKER_API_KEY",
        ("sft", "weighted"),
        ("lora",),
    ),
}
"""Trainers whose agents stay with a service, and are sampled there by `engine.sampler: openai`."""


OTHER_SPELLINGS = {None: "null", "sft": "local"}
"""Of trainers: YAML's null, as in `engine.trainer=null`, and the older name of `local`, which files keep."""
TrainerName = Annotated[
    str,
    BeforeValidator(lambda name: OTHER_SPELLINGS.get(name, name) if isinstance(name, str | None) else name),
    AfterValidator(Part("trainer", TRAINERS)),
    PlainSerializer(lambda name: "sft" if name == "local" else name, return_type=str, when_used="json"),
]


class EngineConfig(Section):
    """What samples and what trains."""

    sampler: Annotated[str, AfterValidator(Part("sampler", SAMPLERS))] = "auto"
    """`auto`: vllm on CUDA and openvino on a CPU, where they are installed, otherwise transformers; `openai`: a hosted
    service or a server; `scripted`: random guesses, for tests."""
    trainer: TrainerName = "local"
    """`local` (`sft` in older configs): here, with PEFT, for every `train.objective`; `openai`, `together`,
    `fireworks`, `tinker`: hosted services; `null`: nothing is trained, for tests."""
    batch_size: Annotated[Positive, FREE] = 128
    """Maximum number of debates in progress; a new one begins when one ends. A larger number keeps an engine busier,
    but takes memory."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of weights and computation. Hardware without bfloat16, such as a CPU with AVX2 only, computes in
    float32 in any case; so does openvino on a single core."""
    cache_gb: Annotated[Positive, FREE] = 2
    """openvino, and vllm on a CPU: GB of memory for the KV cache."""
    num_threads: Annotated[Positive | None, FREE] = None
    """CPU threads, for sampling and for finetuning; null: one per core."""
    num_train_processes: Annotated[Positive, FREE] = 1
    """Processes that finetune an agent together, each on its own GPU where there are GPUs. They share the examples of
    each `train.batch_size`, so their number changes results by rounding only."""
    train_sharding: Annotated[Literal["none", "fsdp", "deepspeed"], FREE] = "none"
    """How `num_train_processes` share a model: `none` (each holds all weights), or weights, gradients and optimiser
    states are sharded by FSDP2 (`fsdp`) or ZeRO-3 (`deepspeed`)."""
    max_sequences: Annotated[Positive | None, FREE] = None
    """Maximum number of replies generated at the same time; null: 256 for openvino and vllm; for
    transformers 64, and on CUDA as many as fit, up to 1,024, where all agents share a batch."""
    max_failures: Annotated[Share, FREE] = 0.1
    """Maximum share of debates that may fail; above it, the stage stops with an error."""
    trust_remote_code: Annotated[bool, FREE] = False
    """Run Python code that comes with a model; the manifest records it."""
    date: datetime.date | None = None
    """Date for chat templates that write one, such as 2026-01-31; null: today's."""


class VllmConfig(Section):
    """vLLM in maft's own process: `engine.sampler: vllm`. For a vLLM server elsewhere, see `openai.load_adapters`."""

    tensor_parallel_size: Annotated[Positive, FREE] = 1
    """Number of GPUs over which each model is split."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1), FREE] = 0.9
    """Share of each GPU's memory for weights, adapters and key-value cache."""
    max_model_len: Positive | None = None
    """Maximum length of a dialogue in tokens, reply included; null: the model's own, which takes the most memory."""
    max_loras: Annotated[Positive | None, FREE] = None
    """Maximum number of adapters in GPU memory; null: all of the society. With fewer, agents wait for each other."""


def _address(url: str) -> str:
    if "@" in url:
        raise ValueError("must hold no user name or password, since it is written to files.")  # and is not shown here
    if not re.match(r"https?://[^/]", url):
        raise ValueError(f"must be an address such as http://localhost:8080/v1, got {url!r}.")
    return url


def _name_of_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):  # it may be the key itself, so it is not shown
        raise ValueError("must be the name of an environment variable in capitals, such as OPENAI_API_KEY, not a key.")
    return name


class OpenAiConfig(Section):
    """Hosted models: OpenAI's service, or any server that speaks its API. The key is read from the environment."""

    base_url: Annotated[str, AfterValidator(_address)] | None = None
    """Such as `http://localhost:8080/v1`; null: OpenAI's service, or that of `engine.trainer`, such as Together."""
    api_key_env: Annotated[str, AfterValidator(_name_of_variable), FREE] = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key, which maft never writes to a file. With `engine.trainer:
    together` it is TOGETHER_API_KEY by default, and so on."""
    load_adapters: Annotated[bool, FREE] = False
    """The server at `base_url` is vLLM with `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and finds the run
    folder at the same path: agents that `engine.trainer: local` finetunes are loaded into it as they are needed."""
    concurrency: Annotated[Positive, FREE] = 16
    """Maximum number of concurrent requests; fewer while the service answers that there are too many."""
    timeout: Annotated[float, Field(gt=0), FREE] = 120.0
    """Seconds after which a request without an answer is retried."""
    max_retries: Annotated[int, Field(ge=0), FREE] = 8
    """Maximum number of retries of a request."""
    omit: Annotated[tuple[Literal["seed", "temperature", "top_p", "top_k", "logprobs"], ...], FREE] = ()
    """Parameters that are not sent. A refused parameter is omitted automatically, with a warning, where that changes
    nothing: `seed`, or one at its default."""
    rename: Annotated[dict[str, str], FREE] = {}  # noqa: RUF012  # pydantic copies it
    """Other names of the service for parameters, such as `max_tokens: max_completion_tokens` (which is also
    detected)."""
    learning_rate_multiplier: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate multiplier of OpenAI's finetuning jobs; their number of epochs is `train.num_epochs`. Other
    services take the settings of `train`."""
    job_batch_size: Positive = 1
    """Batch size of OpenAI's finetuning jobs."""
    suffix: Annotated[str, Field(max_length=18)] = "maft"
    """Part of the names of models finetuned by OpenAI, before iteration and agent."""
    poll_seconds: Annotated[float, Field(gt=0), FREE] = 15.0
    """Seconds between two requests for the state of a job."""
    prompt_price: Annotated[Price | None, FREE] = None
    """US dollars per million prompt tokens of the most expensive model used, often the finetuned one; null: unknown."""
    completion_price: Annotated[Price | None, FREE] = None
    """US dollars per million generated tokens."""
    training_price: Annotated[Price | None, FREE] = None
    """US dollars per million tokens trained on, in every epoch."""
    spending_limit: Annotated[Price | None, FREE] = None
    """Maximum US dollars of a run: it stops before a request or job that could exceed it. Needs the prices; null: no
    limit."""

    def faults(self) -> Iterator[str]:
        """See `Section`."""
        if self.spending_limit is not None and None in (self.prompt_price, self.completion_price, self.training_price):
            yield (
                "openai.spending_limit needs openai.prompt_price, openai.completion_price and openai.training_price "
                "(0 where something is free)."
            )
        if self.load_adapters and self.base_url is None:
            yield "openai.load_adapters needs the address of a vLLM server in openai.base_url."


class TrackingConfig(Section):
    """Programs that show a run live, besides `maft report`."""

    to: Annotated[
        tuple[Literal["tensorboard", "trackio", "wandb"], ...],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        AfterValidator(lambda names: tuple(dict.fromkeys(names))),
    ] = ()
    """`tensorboard`, `trackio`, `wandb`, or several; wandb works offline if this machine has no account."""
    project: Annotated[str, Field(min_length=1)] = "maft"
    """trackio and wandb: the project of the run."""


class ClusterConfig(Section):
    """Many machines, with Ray: see docs/cluster.md. A run can be resumed with other settings, or on another cluster."""

    ray: str | None = None
    """`auto` (the cluster that this machine belongs to), an address such as `10.0.0.1:6379`, or `local` (this machine
    as a cluster of one node); null: no cluster."""
    num_workers: Positive | None = None
    """Maximum number of workers (each loads its own model); null: as many as fit."""
    cpus_per_worker: Positive | None = None
    """CPUs and threads of a worker; null: 1 for a worker with GPUs, otherwise all of the smallest node."""
    gpus_per_worker: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a worker; null, on a cluster with GPUs: `vllm.tensor_parallel_size` for sampling and
    `engine.num_train_processes` for finetuning."""
    memory_gb_per_worker: Annotated[float, Field(gt=0)] | None = None
    """Main memory that Ray reserves for each worker, which limits the workers of a node; null reserves none."""
    storage: str | None = None
    """URL of the run folders, of a kind that fsspec supports, such as `s3://bucket/runs`; `runs_dir` is then a local
    copy. Null: all nodes see `runs_dir` at the same path."""
