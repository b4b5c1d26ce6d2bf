"""Every setting of a run, in one validated tree.

YAML goes in, `section.key=value` overrides go on top, a resolved JSON comes out, and that JSON can go in again. A key
that does not exist is refused with the nearest one that does. The digest of the tree is the identity of a run.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from maft import prompts as prompts_
from maft.errors import ConfigError
from maft.records import SamplingParams

T = TypeVar("T")
Positive = Annotated[int, Field(ge=1)]
Price = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PerIteration: TypeAlias = T | Annotated[tuple[T, ...], Field(min_length=1)]
"""One value, or a list with an entry for each iteration, the last entry for all further ones."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, each field documented by the string beneath it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def _drawable(how: SamplingParams) -> SamplingParams:
    """Refuse what no engine can draw by."""
    if not 0 <= how.temperature < float("inf"):
        raise ValueError(f"temperature must be a number of at least 0, got {how.temperature}.")
    if not 0 < how.top_p <= 1:
        raise ValueError(f"top_p must be a number above 0 and at most 1, got {how.top_p}.")
    if how.top_k < 0:
        raise ValueError(f"top_k must be a whole number of at least 0, got {how.top_k}.")
    if how.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be a whole number of at least 1, got {how.max_new_tokens}.")
    return how


def _known_prompts(texts: dict[str, str]) -> dict[str, str]:
    prompts_.build(texts)
    return texts


Sampling = Annotated[SamplingParams, AfterValidator(_drawable)]


_FILES = ("train_file", "eval_file", "dataset", "subset", "train_split", "eval_split")
TASK_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "arithmetic": ("operators", "low", "high", "negative", "shape", "size"),
    "gsm8k": _FILES,
    "math": (*_FILES, "levels", "types"),
    "mmlu": (*_FILES, "types"),
    "dataset": (*_FILES, "question_field", "gold_field"),
    "jsonl": (*_FILES, "question_field", "gold_field"),
    "reasoning_gym": ("size", "threshold", "options"),
}
"""The tasks, and the settings that each has beside those which all have."""


def _known_task(name: str) -> str:
    kind, colon, inner = name.partition(":")
    if kind in TASK_SETTINGS and (kind == "reasoning_gym") == bool(colon and inner):
        return name
    named = [task if task != "reasoning_gym" else "reasoning_gym:<name>" for task in TASK_SETTINGS]
    near = difflib.get_close_matches(kind, TASK_SETTINGS, n=1, cutoff=0.5)
    hint = f" Did you mean {named[list(TASK_SETTINGS).index(near[0])]}?" if near else ""
    raise ValueError(f"{name!r} is not a task.{hint} The tasks are: {', '.join(named)}.")


