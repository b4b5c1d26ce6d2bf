"""Example sets to finetuned agents: one training job for each agent, on its own examples only."""

from collections.abc import Callable, Mapping
from pathlib import Path

from maft import seeds
from maft.config import RunConfig
from maft.records import AgentRef, Society
from maft.store import RunFolder
from maft.trainers.base import Trainer, TrainJob, TrainProgress


def finetune(
    folder: RunFolder,
    iteration: int,
    society: Society,
    num_examples: Mapping[str, int],
    trainer: Trainer,
    on_progress: Callable[[TrainProgress], None] = lambda _: None,
) -> Society:
    """Finetune the agents that are owed, and return the society of the next iteration.

    Args:
        folder: holds the examples, gets the agents.
        iteration: from 1.
        society: who debated in this iteration; `train.start_from: previous` goes on from these weights.
        num_examples: by agent name.
        trainer: does the work.
        on_progress: is told of every optimiser step.
    """
    owed = [agent for agent in society.trained if not folder.agent(iteration, agent.name).exists()]
    if owed:
        jobs = [_job(folder, iteration, agent, num_examples[agent.name]) for agent in owed]
        trainer.train(jobs, folder.config.train, on_progress)
    return after(folder, iteration)


def untrained(config: RunConfig) -> Society:
    """Return the society of the first iteration: N generators, N critics and the summariser, all the base model.

    Debates of one round have no critics.
    """

    def agents(role: str) -> tuple[AgentRef, ...]:
        return tuple(
            AgentRef.model_validate({"role": role, "index": n, "model": config.model})
            for n in range(config.debate.num_agents)
        )

    critics = agents("critic") if config.debate.num_rounds > 1 else ()
    return Society(generators=agents("generator"), critics=critics, summarizer=_summarizer(config))


def after(folder: RunFolder, iteration: int) -> Society:
    """Return the society that `iteration` finetunings have made; after 0 it is untrained."""
    society = untrained(folder.config)
    if iteration == 0:
        return society

    def trained(agents: tuple[AgentRef, ...]) -> tuple[AgentRef, ...]:
        return tuple(
            agent.model_copy(update={"adapter": str(folder.agent(iteration, agent.name).resolve())}) for agent in agents
        )

    return society.model_copy(update={"generators": trained(society.generators), "critics": trained(society.critics)})


def _summarizer(config: RunConfig) -> AgentRef | None:
    who = config.debate.summarizer
    if who in ("none", "self"):
        return None
    return AgentRef(role="summarizer", index=0, model=config.model if who == "base" else who)


def _job(folder: RunFolder, iteration: int, agent: AgentRef, num_examples: int) -> TrainJob:
    previous = Path(agent.adapter) if agent.adapter and folder.config.train.start_from == "previous" else None
    return TrainJob(
        agent=agent.name,
        role=agent.role,
        iteration=iteration,
        examples=folder.examples(iteration, agent.name),
        num_examples=num_examples,
        base_model=agent.model,
        init_adapter=previous,
        output=folder.agent(iteration, agent.name),
        seed=seeds.seed(folder.config.seed, "train", iteration, agent.name),
    )
