"""Example sets to finetuned agents: one training job for each agent, on its own examples only."""

from collections.abc import Callable, Mapping
from pathlib import Path

from maft import seeds
from maft.records import AgentRef, Society
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.trainers.base import Trainer, TrainJob, TrainProgress


def finetune(
    folder: RunFolder,
    iteration: int,
    society: Society,
    num_examples: Mapping[str, int],
    trainer: Trainer,
    on_progress: Callable[[TrainProgress], None] = lambda _: None,
) -> Society:
    """Finetune the agents that are missing and have examples, and return the society of the next iteration.

    With `train.start_from: previous` they start from the weights of `society`, which debated.
    """
    names = societies.missing(folder, iteration)
    jobs = [job(folder, iteration, agent, num_examples[agent.name]) for agent in society.agents if agent.name in names]
    if jobs:
        jobs.sort(key=lambda job: job.base_model)  # each base is loaded once
        trainer.train(jobs, folder.config.train, on_progress)
    return societies.after(folder, iteration)


def job(folder: RunFolder, iteration: int, agent: AgentRef, num_examples: int) -> TrainJob:
    """Return the training of an agent in an iteration."""
    first = {agent.name: agent for agent in societies.untrained(folder.config).agents}
    start = agent if folder.config.train.start_from == "previous" else first[agent.name]
    return TrainJob(
        agent=agent.name,
        role=agent.role,
        iteration=iteration,
        examples=folder.examples(iteration, agent.name),
        num_examples=num_examples,
        base_model=start.model,
        init_adapter=Path(start.adapter) if start.adapter else None,
        output=folder.agent(iteration, agent.name),
        seed=seeds.seed(folder.config.seed, "train", iteration, agent.name),
        lora=folder.config.lora_of(agent.role, agent.index),
        keep_optimizer=folder.config.train.online_questions is not None,
    )
