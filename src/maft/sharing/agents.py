"""The finetuned agents of a run, by name and iteration."""

from pathlib import Path
from typing import NamedTuple

from maft import files
from maft.errors import DataError, UserError
from maft.method import learners
from maft.records import AgentRef
from maft.runs import societies, status
from maft.runs.folder import RunFolder
from maft.trainers import cards


class Agent(NamedTuple):
    """A finetuned agent of a run."""

    ref: AgentRef
    """Its weights: an adapter on a model, or a whole model."""
    base: str
    """Its base model, as the config names it."""
    folder: Path
    iteration: int

    @property
    def name(self) -> str:
        """Such as `critic_2`."""
        return self.ref.name


def choose(run: RunFolder, name: str | None, iteration: int | None) -> list[Agent]:
    """Return agents by name and iteration.

    The name is such as `critic_2`, or `all`; None is the only agent. The iteration None is the newest finished one.

    Raises:
        UserError: there is no such agent or iteration, or several where none was named.
        DataError: an agent is a hosted model, or has no weights.
    """
    number = _iteration(run, iteration)
    names = learners(run.config)
    if name is None and len(names) > 1:
        raise UserError(
            f"{run.path} has {len(names)} finetuned agents: {', '.join(names)}. "
            "Choose one with --agent NAME, or --agent all."
        )
    if name not in (None, "all", *names):
        raise UserError(f"--agent must be one of {', '.join(names)} or all; got {name}.")
    first = {agent.name: agent.model for agent in societies.untrained(run.config).agents}
    after = {agent.name: agent for agent in societies.after(run, number).agents}
    wanted = names if name in (None, "all") else (name,)
    places = {one: _place(run, number, one) for one in wanted}
    chosen = [Agent(after[one], first[one], run.agent(place, one), place) for one, place in places.items()]
    for agent in chosen:
        _check(agent)
    return chosen


def _place(run: RunFolder, number: int, agent: str) -> int:
    """Return the iteration in which an agent was finetuned last, up to a number."""
    idle = [n for n in range(1, number + 1) if agent in societies.without_examples(run, n)]
    places = [n for n in range(number, 0, -1) if n not in idle]
    if not places:
        raise UserError(f"{agent} was never finetuned: it had no examples in {len(idle)} iterations.")
    return places[0]


def described(run: RunFolder, agent: Agent, base: str, *, merged: bool) -> cards.Finetuned:
    """Return the content of an agent's card; `base` is a public name of its base model."""
    role, lora = agent.ref.role, run.config.lora_of(agent.ref.role, agent.ref.index)
    return cards.Finetuned(
        agent=agent.name,
        role=role,
        iteration=agent.iteration,
        base=base,
        training=run.config.train.of(role, agent.iteration).model_copy(update={"lora": lora}),
        summary=files.read_json(agent.folder / "training.json"),
        merged=merged and agent.ref.adapter is not None,
    )


def _iteration(run: RunFolder, asked: int | None) -> int:
    last = run.config.num_iterations
    if asked is not None and not 1 <= asked <= last:
        raise UserError(f"--iteration must be 1 to num_iterations = {last}, got {asked}.")
    number = status.newest(run) if asked is None else asked
    if number == 0:
        raise UserError(
            f"{run.path} has no finished iteration yet. Finetune its agents first, with `maft run` or `maft finetune`."
        )
    return number


def _check(agent: Agent) -> None:
    if not agent.folder.is_dir():
        raise UserError(
            f"{agent.name} of iteration {agent.iteration} is not finetuned yet: there is no {agent.folder}."
        )
    if (agent.folder / "hosted.json").is_file():
        raise DataError(
            f"{agent.name} is the hosted model {agent.ref.model}: its weights stay with the service, and can be "
            "neither merged nor pushed. Only agents finetuned with engine.trainer=local have weights here."
        )
    if not any((agent.folder / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise DataError(
            f"{agent.folder} holds no weights: it has neither adapter_config.json nor config.json. "
            "Only agents finetuned with engine.trainer=local have weights."
        )
