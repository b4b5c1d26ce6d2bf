"""What a protocol is: who is asked what, given who said what, in one debate.

A debate is a generator in Python's sense: it yields the requests that can be answered at the same time, is sent their
replies, and returns a `Debate`. It knows no engine; `pipeline.rollouts` plays many of them side by side.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from maft import seeds
from maft.answers import extract_answer, thinking
from maft.answers.equality import Classes, Equality
from maft.config import AgentSampling, DebateConfig, RoleSampling
from maft.config.prompts import Prompts
from maft.method import vote
from maft.records import AgentRef, Call, Debate, Message, Problem, Reply, Request, Role, SamplingParams, Society, Turn

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
    own_prompts: Mapping[str, Prompts] = MappingProxyType({})
    """The prompts of agents that have other texts than all, by name."""
    extract: Callable[[str], str | None] = extract_answer
    """Reads the answer out of a reply, as the task wants it."""
    equality: Equality = vote.MATHEMATICS
    """The task's rule of which answers are the same."""
    history: tuple[Message, ...] = ()
    """A conversation that the question continues."""


class Calls(NamedTuple):
    """The calls of one kind in a debate, so that they can be counted before they are made."""

    kind: Literal["answer", "summary"]
    round: int
    role: Role
    """Whose sampling parameters and length of replies they have."""
    times: int
    """Most calls of one debate."""
    texts: tuple[str, ...]
    """The messages of the prompt that no model wrote, as templates."""
    quoted: Mapping[Role, int] = MappingProxyType({})
    """How many replies the prompt holds, by the role that wrote them."""
    answers: Mapping[Role, int] = MappingProxyType({})
    """How many answers it holds without their reasoning."""
    share: float = 1.0
    """Share of `times` to expect where answers decide who is asked: a guess, until it is measured."""

    @property
    def name(self) -> str:
        """Return the name of the kind, such as `summary 2`."""
        return f"{self.kind} {self.round}"


class Protocol(ABC):
    """How one question is debated. A protocol of your own defines `name`, `speak` and `kinds`."""

    name: str

    @abstractmethod
    def speak(
        self, problem: Problem, rules: Rules, turns: list[Turn], samples: list[Turn]
    ) -> Generator[list[Request], list[Reply], None]:
        """Ask (see `ask`), and add each answer to `turns`, or to `samples` if nobody is shown it.

        Raises:
            CallFailed: a request got a reply with an error.
        """

    @abstractmethod
    def kinds(self, settings: DebateConfig, prompts: Prompts) -> Iterator[Calls]:
        """Yield the kinds of calls of one debate, in the order in which they are made."""

    def play(self, problem: Problem, rules: Rules) -> Play:
        """Debate one question. A call that fails ends the debate, which is then a record with an `error`."""
        turns: list[Turn] = []
        samples: list[Turn] = []
        error = None
        try:
            yield from self.speak(problem, rules, turns, samples)
        except CallFailed as failure:
            error = str(failure)
        return record(problem, rules, turns, error, samples)

    def ballots(self, debate: Debate, which: str) -> tuple[Turn, ...]:
        """Return the turns whose answers vote: of the `last` round, the `first` with its samples, or `all`."""
        return vote.ballots(debate, which)

    def calls(self, settings: DebateConfig) -> int:
        """Return the number of calls of one debate, summaries and further first answers included."""
        return sum(kind.times for kind in self.kinds(settings, Prompts()))

    def roles(self, settings: DebateConfig) -> tuple[Role, ...]:
        """Return the roles that give answers, and so can learn; in the order in which they speak."""
        return tuple(dict.fromkeys(k.role for k in self.kinds(settings, Prompts()) if k.kind == "answer"))

    def rounds(self, settings: DebateConfig) -> int:
        """Return the number of rounds."""
        return max(kind.round for kind in self.kinds(settings, Prompts()))


class CallFailed(Exception):
    """A request got a reply with an error; ends this debate only."""


class Ask(NamedTuple):
    """One call to make: `prompt` is put after `history`."""

    agent: AgentRef
    place: int
    prompt: str
    history: tuple[Message, ...]
    sampling: SamplingParams
    purpose: str
    """Part of the seed, as the place and the round are."""


def ask(
    asked: Sequence[Ask], problem: Problem, rules: Rules, number: int
) -> Generator[list[Request], list[Reply], list[Call]]:
    """Make calls of one round that can be answered at the same time, and return them.

    Raises:
        CallFailed: one of them got a reply with an error.
    """
    requests = [
        Request(
            agent=one.agent,
            messages=(*one.history, Message(role="user", content=one.prompt)),
            sampling=one.sampling,
            seed=seeds.seed(rules.run_seed, rules.stage, rules.iteration, problem.id, one.place, number, one.purpose),
        )
        for one in asked
    ]
    replies = (yield requests) if requests else []
    for one, reply in zip(asked, replies, strict=True):
        if reply.error is not None:
            raise CallFailed(f"{one.agent.name}, round {number}: {reply.error}")
    return [
        Call(
            agent=one.agent.name,
            prompt=one.prompt,
            reply=reply if rules.debate.keep_tokens else reply.without_tokens(),
            seed=request.seed,
        )
        for one, request, reply in zip(asked, requests, replies, strict=True)
    ]


def texts(rules: Rules, agent: AgentRef) -> Prompts:
    """Return the prompts that an agent is asked with."""
    return rules.own_prompts.get(agent.name, rules.prompts)


def drawn(rules: Rules, agent: AgentRef, how: SamplingParams) -> SamplingParams:
    """Return how an agent's answers are drawn: as its role's, with what is set for the agent alone."""
    return rules.own_sampling[agent.name].over(how) if agent.name in rules.own_sampling else how


def system(rules: Rules) -> tuple[Message, ...]:
    """Return what stands before the first prompt of a dialogue."""
    first = () if rules.prompts.system is None else (Message(role="system", content=rules.prompts.system),)
    return first + rules.history


def shown(rules: Rules, reply: Reply) -> str:
    """Return what others are shown of a reply: all of it, or what comes after the thinking."""
    parted = thinking.strip(reply.text)
    hide = parted.thinking and not rules.debate.show_thinking
    return (parted.rest or "(no answer)") if hide else reply.text


def classes(turns: Sequence[Turn], problem: Problem, rules: Rules) -> Classes:
    """Return the class of each turn's answer; the known answer of the question is not looked at."""
    asked = Problem(id=problem.id, question=problem.question, code=problem.code)
    return rules.equality.classes([turn.answer for turn in turns], asked)


def turn(rules: Rules, agent: int, number: int, call: Call, summary: Call | None = None) -> Turn:
    """Return the turn of an agent in a round, with its answer read."""
    return Turn(agent=agent, round=number, call=call, answer=rules.extract(call.reply.text), summary=summary)


def record(
    problem: Problem, rules: Rules, turns: Sequence[Turn], error: str | None = None, samples: Sequence[Turn] = ()
) -> Debate:
    """Return a debate, finished or so far."""
    return Debate(
        iteration=rules.iteration,
        problem_id=problem.id,
        question=problem.question,
        code=problem.code,
        system=rules.prompts.system,
        history=rules.history,
        turns=tuple(turns),
        samples=tuple(samples),
        error=error,
    )
