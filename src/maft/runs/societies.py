"""The society of each iteration: the weights of every agent, untrained and finetuned."""

from collections.abc import Sequence
from pathlib import Path

from maft import files, models
from maft.config import AgentConfig, RunConfig
from maft.errors import DataError
from maft.method import learners, protocol_of
from maft.records import AgentRef, Role, Society
from maft.runs.folder import RunFolder


def untrained(config: RunConfig) -> Society:
    """Return the society of the first iteration: N generators, N critics and the summariser.

    All are the base model where the config names no other weights. A protocol without critics has none.
    """

    def agents(role: Role, entries: Sequence[str | AgentConfig]) -> tuple[AgentRef, ...]:
        chosen = entries or [config.model] * config.debate.num_agents
        return tuple(_first(role, n, entry, config.model) for n, entry in enumerate(chosen))

    roles = protocol_of(config.debate).roles(config.debate)
    critics = agents("critic", config.society.critics) if "critic" in roles else ()
    return Society(
        generators=agents("generator", config.society.generators), critics=critics, summarizer=_summarizer(config)
    )


def check(config: RunConfig) -> None:
    """Check, before any model is loaded, that the adapters which agents begin with fit their base models.

    Raises:
        DataError: one does not fit, or is no adapter.
    """
    if config.engine.sampler in ("scripted", "openai"):  # the model is not here
        return
    for agent in untrained(config).agents:
        if agent.adapter is not None:
            models.check_adapter(
                Path(agent.adapter), models.resolve(agent.model), trust=config.engine.trust_remote_code
            )


def after(folder: RunFolder, iteration: int) -> Society:
    """Return the society after `iteration` finetunings; after 0 it is untrained.

    An agent that had nothing to learn from keeps its weights.
    """
    society = untrained(folder.config)
    if iteration == 0:
        return society
    idle = without_examples(folder, iteration)
    before = {one.name: one for one in after(folder, iteration - 1).agents} if idle else {}

    names = learners(folder.config)

    def trained(one: AgentRef) -> AgentRef:
        learner = names[0] if folder.config.society.one_model else one.name
        if learner not in names:
            return one
        if learner in idle:
            return before[one.name]
        return agent(one.role, one.index, str(folder.agent(iteration, learner)), one.model)

    return society.model_copy(
        update={"generators": tuple(map(trained, society.generators)), "critics": tuple(map(trained, society.critics))}
    )


def speakers(config: RunConfig) -> dict[str, list[str]]:
    """Return the names of the agents by the name of their base model; a folder is named without its path."""
    by_model: dict[str, list[str]] = {}
    for one in untrained(config).agents:
        by_model.setdefault(one.model, []).append(one.name)
    short = {model: models.public_name(model) for model in by_model}
    return {short[model] if len(set(short.values())) == len(short) else model: of for model, of in by_model.items()}


def num_epochs(config: RunConfig, iteration: int, learner: str) -> int:
    """Return the number of epochs of a learner, such as `critic_2`, in an iteration."""
    return config.train.of(learner.rpartition("_")[0], iteration).num_epochs


def without_examples(folder: RunFolder, iteration: int) -> list[str]:
    """Return the learners that had no examples in an iteration, and have no folder in it."""
    summary = folder.examples_summary(iteration)
    counts = files.read_json(summary) if summary.exists() else {}
    return [name for name in counts if not counts[name]["examples"] and not folder.agent(iteration, name).exists()]


def missing(folder: RunFolder, iteration: int) -> list[str]:
    """Return the learners with examples that are not finetuned yet in an iteration."""
    idle = without_examples(folder, iteration)
    return [name for name in learners(folder.config) if name not in idle and not folder.agent(iteration, name).exists()]


def finished(folder: RunFolder, iteration: int) -> bool:
    """Say whether every agent of an iteration that has examples is finetuned."""
    return not missing(folder, iteration)


def agent(role: Role, index: int, weights: str, base: str) -> AgentRef:
    """Return the agent that speaks with `weights`.

    These are a model folder, an adapter folder (for the model `base`), the folder of a finished job of a hosted
    service, a hub name or the id of a hosted model.
    """
    folder = Path(weights).expanduser()
    if not folder.is_dir():
        return AgentRef(role=role, index=index, model=weights)
    if (folder / "hosted.json").is_file():
        return AgentRef(role=role, index=index, model=files.read_json(folder / "hosted.json")["model"])
    if (folder / "config.json").is_file():
        return AgentRef(role=role, index=index, model=str(folder.resolve()))
    return AgentRef(role=role, index=index, model=base, adapter=str(folder.resolve()))


def _first(role: Role, index: int, entry: str | AgentConfig, base: str) -> AgentRef:
    """Return the agent that an entry of the config describes."""
    if isinstance(entry, str):
        return agent(role, index, entry, base)
    model = entry.model or base
    if entry.adapter is None:
        first = agent(role, index, model, base)
        if first.adapter is not None:
            raise DataError(f"model {model} is the folder of an adapter. Set it as adapter, and its base as model.")
        return first
    return AgentRef(role=role, index=index, model=model, adapter=str(Path(entry.adapter).expanduser().resolve()))


def _summarizer(config: RunConfig) -> AgentRef | None:
    who = config.debate.summarizer
    if who == "self" or config.debate.quoted != "summary":
        return None
    return AgentRef(role="summarizer", index=0, model=config.model if who == "base" else who)
