"""The whole tree."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from maft.config.base import FREE, NEWER, PLACE, Positive, Section, of_iteration
from maft.config.engines import HOSTED, ClusterConfig, EngineConfig, OpenAiConfig, TrackingConfig, VllmConfig
from maft.config.method import (
    COMPARING,
    PROTOCOLS,
    CurateConfig,
    DebateConfig,
    EvalConfig,
    GuardConfig,
    SamplingConfig,
    SandboxConfig,
    TaskConfig,
    VoteConfig,
)
from maft.config.prompts import known_prompts
from maft.config.society import AgentConfig, SocietyConfig
from maft.config.training import EXAMPLES, LoraConfig, TrainConfig
from maft.errors import ConfigError


def _text_of_number(name: object) -> object:
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


def _stays_inside(name: str) -> str:
    for part in name.split("/"):
        if part in ("", ".", "..") or not part.isprintable() or len(part.encode()) > LONGEST_NAME:
            raise ValueError(
                f"name must be the name of a folder inside runs_dir, of at most {LONGEST_NAME} bytes, "
                f"got {name[:80]!r}."
            )
    return name


LONGEST_NAME = 200
Name = Annotated[str, Field(min_length=1), BeforeValidator(_text_of_number), AfterValidator(_stays_inside)]


class RunConfig(Section):
    """A whole run. See `recipes/` for complete ones."""

    name: Annotated[Name, FREE] = "run"
    """The run folder is `<runs_dir>/<name>`."""
    runs_dir: Annotated[Path, FREE] = Path("runs")
    """Folder in which run folders are created."""
    seed: int = 0
    """Seed of everything except the questions and their split (`task.split_seed`)."""
    model: Annotated[str, PLACE] = "smollm2-135m-instruct"
    """The base model: a Hugging Face folder, a hub name, or the packaged `smollm2-135m-instruct`."""
    num_iterations: Annotated[Positive, FREE] = 1
    """L: number of iterations of debate, vote, curate, finetune, evaluate. More can be added to a finished run."""
    task: TaskConfig
    debate: DebateConfig = DebateConfig()
    society: SocietyConfig = SocietyConfig()
    prompts: Annotated[dict[str, str], AfterValidator(known_prompts)] = {}  # noqa: RUF012  # pydantic copies it
    """Text of single prompts, by name, instead of those in `maft.config.prompts`."""
    sampling: SamplingConfig = SamplingConfig()
    vote: VoteConfig = VoteConfig()
    curate: CurateConfig = CurateConfig()
    train: TrainConfig = TrainConfig()
    engine: EngineConfig = EngineConfig()
    vllm: VllmConfig = VllmConfig()
    openai: OpenAiConfig = OpenAiConfig()
    cluster: Annotated[ClusterConfig, FREE] = ClusterConfig()
    tracking: Annotated[TrackingConfig, FREE] = TrackingConfig()
    guard: Annotated[GuardConfig, FREE] = GuardConfig()
    sandbox: Annotated[SandboxConfig, NEWER] = SandboxConfig()
    eval: Annotated[EvalConfig, FREE] = EvalConfig()

    def own(self, role: str, index: int) -> AgentConfig:
        """Return the settings of one agent, such as critic 2, alone."""
        entries = {"generator": self.society.generators, "critic": self.society.critics}.get(role, ())
        entry = entries[index] if entries else None
        return entry if isinstance(entry, AgentConfig) else AgentConfig()

    def prompts_of(self, name: str) -> dict[str, str]:
        """Return the prompts that are set for an agent, such as `critic_2`, or for all."""
        role, _, index = name.rpartition("_")
        return {**self.prompts, **self.own(role, int(index)).prompts}

    def lora_of(self, role: str, index: int) -> LoraConfig:
        """Return the shape of an agent's adapter."""
        return self.own(role, index).lora.over(self.train.lora)

    @model_validator(mode="before")
    @classmethod
    def _address_of_the_service(cls, tree: Any) -> Any:
        """Sample from the service that finetunes, unless an address is given."""
        engine, given = (tree.get("engine"), tree.get("openai") or {}) if isinstance(tree, dict) else (None, None)
        trainer = engine.get("trainer") if isinstance(engine, dict) else getattr(engine, "trainer", None)
        service = HOSTED.get(str(trainer))
        if service is None or service.base_url is None or not isinstance(given, dict):
            return tree
        defaults = {"base_url": service.base_url, "api_key_env": service.api_key_env}
        return tree | {"openai": defaults | {name: value for name, value in given.items() if value is not None}}

    @model_validator(mode="after")
    def _task_knows_its_sandbox(self) -> Self:
        for task in (self.task, *self.eval.also):
            task._sandbox = self.sandbox
        return self

    def faults(self) -> Iterator[str]:
        """See `Section`."""
        return chain(_of_agents(self), _of_training(self), _of_meaning(self))


