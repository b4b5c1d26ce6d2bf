"""Settings of single agents."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from maft.config.base import PLACE, Positive, Section, Share
from maft.config.prompts import known_prompts
from maft.config.training import LoraConfig
from maft.records import SamplingParams


class AgentSampling(Section):
    """Sampling parameters of one agent; null: use the role's setting."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    max_new_tokens: Positive | None = None

    def over(self, how: SamplingParams) -> SamplingParams:
        """Return the parameters of the role with the agent's own on top.

        >>> AgentSampling(top_k=5).over(SamplingParams(temperature=0.8)).temperature
        0.8
        """
        return how.model_copy(update=self.model_dump(exclude_none=True))


class AgentLora(Section):
    """The shape of one agent's adapter; null: as in `train.lora`."""

    rank: Positive | None = None
    alpha: Positive | None = None
    dropout: Share | None = None
    target_modules: str | tuple[str, ...] | None = None

    def over(self, shape: LoraConfig) -> LoraConfig:
        """Return the shape of all adapters with the agent's own settings on top."""
        return shape.model_copy(update=self.model_dump(exclude_none=True))


def _own_prompts(texts: dict[str, str]) -> dict[str, str]:
    if shared := [name for name in texts if name in ("system", "summarize", "hint")]:
        raise ValueError(f"prompts.{shared[0]} is the same for all agents. Set it under prompts.")
    return known_prompts(texts)


class AgentConfig(Section):
    """Settings of one agent."""

    model: str | None = None
    """Base model: a Hugging Face folder or a hub name; null: the run's `model`."""
    adapter: str | None = None
    """PEFT adapter to start from; null: the base model itself."""
    sampling: AgentSampling = AgentSampling()
    lora: AgentLora = AgentLora()
    prompts: Annotated[dict[str, str], AfterValidator(_own_prompts)] = Field(default={}, exclude_if=lambda own: not own)
    """Text of single prompts, by name, instead of the run's."""


def _read(entry: object) -> object:
    """Take a section for an agent, and say in one line what is wrong with it."""
    if isinstance(entry, str | AgentConfig):
        return entry
    if not isinstance(entry, dict):
        raise ValueError(f"an agent is a name, or a section with {_settings()}, got {entry!r}.")
    try:
        return AgentConfig.model_validate(entry)
    except ValidationError as errors:
        raise ValueError(" ".join(dict.fromkeys(_explain(error) for error in errors.errors()))) from None


def _explain(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return f"{'.'.join(map(str, error['loc']))} is not a setting of an agent, which has {_settings()}."
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    key = ".".join(str(part) for part in error["loc"] if part in _NAMES)
    message = error["msg"].removeprefix("Input ").replace("valid integer", "whole number").partition(",")[0]
    return f"{key} {message}, got {error['input']!r}."


def _settings() -> str:
    return ", ".join(_KEYS)


_SECTIONS: Mapping[str, type[Section]] = {"sampling": AgentSampling, "lora": AgentLora}
_NAMES = {*AgentConfig.model_fields, *(key for section in _SECTIONS.values() for key in section.model_fields)}
_KEYS = (
    "model",
    "adapter",
    "prompts",
    *(f"{name}.{key}" for name, section in _SECTIONS.items() for key in section.model_fields),
)

Agent = Annotated[str | AgentConfig, BeforeValidator(_read)]


class SocietyConfig(Section):
    """Initial weights and settings of single agents."""

    generators: Annotated[tuple[Agent, ...], PLACE] = ()
    """One entry for each agent; empty: the base model for all. An entry is an adapter folder, a model folder, a hub
    name or the id of a hosted model; or a section with any of `model`, `adapter`, `prompts`, `sampling`
    (`temperature`, `top_p`, `top_k`, `max_new_tokens`) and `lora` (`rank`, `alpha`, `dropout`, `target_modules`), see
    docs/society.md."""
    critics: Annotated[tuple[Agent, ...], PLACE] = ()
    """One entry for each critic, as for generators."""
    one_model: bool = False
    """All agents share one model, finetuned on the examples of all of them (the paper's single-agent finetuning)."""