class TaskConfig(Section):
    """Which questions, and how they are split."""

    name: Annotated[str, AfterValidator(_known_task)]
    """`arithmetic`, `gsm8k`, `math`, `mmlu`, `dataset` (any columns of a file or data set; `jsonl` is the same) or
    `reasoning_gym:<name>`."""
    num_train: Positive | None = None
    """Questions to debate and finetune on; null takes all there are."""
    num_eval: Positive | None = None
    """Held-out questions; null takes all there are."""
    split_seed: int = 0
    """Draws which questions train and which are held out, and the questions themselves where they are made."""
    operators: str = "+-*"
    """arithmetic: operators between two numbers."""
    low: int = 0
    """arithmetic: smallest number."""
    high: int = 9
    """arithmetic: largest number."""
    negative: bool = True
    """arithmetic: keep results below zero."""
    shape: str | None = None
    """arithmetic: a sum with a letter for each number to draw, such as `a+b*c+d-e*f`, in place of all sums of two."""
    size: Positive | None = None
    """arithmetic with a shape, reasoning_gym: questions to make; null is num_train + num_eval, or 1000."""
    train_file: Path | None = None
    """gsm8k, math, mmlu, dataset: a local .jsonl, .json, .csv, .tsv or .parquet file, or a folder of .json files."""
    eval_file: Path | None = None
    """The same for held-out questions; null takes them from `train_file`."""
    dataset: str | None = None
    """gsm8k, math, mmlu, dataset: a hub name or a local folder, in place of files; null is the task's own, if any."""
    subset: str | None = None
    """The configuration of the data set, where it has several."""
    train_split: str | None = None
    """The split to train on; null is the task's own, or `train`."""
    eval_split: str | None = None
    """The split to hold out; null is the task's own, or else a part of `train_split`, as when both are the same."""
    question_field: str = "question"
    """dataset: the column with the question."""
    gold_field: str | None = "answer"
    """dataset: the column with the known answer, used for reporting only; null when there is none."""
    levels: tuple[int | str, ...] = ()
    """math: only these levels, such as 3 or `Level 3`."""
    types: tuple[str, ...] = ()
    """math: only these types, such as `Algebra`; mmlu: only these subjects."""
    threshold: Share = 1.0
    """reasoning_gym: the score from which on an answer counts as right."""
    options: dict[str, Any] = {}
    """reasoning_gym: settings of the data set, by its own names."""

    @model_validator(mode="after")
    def _has_settings_of_its_own_task_only(self) -> Self:
        own = TASK_SETTINGS[self.name.partition(":")[0]]
        for other in dict.fromkeys(name for names in TASK_SETTINGS.values() for name in names):
            if other not in own and getattr(self, other) != type(self).model_fields[other].default:
                raise ValueError(
                    f"task.{other} is not a setting of task {self.name}, which has: "
                    f"num_train, num_eval, split_seed, {', '.join(own)}."
                )
        return self


class DebateConfig(Section):
    """Who argues, for how long, and what they are shown."""

    num_agents: Positive = 3
    """N: generators, and critics as well."""
    num_rounds: Positive = 2
    """M: one round of generators, then M - 1 rounds of critics."""
    summarizer: str = "base"
    """Who condenses the other agents' answers: `base` (the untrained model), `self` (the critic), `none` (the answers
    are quoted in full) or the name or folder of another model."""
    max_others: Positive = 5
    """At most this many other agents' answers are shown."""
    num_samples: Positive = 1
    """First answers of each generator: the first is debated, the others only vote, where `vote` looks at them."""
    num_eval_samples: Positive | None = None
    """The same on held-out questions, so that a plain vote can be given the tokens of a debate; null is as many."""


class SocietyConfig(Section):
    """Whose weights the agents start from, where that is not the base model."""

    generators: tuple[str, ...] = ()
    """One entry for each agent: an adapter folder, a model folder, a hub name or the id of a hosted model; none is the
    base model for all."""
    critics: tuple[str, ...] = ()
    """The same for the critics."""
    one_model: bool = False
    """All agents are one model, finetuned on what all of them would learn (the paper's single-agent finetuning)."""


class RoleSampling(Section):
    """How the replies of each role are drawn."""

    generator: Sampling = SamplingParams()
    critic: Sampling = SamplingParams()
    summarizer: Sampling = SamplingParams()


class SamplingConfig(Section):
    """Sampling parameters for each stage and role."""

    train: RoleSampling = RoleSampling()
    """Debates on the training questions."""
    eval: RoleSampling | None = None
    """Debates on held-out questions; null takes the same as `train`."""


Ballots = Literal["last", "first", "all"]


class VoteConfig(Section):
    """How the pseudo-label is found, and the answer of a debate."""

    label_from: PerIteration[Ballots] = "last"
    """Which answers elect the label: of the `last` round (the paper), the `first` (all samples of it), or `all`. A list
    has an entry for each iteration, the last entry for all further ones."""
    over: Ballots = "last"
    """The same for the answer of a debate on a held-out question."""
    min_agreement: Literal["majority", "plurality"] | Share = "majority"
    """Share of the answers that the winner needs for the question to be trained on: `majority` is more than half,
    `plurality` is any (the paper's letter), a number is at least that share."""
    ties: Literal["random", "abstain"] = "random"
    """Several answers with the most votes: draw one by seed (the paper), or call it no answer."""


