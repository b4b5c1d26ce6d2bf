"""The method as pure rules: who is asked what, who wins the vote, who learns from what. No disk, no engine."""

from collections.abc import Mapping
from pathlib import Path

from maft.config import AgentConfig, DebateConfig, RunConfig
from maft.extensions import find
from maft.method import debate
from maft.method.protocol import Play, Protocol, Rules
from maft.records import Problem

__all__ = ["PROTOCOLS", "Play", "Protocol", "Rules", "bases", "judge_model", "learners", "play", "protocol_of"]

PROTOCOLS: Mapping[str, type[Protocol]] = {
    protocol.name: protocol
    for protocol in (
        *(debate.SynchronousDebate, debate.FirstAnswers, debate.Contested, debate.Dissenters, debate.Conformist),
        *(debate.Sparse, debate.Aggregator, debate.Judge),
    )
}


def protocol_of(settings: DebateConfig) -> Protocol:
    """Return the protocol that the settings name.

    Raises:
        ConfigError: it comes from outside and cannot be loaded.
    """
    kind = PROTOCOLS.get(settings.protocol) or find("protocol", settings.protocol, Protocol)
    return kind()


def play(problem: Problem, rules: Rules) -> Play:
    """Debate one question by the protocol of the rules."""
    return protocol_of(rules.debate).play(problem, rules)


def learners(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the agents that are finetuned, each for itself, or one for all of them."""
    if config.society.one_model:
        return ("generator_0",)
    roles = [r for r in protocol_of(config.debate).roles(config.debate) if r != "critic" or config.train.critics]
    return tuple(f"{role}_{n}" for role in roles for n in range(config.debate.num_agents))


def bases(config: RunConfig) -> tuple[str, ...]:
    """Return what the agents and the summariser begin with, by name: one base model where all are alike."""
    own = {"generator": config.society.generators, "critic": config.society.critics}
    roles = protocol_of(config.debate).roles(config.debate)
    entries = [entry for role in roles for entry in own.get(role) or (config.model,)]
    named = [
        entry.model or config.model if isinstance(entry, AgentConfig) else _base(config, entry) for entry in entries
    ]
    who, summarised = config.debate.summarizer, config.debate.quoted == "summary"
    summarizer = [config.model if who == "base" else who] if summarised and who != "self" else []
    judge = judge_model(config)
    return tuple(dict.fromkeys([*named, *summarizer, *([judge] if judge else [])]))


def judge_model(config: RunConfig) -> str | None:
    """Return the model that compares answers in the run's own engine; None if nobody does, or a hosted one."""
    name = config.task.judge
    if name.startswith("openai:") or (name == "base" and config.task.equality != "judge"):
        return None
    return config.model if name == "base" else name


def _base(config: RunConfig, weights: str) -> str:
    """Return the model of an agent that is a name alone: itself, or the run's where it is an adapter's folder."""
    folder = Path(weights).expanduser()
    return config.model if folder.is_dir() and not (folder / "config.json").is_file() else weights
