"""Debates and votes to each agent's examples, in the shape that its objective learns from."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from maft.config import RunConfig
from maft.method import contrast, curate, learners, protocol_of
from maft.method.curate import CurateCounts, Curated
from maft.records import Debate, Vote
from maft.trainers import objectives


def makers(
    config: RunConfig, iteration: int, debates: Iterable[Debate], votes: Mapping[str, Vote]
) -> dict[str, Callable[[], Curated]]:
    """Return, by learner, a function that makes its set: limited, and with weights."""
    make = of_agents(config, iteration, debates, votes)
    if config.society.one_model:
        every = tuple(make.values())
        make = {learners(config)[0]: lambda: curate.pool(one() for one in every)}

    def chosen(name: str) -> Curated:
        training = config.train.of(name.rpartition("_")[0], iteration)
        made = curate.limit(make[name](), iteration, config.curate, config.seed)
        if training.objective == "weighted":
            return contrast.margin_weights(made, votes)
        return made._replace(examples=contrast.class_weights(made.examples, training))

    return {name: partial(chosen, name) for name in learners(config)}


def of_agents(
    config: RunConfig, iteration: int, debates: Iterable[Debate], votes: Mapping[str, Vote]
) -> dict[str, Callable[[], Curated]]:
    """Return, by agent, a function that makes the examples of its own responses."""
    how, seed = config.curate, config.seed

    def apportioned(role: str, n: int) -> Curated:
        return curate.apportion(made(role, n), n, config.debate.num_agents, how, seed)

    def made(role: str, n: int) -> Curated:
        training = config.train.of("generator" if config.society.one_model else role, iteration)
        shape = objectives.make(training.objective).examples
        if shape == "advantages" and role == "critic":  # it shares a generator's model, and answers a prompt once
            return Curated((), CurateCounts(examples=0))
        if shape != "agreeing":
            of_role = contrast.generator_contrasts if role == "generator" else contrast.critic_contrasts
            return of_role(debates, votes, n, how, seed, shape)
        if role == "generator":
            return curate.generator_examples(debates, votes, n, how, seed)
        return curate.critic_examples(debates, votes, n, how, seed, config.train.loss_turns)

    roles = protocol_of(config.debate).roles(config.debate)
    return {f"{role}_{n}": partial(apportioned, role, n) for role in roles for n in range(config.debate.num_agents)}