class CurateConfig(Section):
    """Which responses an agent learns from."""

    critic_mix: Share = 0.5
    """w: share of a critic's examples that correct a wrong first answer (D-); the rest keep a right one (D+)."""
    short_side: Literal["cut", "repeat", "use_all"] = "cut"
    """When D- or D+ is too short for w: `cut` the longer side, `repeat` the shorter one, or `use_all` there is without
    regard to w. An empty side never empties the set."""
    examples_per_question: Positive = 1
    """Most first answers of a generator to one question that it learns from; more need `debate.num_samples`."""
    weight_by: Literal["none", "margin"] = "none"
    """`margin` draws as many examples as there are, each as often as its label won by: the votes of the label minus
    those of the runner-up. Certain labels are learned twice or more, close ones seldom."""
    max_examples: PerIteration[Positive] | None = None
    """Most examples of one agent in an iteration, drawn by seed; null is no limit. A list has an entry for each
    iteration, the last entry for all further ones."""


class LoraConfig(Section):
    """The shape of the adapters."""

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Share = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the layers to adapt, or `all-linear`."""


Rate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Schedule = Literal["constant", "linear", "cosine"]


class _Training(Section):
    """What does not change from one agent to the next."""

    method: Literal["lora", "qlora", "full"] = "lora"
    """`lora` trains adapters; `qlora` the same on a base in 4 bits, on CUDA only; `full` trains and keeps all weights.
    """
    max_length: Positive = 2048
    """Tokens; a longer example is dropped and counted, never cut, for the answer stands at its end."""
    packing: bool = False
    """Lay examples end to end in rows of up to `max_length` tokens, none of which sees another; `batch_size` counts
    rows then. Saves padding on GPUs; on a CPU examples of like length go together anyway, which is quicker."""
    gradient_checkpointing: bool | None = None
    """Compute activations twice in place of keeping them: less memory, about a third more time. Null is yes on GPUs
    and no on a CPU."""
    loss_turns: Literal["last", "all"] = "last"
    """Assistant turns that carry loss; the first turn of a corrected dialogue is a wrong answer."""
    critics: bool = True
    """Finetune the critics; without it they stay as they were (the paper's ablation without critics)."""
    start_from: Literal["previous", "base"] = "previous"
    """Weights that an iteration starts from: the agent's own of the iteration before, or the base model's."""
    lora: LoraConfig = LoraConfig()
    """Of `lora` and `qlora`."""


class Training(_Training):
    """How one agent is finetuned in one iteration: what `TrainConfig.of` returns."""

    num_epochs: Positive = 2
    learning_rate: Rate = 3e-4
    lr_schedule: Schedule = "cosine"
    warmup_ratio: Share = 0.03
    batch_size: Positive = 16
    gradient_accumulation: Positive = 1
    weight_decay: NotNegative = 0.0
    max_grad_norm: Rate = 1.0


class RoleTraining(Section):
    """What is different for the agents of one role; null is as `train` has it."""

    num_epochs: PerIteration[Positive] | None = None
    learning_rate: PerIteration[Rate] | None = None
    lr_schedule: PerIteration[Schedule] | None = None
    warmup_ratio: PerIteration[Share] | None = None
    batch_size: PerIteration[Positive] | None = None
    gradient_accumulation: PerIteration[Positive] | None = None
    weight_decay: PerIteration[NotNegative] | None = None
    max_grad_norm: PerIteration[Rate] | None = None


class TrainConfig(_Training):
    """How agents are finetuned. Settings of the optimiser may be lists, with an entry for each iteration."""

    num_epochs: PerIteration[Positive] = 2
    """This and the seven settings below may be lists: an entry for each iteration, the last one for all further ones.
    """
    learning_rate: PerIteration[Rate] = 3e-4
    """Full finetuning needs a smaller one, such as 1e-5."""
    lr_schedule: PerIteration[Schedule] = "cosine"
    """`constant`, `linear` or `cosine`."""
    warmup_ratio: PerIteration[Share] = 0.03
    """Share of the steps in which the learning rate rises."""
    batch_size: PerIteration[Positive] = 16
    """Examples in one forward and backward pass, over all of `engine.num_train_processes`."""
    gradient_accumulation: PerIteration[Positive] = 1
    """Batches in one step of the optimiser; 8 of one example are the same as one of 8, in less memory."""
    weight_decay: PerIteration[NotNegative] = 0.0
    max_grad_norm: PerIteration[Rate] = 1.0
    generator: RoleTraining = RoleTraining()
    critic: RoleTraining = RoleTraining()

    def of(self, role: str, iteration: int) -> Training:
        """Return what holds for the agents of a role in an iteration (from 1).

        >>> TrainConfig(learning_rate=(3e-4, 1e-4), critic=RoleTraining(num_epochs=5)).of("critic", 2).learning_rate
        0.0001
        """
        values = {name: getattr(self, name) for name in Training.model_fields}
        changes: Section = {"generator": self.generator, "critic": self.critic}.get(role, RoleTraining())
        values |= {name: value for name, value in changes if value is not None}
        return Training.model_construct(**{name: of_iteration(value, iteration) for name, value in values.items()})


def _name_of_null(value: object) -> object:
    """Take YAML's null, as in `engine.trainer=null`, for the trainer of that name."""
    return "null" if value is None else value


class EngineConfig(Section):
    """What samples and what trains."""

    sampler: Literal["auto", "vllm", "openvino", "transformers", "openai", "scripted"] = "auto"
    """`auto` is vllm on CUDA and openvino on a CPU, each where it is installed, and transformers elsewhere; `openai` is
    a hosted service or a server."""
    trainer: Annotated[Literal["sft", "openai", "null"], BeforeValidator(_name_of_null)] = "sft"
    """`sft` is TRL and PEFT; `openai` are jobs of a hosted service; `null` learns nothing."""
    batch_size: Positive = 128
    """Questions debated at a time: more are faster, and a kill loses more, for only finished batches are kept."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """openvino samples in float32 where it has one core only."""
    cache_gb: Positive = 2
    """openvino, and vllm on a CPU: memory for the key-value cache."""
    num_threads: Positive | None = None
    """CPU threads of sampling, and as many of finetuning; null is one for each core."""
    num_train_processes: Positive = 1
    """Processes that finetune an agent together, each with a GPU of its own where there are any; they share the
    examples of each `train.batch_size`, so that results do not depend on their number but for rounding."""
    train_sharding: Literal["none", "fsdp", "deepspeed"] = "none"
    """What several processes divide among them beside the examples: `none` (each holds all weights), or all weights,
    gradients and optimiser states, by FSDP2 (`fsdp`) or ZeRO-3 (`deepspeed`)."""
    max_sequences: Positive | None = None
    """Most replies generated at the same time; null is 256 for openvino and vllm, and 64 for transformers."""
    max_failures: Share = 0.1
    """Largest share of debates that may fail before the stage stops with an error."""


class VllmConfig(Section):
    """vLLM in maft's own care: `engine.sampler: vllm`. A vLLM server elsewhere is `openai.load_adapters`."""

    tensor_parallel_size: Positive = 1
    """GPUs that a model is spread over."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of each GPU's memory for weights, adapters and key-value cache."""
    max_model_len: Positive | None = None
    """Longest dialogue in tokens, reply included; null is all that the model can, which takes the most memory."""
    max_loras: Positive | None = None
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
    api_key_env: Annotated[str, AfterValidator(_name_of_variable)] = "OPENAI_API_KEY"
    """Name of the environment variable with the key; a key never stands in a file of maft."""
    load_adapters: bool = False
    """The server at `base_url` is vLLM with `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and finds the run
    folder at the same path: agents that `engine.trainer: sft` finetunes are loaded into it as they are needed."""
    concurrency: Positive = 16
    """Most requests at the same time; fewer while the service says that they are too many."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds until a request without an answer is tried again."""
    max_retries: Annotated[int, Field(ge=0)] = 8
    """Further tries of a request; never with another model or other parameters."""
    learning_rate_multiplier: Annotated[float, Field(gt=0)] = 1.0
    """Of finetuning jobs; their epochs are `train.num_epochs`."""
    job_batch_size: Positive = 1
    """Of finetuning jobs."""
    suffix: Annotated[str, Field(max_length=18)] = "maft"
    """Goes into the names of finetuned models, before iteration and agent."""
    poll_seconds: Annotated[float, Field(gt=0)] = 15.0
    """Time between two looks at the jobs."""
    prompt_price: Price | None = None
    """US dollars for a million prompt tokens of the dearest model used, often the finetuned one; null if not known."""
    completion_price: Price | None = None
    """The same for generated tokens."""
    training_price: Price | None = None
    """The same for tokens trained on, every epoch counted."""
    spending_limit: Price | None = None
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


class RunConfig(Section):
    """A whole run. See `recipes/` for complete ones."""

    name: Annotated[str, Field(min_length=1)] = "run"
    """The run folder is `<runs_dir>/<name>`."""
    runs_dir: Path = Path("runs")
    """Where run folders are made."""
    seed: int = 0
    """Draws everything but the split of the questions."""
    model: str = "smollm2-135m-instruct"
    """The base model: a Hugging Face folder, a hub name, or the packaged `smollm2-135m-instruct`."""
    num_iterations: Positive = 1
    """L: rounds of debate, vote, curate, finetune, evaluate."""
    task: TaskConfig
    debate: DebateConfig = DebateConfig()
    society: SocietyConfig = SocietyConfig()
    prompts: Annotated[dict[str, str], AfterValidator(_known_prompts)] = {}
    """Wording of single prompts, by name, in place of the ones in `maft.prompts`."""
    sampling: SamplingConfig = SamplingConfig()
    vote: VoteConfig = VoteConfig()
    curate: CurateConfig = CurateConfig()
    train: TrainConfig = TrainConfig()
    engine: EngineConfig = EngineConfig()
    vllm: VllmConfig = VllmConfig()
    openai: OpenAiConfig = OpenAiConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the agents that are finetuned, each for itself, or one for all of them."""
        if self.society.one_model:
            return ("generator_0",)
        roles = ("generator", "critic") if self.debate.num_rounds > 1 and self.train.critics else ("generator",)
        return tuple(f"{role}_{n}" for role in roles for n in range(self.debate.num_agents))

    @model_validator(mode="after")
    def _one_entry_for_each_agent(self) -> Self:
        for role, given in (("generators", self.society.generators), ("critics", self.society.critics)):
            if given and len(given) != self.debate.num_agents:
                raise ValueError(
                    f"society.{role} names {len(given)} agents, debate.num_agents is {self.debate.num_agents}. "
                    "Name one for each agent, or none."
                )
        if self.society.one_model and len({*self.society.generators, *self.society.critics}) > 1:
            raise ValueError("society.one_model is one model for all agents, and society names several.")
        return self

    @model_validator(mode="after")
    def _processes_have_equal_shares(self) -> Self:
        engine, processes = self.engine, self.engine.num_train_processes
        if engine.train_sharding != "none" and processes == 1:
            raise ValueError(
                f"engine.train_sharding = {engine.train_sharding} divides a model among processes, and "
                "engine.num_train_processes is 1. Set it to the number of GPUs, or engine.train_sharding to none."
            )
        for iteration in range(1, self.num_iterations + 1):
            for role in ("generator", "critic"):
                size = self.train.of(role, iteration).batch_size
                if size % processes:
                    raise ValueError(
                        f"train.batch_size = {size} ({role}, iteration {iteration}) cannot be divided among "
                        f"engine.num_train_processes = {processes}. Choose a multiple of {processes}."
                    )
        return self


def check_loop(config: RunConfig) -> None:
    """Refuse engines that cannot take turns: what one finetunes, the other must be able to sample from.

    Raises:
        ConfigError: only one of the two engines is a hosted service.
    """
    engine = config.engine
    if engine.sampler == "openai" and engine.trainer == "sft" and config.openai.load_adapters:
        return
    if (engine.sampler == "openai") != (engine.trainer == "openai"):
        raise ConfigError(
            f"engine.sampler = {engine.sampler} cannot sample from what engine.trainer = {engine.trainer} finetunes. "
            "Set both to openai or neither, or openai.load_adapters for a vLLM server, or do single stages with "
            "`maft debate`, `maft finetune` and `maft eval`."
        )


def of_iteration(setting: T | tuple[T, ...], iteration: int) -> T:
    """Return the entry of an iteration (from 1), where a setting may be one value or a list; its last entry lasts.

    >>> of_iteration(("first", "last"), 5)
    'last'
    """
    return setting[min(iteration, len(setting)) - 1] if isinstance(setting, tuple) else setting


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML or JSON config and put `section.key=value` overrides on top; values are YAML.

    A run folder stands for its config.json and keeps its place. A relative path inside the file is relative to the
    working directory. A run without a name is called after the file, or after its folder if the file is called config.

    Raises:
        ConfigError: no such file, not YAML, or a setting is unknown, has the wrong type or is out of range.
    """
    home = path if (path / "config.json").is_file() else None
    try:
        tree = yaml.safe_load((home / "config.json" if home else path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Give the path of a config file, see recipes/.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold settings (key: value), got {type(tree).__name__}.")
    if home:
        tree |= {"name": home.resolve().name, "runs_dir": str(home.parent)}
    tree.setdefault("name", path.resolve().parent.name if path.stem == "config" else path.stem)
    return parse(tree, overrides, source=str(path))


def parse(tree: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "config") -> RunConfig:
    """Validate a tree of settings with overrides on top.

    >>> parse({"task": {"name": "arithmetic"}}, ["debate.num_agents=5"]).debate.num_agents
    5

    Raises:
        ConfigError: as `load`.
    """
    try:
        tree = json.loads(json.dumps(tree, default=str))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{source}: settings must be named by texts and must not hold themselves ({error})."
        ) from None
    for override in overrides:
        _override(tree, override)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as errors:
        lines = [_explain(tree, error) for error in errors.errors()]
        raise ConfigError(f"{source}:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(lines))) from None


def resolved(config: RunConfig) -> str:
    """Return the whole tree as JSON, defaults included; `load` takes it back."""
    return config.model_dump_json(indent=2) + "\n"


_NOT_IDENTITY: Any = {
    "name": True,
    "runs_dir": True,
    "cluster": True,
    "tracking": True,
    "train": {"gradient_checkpointing"},
    "engine": {
        *("batch_size", "cache_gb", "num_threads", "max_sequences", "max_failures"),
        *("num_train_processes", "train_sharding"),
    },
    "vllm": {"tensor_parallel_size", "gpu_memory_utilization", "max_loras"},
    "openai": {
        *("api_key_env", "load_adapters", "concurrency", "timeout", "max_retries", "poll_seconds"),
        *("prompt_price", "completion_price", "training_price", "spending_limit"),
    },
}
"""Where a run is kept and shown, and how much memory it may take: a run that ran out of it goes on with less."""


def digest(config: RunConfig) -> str:
    """Return the identity of a run: equal for configs that ask for the same results, wherever they are written."""
    return short_digest(config.model_dump(mode="json", exclude=_NOT_IDENTITY))


def short_digest(tree: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that say what is in a tree of plain values."""
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=8).hexdigest()


def differences(ours: RunConfig, theirs: RunConfig) -> dict[str, tuple[object, object]]:
    """Return the dotted keys in which two configs differ, with both values."""
    a, b = (_flat(config.model_dump(mode="json", exclude=_NOT_IDENTITY)) for config in (ours, theirs))
    return {key: (a.get(key), b.get(key)) for key in sorted(a | b) if a.get(key) != b.get(key)}


def known_keys() -> dict[str, Any]:
    """Return every dotted key of the tree with its field, in the order of the file."""
    found: dict[str, Any] = {}

    def walk(section: type[BaseModel], prefix: str) -> None:
        for name, field in section.model_fields.items():
            inner = _section_of(field.annotation)
            if inner is None:
                found[prefix + name] = field
            else:
                walk(inner, f"{prefix}{name}.")

    walk(RunConfig, "")
    return found


def _section_of(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"an override must look like section.key=value, got {override!r}.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of {key} is not valid YAML: {text!r}. Quote it if it is text.") from None
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{key} cannot be set: {section} is a value, not a section.")
        node = child
    node[last] = value


def _explain(tree: object, error: ErrorDetails) -> str:
    """Say in one line which key is wrong, what is allowed there and what was got."""
    section: type[BaseModel] | None = RunConfig
    path: list[str] = []
    allowed = ""
    for part in error["loc"]:
        if section is None and not isinstance(tree, dict):
            break  # what follows names a branch of a union or a place in a list
        fields = section.model_fields if section else {}
        path.append(str(part))
        tree = tree.get(part) if isinstance(tree, dict) else None
        if part in fields:
            allowed = _allowed(fields[str(part)].annotation, fields[str(part)].metadata)
            section = _section_of(fields[str(part)].annotation)
        else:
            section, allowed = None, _allowed(str, [])
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return _unknown(path)
    if error["type"] == "missing":
        return f"{key} is missing."
    if error["type"] == "value_error":
        said = error["msg"].removeprefix("Value error, ")
        return f"{key}: {said}" if key and not said.startswith(f"{key}.") else said
    return f"{key} must be {allowed}, got {tree!r}."


def _unknown(path: Sequence[str]) -> str:
    key, keys = ".".join(path), list(known_keys())
    sections = list(dict.fromkeys(known.rpartition(".")[0] for known in keys if "." in known))
    candidates = [known for known in keys + sections if not key.startswith(f"{known}.")]
    near = difflib.get_close_matches(key, candidates, n=1, cutoff=0.6) or [
        known for known in keys if known.split(".")[-1] == path[-1]
    ]
    if near:
        return f"{key} is not a setting. Did you mean {near[0]}?"
    home = "".join(f"{part}." for part in path[:-1])
    beside = dict.fromkeys(known.removeprefix(home).split(".")[0] for known in keys if known.startswith(home))
    return f"{key} is not a setting. {home.removesuffix('.') or 'The top level'} has: {', '.join(beside)}."


_LIMITS = {"ge": "of at least {}", "gt": "above {}", "le": "at most {}", "min_length": "that is not empty"}
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


def _allowed(annotation: Any, metadata: Sequence[Any]) -> str:
    """Put a type into words, such as "a whole number of at least 1, or null"."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return _allowed(inner, [limit for field in metadata for limit in getattr(field, "metadata", [field])])
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        parts = [_allowed(part, ()) for part in get_args(annotation) if part is not NoneType]
        parts = ["a list of these" if part == f"a list of {parts[0]}" else part for part in parts]
        return ", or ".join(parts + ["null"] * (NoneType in get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "a list of " + _allowed(get_args(annotation)[0], ())
    if (section := _section_of(annotation)) is not None:
        return "a section with settings such as " + ", ".join(list(section.model_fields)[:3])
    if get_origin(annotation) is dict:
        return f"a section of {'texts' if str in get_args(annotation)[1:] else 'settings'} by name"
    limits = {name: getattr(limit, name) for limit in metadata for name in _LIMITS if hasattr(limit, name)}
    said = " and ".join(_LIMITS[name].format(value) for name, value in limits.items())
    return f"{_KINDS.get(annotation, str(annotation))} {said}".rstrip()


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
