"""Every setting of a run, in one validated tree.

YAML goes in, `section.key=value` overrides go on top, a resolved JSON comes out, and that JSON can go in again. A key
that does not exist is refused with the nearest one that does. The digest of the tree is the identity of a run.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from maft.errors import ConfigError
from maft.records import SamplingParams

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, each field documented by the string beneath it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TaskConfig(Section):
    """Which questions, and how they are split."""

    name: Literal["arithmetic", "jsonl"]
    """`arithmetic` makes questions; `jsonl` reads them from local files."""
    num_train: Positive | None = None
    """Questions to debate and finetune on; null takes all there are."""
    num_eval: Positive | None = None
    """Held-out questions; null takes all there are."""
    split_seed: int = 0
    """Draws which questions train and which are held out."""
    operators: str = "+-*"
    """arithmetic: operators between two numbers."""
    low: int = 0
    """arithmetic: smallest number."""
    high: int = 9
    """arithmetic: largest number."""
    train_file: Path | None = None
    """jsonl: one question a line."""
    eval_file: Path | None = None
    """jsonl: held-out questions; null takes them from `train_file`."""
    question_field: str = "question"
    """jsonl: name of the field with the question."""
    gold_field: str | None = "answer"
    """jsonl: name of the field with the known answer, used for reporting only; null when there is none."""


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


class RoleSampling(Section):
    """How the replies of each role are drawn."""

    generator: SamplingParams = SamplingParams()
    critic: SamplingParams = SamplingParams()
    summarizer: SamplingParams = SamplingParams()


class SamplingConfig(Section):
    """Sampling parameters for each stage and role."""

    train: RoleSampling = RoleSampling()
    """Debates on the training questions."""
    eval: RoleSampling | None = None
    """Debates on held-out questions; null takes the same as `train`."""


class VoteConfig(Section):
    """How the pseudo-label is found."""

    min_agreement: Literal["majority", "plurality"] | Share = "majority"
    """Share of the N agents that the winner needs for the question to be trained on: `majority` is more than half,
    `plurality` is any (the paper's letter), a number is at least that share."""
    ties: Literal["random", "abstain"] = "random"
    """Several answers with the most votes: draw one by seed (the paper), or call it no answer."""


class CurateConfig(Section):
    """Which responses an agent learns from."""

    critic_mix: Share = 0.5
    """w: share of a critic's examples that correct a wrong first answer (D-); the rest keep a right one (D+)."""
    short_side: Literal["use_all", "balance"] = "use_all"
    """When one of D- and D+ is too short for w: `use_all` takes every example there is, `balance` cuts the longer side
    until the mix is w. An empty side never empties the set."""


class LoraConfig(Section):
    """The shape of the adapters."""

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Share = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the layers to adapt, or `all-linear`."""


class TrainConfig(Section):
    """How agents are finetuned."""

    num_epochs: Positive = 2
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_ratio: Share = 0.03
    batch_size: Positive = 16
    """Examples in one forward pass."""
    gradient_accumulation: Positive = 1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    max_length: Positive = 2048
    """Tokens; a longer example is dropped and counted, never cut, for the answer stands at its end."""
    loss_turns: Literal["last", "all"] = "last"
    """Assistant turns that carry loss; the first turn of a corrected dialogue is a wrong answer."""
    start_from: Literal["previous", "base"] = "previous"
    """Weights that an iteration starts from: the agent's own of the iteration before, or the base model's."""
    lora: LoraConfig = LoraConfig()


class EngineConfig(Section):
    """What samples and what trains."""

    sampler: Literal["auto", "openvino", "transformers", "scripted"] = "auto"
    """`auto` is openvino on a CPU where it is installed, and transformers elsewhere."""
    trainer: Literal["sft", "null"] = "sft"
    batch_size: Positive = 64
    """Questions debated at a time; what is in flight is lost by a kill, what is finished is kept."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    cache_gb: Positive = 2
    """openvino: memory for the key-value cache."""
    max_sequences: Positive = 256
    """Most replies generated at the same time."""
    script: Path | None = None
    """scripted: JSON file with the replies; null makes them up from the questions."""


class RunConfig(Section):
    """A whole run. See `recipes/` for complete ones."""

    name: str = "run"
    """The run folder is `<runs_dir>/<name>`."""
    runs_dir: Path = Path("runs")
    seed: int = 0
    """Draws everything but the split of the questions."""
    model: str = "smollm2-135m-instruct"
    """The base model: a Hugging Face folder, a hub name, or the packaged `smollm2-135m-instruct`."""
    num_iterations: Positive = 1
    """L: rounds of debate, vote, curate, finetune, evaluate."""
    task: TaskConfig
    debate: DebateConfig = DebateConfig()
    prompts: dict[str, str] = {}
    """Wording of single prompts, by name, in place of the ones in `maft.prompts`."""
    sampling: SamplingConfig = SamplingConfig()
    vote: VoteConfig = VoteConfig()
    curate: CurateConfig = CurateConfig()
    train: TrainConfig = TrainConfig()
    engine: EngineConfig = EngineConfig()
