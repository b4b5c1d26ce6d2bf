"""What a run will cost, before anything runs."""

from collections.abc import Sequence
from typing import NamedTuple

from maft import tasks
from maft.config import DebateConfig, RoleSampling, RunConfig, prompts
from maft.hosted import service as hosted
from maft.hosted.service import BYTES_PER_TOKEN, MILLION
from maft.method import learners, protocol_of
from maft.records import Problem
from maft.tasks import prepare

MESSAGE_TOKENS = 10
"""What a chat template adds to a message, rather too many."""


def plan(config: RunConfig) -> str:
    """Return the plan of a run as text: calls, tokens at most, trainings; for hosted models money as well."""
    train, held_out = config.task.num_train, config.task.num_eval
    if train is None or held_out is None:
        return "Plan: set task.num_train and task.num_eval to have calls and tokens counted beforehand."
    protocol = protocol_of(config.debate)
    calls = train * config.num_iterations * protocol.calls(config.debate)
    calls += held_out * (config.num_iterations + 1) * protocol.calls(evaluated(config))
    longest = max(
        how.max_new_tokens
        for widest in (_widest(config, role) for role in (config.sampling.train, config.sampling.eval) if role)
        for how in (widest.generator, widest.critic, widest.summarizer)
    )
    text = (
        f"Plan: {config.num_iterations} iterations of {train} debates, {config.num_iterations + 1} evaluations of "
        f"{held_out} debates; {calls:,} calls, at most {calls * longest:,} generated tokens; "
        f"{config.num_iterations * len(learners(config))} finetunings."
    )
    return f"{text}\n{_money(config)}" if "openai" in (config.engine.sampler, config.engine.trainer) else text


def _widest(config: RunConfig, sampling: RoleSampling) -> RoleSampling:
    """Return the sampling of each role with the longest replies that one of its agents may give."""
    agents = range(config.debate.num_agents)
    longest = {
        role: how.model_copy(
            update={"max_new_tokens": max(config.own(role, n).sampling.over(how).max_new_tokens for n in agents)}
        )
        for role, how in (("generator", sampling.generator), ("critic", sampling.critic))
    }
    return sampling.model_copy(update=longest)


class Tokens(NamedTuple):
    """Most tokens that something can take."""

    prompt: float = 0.0
    completion: float = 0.0
    training: float = 0.0


def most_tokens(config: RunConfig) -> Tokens:
    """Return the most tokens that a run can take, if every reply is as long as it may be and all of them are learned.

    It reads the questions, and estimates their tokens from their characters.
    """
    task = tasks.make(config.task)
    split = prepare(task)
    texts = prompts.build(task.prompts, config.prompts)
    held = _debates(split.train, config.debate, _widest(config, config.sampling.train), texts)
    sampling = _widest(config, config.sampling.eval or config.sampling.train)
    rated = _debates(split.eval, evaluated(config), sampling, texts)
    rounds, evaluations = config.num_iterations, config.num_iterations + 1
    return Tokens(
        prompt=rounds * held.prompt + evaluations * rated.prompt,
        completion=rounds * held.completion + evaluations * rated.completion,
        training=held.training * sum(_most_epochs(config, number) for number in range(1, rounds + 1)),
    )


def _most_epochs(config: RunConfig, iteration: int) -> int:
    return max(config.train.of(role, iteration).num_epochs for role in ("generator", "critic"))


def _money(config: RunConfig) -> str:
    most, prices = most_tokens(config), config.openai
    text = (
        f"At most {most.prompt:,.0f} prompt tokens, {most.completion:,.0f} generated tokens and {most.training:,.0f} "
        "tokens of finetuning, if all replies are as long as allowed and all are learned; of the questions, "
        f"{BYTES_PER_TOKEN} bytes are taken for a token"
    )
    if None in (prices.prompt_price, prices.completion_price, prices.training_price):
        return f"{text}. Set openai.prompt_price, completion_price and training_price to have the money told."
    each = (prices.prompt_price or 0.0, prices.completion_price or 0.0, prices.training_price or 0.0)
    usd = sum(tokens * price for tokens, price in zip(most, each, strict=True)) / MILLION
    limit = "no limit is set" if prices.spending_limit is None else f"the limit is {prices.spending_limit} USD"
    return f"{text}: at most {usd:,.2f} USD; {limit} (openai.spending_limit)."


def evaluated(config: RunConfig) -> DebateConfig:
    """Return the settings of debates on held-out questions."""
    more = config.debate.num_eval_samples or config.debate.num_samples
    return config.debate.model_copy(update={"num_samples": more})


def _debates(
    problems: Sequence[Problem], debate: DebateConfig, sampling: RoleSampling, texts: prompts.Prompts
) -> Tokens:
    """Return the most tokens of one debate on each question; of finetuning, for one epoch."""
    total = Tokens()
    for problem in problems:
        one = _debate(_tokens(problem.question), debate, sampling, texts)
        total = Tokens(*(a + b for a, b in zip(total, one, strict=True)))
    return total


def _debate(question: float, debate: DebateConfig, sampling: RoleSampling, texts: prompts.Prompts) -> Tokens:
    longest: dict[str, int] = {role: getattr(sampling, role).max_new_tokens for role in RoleSampling.model_fields}
    prompt = completion = 0.0
    rows: dict[str, float] = {}
    for kind in protocol_of(debate).kinds(debate, texts):
        read = sum(_tokens(text) + question for text in kind.texts)
        quoted = (*kind.quoted.items(), *kind.answers.items())
        read += sum(number * longest[role] for role, number in quoted)
        prompt += kind.times * read
        completion += kind.times * longest[kind.role]
        if kind.kind == "answer":
            rows[kind.role] = read + longest[kind.role]
    return Tokens(prompt, completion, debate.num_agents * sum(rows.values()))


def _tokens(text: str) -> float:
    return hosted.tokens(text) + MESSAGE_TOKENS