def _of_agents(config: RunConfig) -> Iterator[str]:
    for role, given in (("generators", config.society.generators), ("critics", config.society.critics)):
        if given and len(given) != config.debate.num_agents:
            yield (
                f"society.{role} has {len(given)} entries, but debate.num_agents is {config.debate.num_agents}. "
                "Name one for each agent, or none."
            )
    alike = {
        entry if isinstance(entry, str) else entry.model_dump_json(exclude={"sampling", "prompts"})
        for entry in (*config.society.generators, *config.society.critics)
    }
    if config.society.one_model and len(alike) > 1:
        yield "society.one_model is one model for all agents, and society names several."
    if config.society.one_model and config.curate.questions != "all":
        yield (
            f"curate.questions = {config.curate.questions} gives each agent its own questions, but "
            "society.one_model has only one agent. Set curate.questions to all."
        )
    if config.curate.weight_by == "gain" and (config.debate.num_rounds == 1 or config.debate.protocol == "vote"):
        yield (
            "curate.weight_by = gain needs a round after the first answers, and there is none. Set "
            "debate.num_rounds to 2 or more and a protocol with critics, or curate.weight_by to none or margin."
        )
    if config.vote.weight == "likelihood" and not config.debate.keep_tokens:
        yield ("vote.weight = likelihood needs the log-probabilities of the replies. Set debate.keep_tokens to true.")


def _of_training(config: RunConfig) -> Iterator[str]:
    engine, processes = config.engine, config.engine.num_train_processes
    if engine.train_sharding != "none" and processes == 1:
        yield (
            f"engine.train_sharding = {engine.train_sharding} divides a model among processes, and "
            "engine.num_train_processes is 1. Set it to the number of GPUs, or engine.train_sharding to none."
        )
    for iteration in range(1, config.num_iterations + 1):
        for role in ("generator", "critic"):
            size = config.train.of(role, iteration).batch_size
            if size % processes:
                yield (
                    f"train.batch_size = {size} ({role}, iteration {iteration}) cannot be divided among "
                    f"engine.num_train_processes = {processes}. Choose a multiple of {processes}."
                )
    if config.train.online_questions and config.train.start_from == "base":
        yield "train.online_questions continues from turn to turn. Set train.start_from=previous."
    service = HOSTED.get(config.engine.trainer)
    if service and service.methods and config.train.method not in service.methods:
        yield (
            f"train.method = {config.train.method}: engine.trainer = {config.engine.trainer} offers "
            f"{' and '.join(service.methods)}."
        )
    for (role, iteration), objective in config.train.objectives(config.num_iterations).items():
        if service and objective not in service.objectives:
            yield (
                f"train.objective = {objective}: engine.trainer = {config.engine.trainer} finetunes with "
                f"{' and '.join(service.objectives)} only."
            )
        if config.curate.keep != "agreeing" and EXAMPLES.get(objective, "agreeing") != "agreeing":
            yield (
                f"train.objective = {objective} ({role}, iteration {iteration}) needs labels, and curate.keep = "
                f"{config.curate.keep} has none. Set curate.keep=agreeing or train.objective=sft."
            )
        why = without_contrast(config, role, iteration)
        if why and EXAMPLES.get(objective, "agreeing") != "agreeing":
            yield (
                f"train.objective = {objective} ({role}, iteration {iteration}) needs dissenting as well as "
                f"agreeing responses to a question, but {why}. Or set train.{role}.objective=sft."
            )


