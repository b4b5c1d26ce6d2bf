"""The protocol of one debate: who is asked what, given who said what.

A debate is a generator in Python's sense: it yields the requests that can be answered at the same time, is sent their
replies, and returns a `Debate`. It knows no engine; `rollouts` plays many of them side by side.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from maft import seeds
from maft.answers import extract_answer
from maft.config import AgentSampling, DebateConfig, RoleSampling
from maft.config import prompts as prompts_
from maft.config.prompts import Prompts
from maft.records import AgentRef, Call, Debate, Message, Problem, Reply, Request, SamplingParams, Society, Turn

Play = Generator[list[Request], list[Reply], Debate]


class Rules(NamedTuple):
    """What all debates of a stage have in common."""

    society: Society
    debate: DebateConfig
    prompts: Prompts
    sampling: RoleSampling
    run_seed: int
    iteration: int
    stage: str = "train"
    """Part of every seed: debates on training and on held-out questions draw different streams."""
    own_sampling: Mapping[str, AgentSampling] = MappingProxyType({})
    """What is different for the answers of single agents, by name."""
    extract: Callable[[str], str | None] = extract_answer
    """Reads the answer out of a reply, as the task wants it."""


def calls_per_debate(debate: DebateConfig) -> int:
    """Return the calls of one debate, summaries and further first answers included."""
    per_critic = 1 if debate.summarizer == "none" or debate.num_agents == 1 else 2
    return debate.num_agents * (debate.num_samples + (debate.num_rounds - 1) * per_critic)


class CallFailed(Exception):
    """A request got a reply with an error; ends this debate only."""


def play(problem: Problem, rules: Rules) -> Play:
    """Debate one question: round 1 is the generators', every later round the critics'.

    Rounds are synchronous: what is shown in round m was said in round m - 1. A call that fails ends the debate, which
    is then a record with an `error`.
    """
    turns: list[Turn] = []
    samples: list[Turn] = []
    error = None
    try:
        answered = yield from first_round(problem, rules)
        turns, samples = answered[: rules.debate.num_agents], answered[rules.debate.num_agents :]
        for number in range(2, rules.debate.num_rounds + 1):
            turns += yield from critic_round(problem, rules, number, turns)
    except CallFailed as failure:
        error = str(failure)
    return _record(problem, rules, turns, error, samples)


def first_round(problem: Problem, rules: Rules) -> Generator[list[Request], list[Reply], list[Turn]]:
    """Every generator answers the question alone, once for the debate and then, for the vote only, as often as asked.

    All at once, since an engine reads a question once for all answers to it.
    """
    purposes = ["answer", *(f"sample {k}" for k in range(1, rules.debate.num_samples))]
    asked = [
        _Ask(
            agent,
            n,
            prompts_.fill(rules.prompts.solve, question=problem.question, agent=f"{n + 1}"),
            _system(rules),
            _drawn(rules, agent, rules.sampling.generator),
            purpose,
        )
        for purpose in purposes
        for n, agent in enumerate(rules.society.generators)
    ]
    calls = yield from _ask(asked, problem, rules, 1)
    return [_turn(rules, ask.place, 1, call) for ask, call in zip(asked, calls, strict=True)]


def critic_round(
    problem: Problem, rules: Rules, number: int, said: Sequence[Turn]
) -> Generator[list[Request], list[Reply], list[Turn]]:
    """Every critic reads what the others said in the round before, then answers within its own dialogue."""
    before = [turn for turn in said if turn.round == number - 1]
    others = [_others(before, n, rules, problem, number) for n in range(len(before))]
    summaries: list[Call] | None = None
    if rules.debate.summarizer != "none" and len(before) > 1:
        asked = [
            _Ask(
                _summarizer(rules, n),
                n,
                prompts_.fill(rules.prompts.summarize, question=problem.question, answers=prompts_.quote(texts)),
                (),
                rules.sampling.summarizer,
                "summary",
            )
            for n, texts in enumerate(others)
        ]
        summaries = yield from _ask(asked, problem, rules, number)
    so_far = _record(problem, rules, said, None)
    asked = [
        _Ask(
            critic,
            n,
            _critic_prompt(problem, rules, n, others[n], summaries[n].reply.text if summaries else None),
            so_far.dialogue(n),
            _drawn(rules, critic, rules.sampling.critic),
            "answer",
        )
        for n, critic in enumerate(rules.society.critics)
    ]
    calls = yield from _ask(asked, problem, rules, number)
    return [_turn(rules, n, number, call, summaries[n] if summaries else None) for n, call in enumerate(calls)]


class _Ask(NamedTuple):
    """One call to make: `prompt` is put after `history`."""

    agent: AgentRef
    place: int
    prompt: str
    history: tuple[Message, ...]
    sampling: SamplingParams
    purpose: str


def _ask(
    asked: Sequence[_Ask], problem: Problem, rules: Rules, number: int
) -> Generator[list[Request], list[Reply], list[Call]]:
    requests = [
        Request(
            agent=ask.agent,
            messages=(*ask.history, Message(role="user", content=ask.prompt)),
            sampling=ask.sampling,
            seed=seeds.seed(rules.run_seed, rules.stage, rules.iteration, problem.id, ask.place, number, ask.purpose),
        )
        for ask in asked
    ]
    replies = (yield requests) if requests else []
    for ask, reply in zip(asked, replies, strict=True):
        if reply.error is not None:
            raise CallFailed(f"{ask.agent.name}, round {number}: {reply.error}")
    return [
        Call(
            agent=ask.agent.name,
            prompt=ask.prompt,
            reply=reply if rules.debate.keep_tokens else reply.without_tokens(),
            seed=request.seed,
        )
        for ask, request, reply in zip(asked, requests, replies, strict=True)
    ]


def _others(before: Sequence[Turn], agent: int, rules: Rules, problem: Problem, number: int) -> list[str]:
    """Return what the other agents said in the round before: at most `max_others`, in an order drawn by seed."""
    texts = [turn.call.reply.text for turn in before if turn.agent != agent]
    seeds.rng(rules.run_seed, rules.stage, rules.iteration, problem.id, agent, number, "others").shuffle(texts)
    return texts[: rules.debate.max_others]


def _critic_prompt(problem: Problem, rules: Rules, agent: int, others: Sequence[str], summary: str | None) -> str:
    parts = {"question": problem.question, "agent": f"{agent + 1}"}
    if summary is not None:
        return prompts_.fill(rules.prompts.critic_summary, summary=summary.strip(), **parts)
    if others:
        return prompts_.fill(rules.prompts.critic_full, answers=prompts_.quote(others), **parts)
    return prompts_.fill(rules.prompts.critic_alone, **parts)


def _summarizer(rules: Rules, agent: int) -> AgentRef:
    return rules.society.summarizer or rules.society.critics[agent]


def _drawn(rules: Rules, agent: AgentRef, how: SamplingParams) -> SamplingParams:
    return rules.own_sampling[agent.name].over(how) if agent.name in rules.own_sampling else how


def _system(rules: Rules) -> tuple[Message, ...]:
    return () if rules.prompts.system is None else (Message(role="system", content=rules.prompts.system),)


def _turn(rules: Rules, agent: int, number: int, call: Call, summary: Call | None = None) -> Turn:
    return Turn(agent=agent, round=number, call=call, answer=rules.extract(call.reply.text), summary=summary)


def _record(
    problem: Problem, rules: Rules, turns: Sequence[Turn], error: str | None, samples: Sequence[Turn] = ()
) -> Debate:
    return Debate(
        iteration=rules.iteration,
        problem_id=problem.id,
        question=problem.question,
        system=rules.prompts.system,
        turns=tuple(turns),
        samples=tuple(samples),
        error=error,
    )