def _of_meaning(config: RunConfig) -> Iterator[str]:
    """Yield what would change what another setting means."""
    debate, curate = config.debate, config.curate
    objectives = set(config.train.objectives(config.num_iterations).values())
    if "grpo" in objectives and (curate.weight_by != "none" or curate.max_examples is not None):
        yield (
            "train.objective = grpo compares all answers to a question, so it does not work with curate.weight_by "
            "and curate.max_examples. Leave these two out."
        )
    if curate.keep != "agreeing" and ("weighted" in objectives or curate.weight_by != "none"):
        named = f"curate.weight_by = {curate.weight_by}" if curate.weight_by != "none" else "train.objective = weighted"
        yield (
            f"{named} weighs responses by the vote for their label, and curate.keep = {curate.keep} learns others, "
            "too. Set curate.keep=agreeing, or train.objective=sft and curate.weight_by=none."
        )
    if config.vote.label != "majority" and (curate.weight_by == "margin" or "weighted" in objectives):
        yield (
            f"vote.label = {config.vote.label} has no margin to weigh by. Set curate.weight_by=none and "
            "train.objective=sft."
        )
    if debate.wrong_majorities is not None:
        labels = {of_iteration(config.vote.label_from, number + 1) for number in range(config.num_iterations)}
        if debate.protocol == "vote" or debate.num_rounds == 1 or labels - {"first"}:
            yield (
                "debate.wrong_majorities shows critics wrong majorities on purpose: it needs critics "
                "(debate.num_rounds of 2 or more) and labels that do not come from them (vote.label_from=first)."
            )
    if curate.choose == "distinct" and debate.num_samples == 1:
        yield (
            "curate.choose = distinct chooses among several first answers of an agent. Set debate.num_samples to 2 "
            "or more, or curate.choose=first."
        )
    if curate.examples_per_question > 1 and debate.num_samples == 1 and debate.protocol in PROTOCOLS:
        yield (
            f"curate.examples_per_question = {curate.examples_per_question} has no effect: debate.num_samples is 1, so "
            f"that a generator has one first answer to a question. Set debate.num_samples to "
            f"{curate.examples_per_question} or more, or curate.examples_per_question=1."
        )
    if config.train.online_questions and curate.questions == "shards":
        yield (
            "curate.questions = shards gives each agent fixed questions, which does not work with the turns of "
            "train.online_questions. Leave one of them out."
        )
    if config.task.equality == "judge" and (debate.protocol in COMPARING or debate.quote == "answers"):
        yield (
            "task.equality = judge compares answers when a debate is finished, and debate.protocol = "
            f"{debate.protocol} with debate.quote = {debate.quote} needs it before. Choose another protocol or "
            "quote, or task.equality = embedding."
        )
    unread = debate.protocol in ("sparse", "conformist") or debate.max_others < debate.num_agents - 1
    if curate.weight_by == "gain" and (debate.num_samples > 1 or unread):
        yield (
            "curate.weight_by = gain credits an answer with those who read it: every agent must read every debated "
            "answer. Set debate.num_samples=1, debate.max_others to at least debate.num_agents - 1, and another "
            "debate.protocol than sparse or conformist."
        )


def without_contrast(config: RunConfig, role: str, iteration: int) -> str | None:
    """Say why a role can have no examples for its objective, and what to change; None if it can, or nobody knows."""
    debate, which = config.debate, of_iteration(config.vote.label_from, iteration)
    first_only, num_first = debate.protocol == "vote" or debate.num_rounds == 1, debate.num_samples
    shape = EXAMPLES.get(config.train.of(role, iteration).objective)
    if role == "critic" and (first_only or not config.train.critics or config.society.one_model):
        return None
    if shape == "advantages" and role == "critic":
        return "a critic has one answer to a prompt. Set train.critic.objective=kto"
    if shape in ("pairs", "advantages") and role == "generator" and num_first == 1 and debate.protocol in PROTOCOLS:
        return "debate.num_samples is 1, so that a generator has one answer to a question. Set debate.num_samples=4"
    if debate.protocol not in ("debate", "vote"):
        return None
    ballots = debate.num_agents * (1 if which == "last" else num_first) + (which == "all") * debate.num_agents
    votes_itself = {"last": role == "critic" or (first_only and num_first == 1), "first": role == "generator"}
    if shape == "pairs" and role == "critic":
        votes_itself = {"last": False, "first": False}  # its first answer and its last one are compared
    if votes_itself.get(which, True) and (ballots == 1 or config.vote.min_agreement == 1):
        return "its own answers must all be the label (vote.min_agreement). Set vote.min_agreement=majority"
    return None


def check_loop(config: RunConfig) -> None:
    """Refuse engines that cannot take turns: what one finetunes, the other must be able to sample from.

    Raises:
        ConfigError: only one of the two engines is a hosted service.
    """
    engine = config.engine
    if engine.sampler == "openai" and engine.trainer == "local" and config.openai.load_adapters:
        return
    if (engine.sampler == "openai") != (engine.trainer in HOSTED):
        raise ConfigError(
            f"engine.sampler = {engine.sampler} cannot sample agents that engine.trainer = {engine.trainer} finetunes. "
            f"Set engine.sampler=openai with a service as the trainer ({', '.join(HOSTED)}), or another engine with "
            "local, or openai.load_adapters for a vLLM server, or do single stages with `maft debate`, `maft finetune` "
            "and `maft eval`."
        )
