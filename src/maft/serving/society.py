"""What can be asked by name: the debate, votes, every agent alone, and the base model."""

import hashlib
import re
from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

from maft import seeds
from maft.config import AgentSampling, RoleSampling
from maft.errors import DataError, UserError
from maft.library import check_voting
from maft.method import bases, protocol_of
from maft.method import vote as voting
from maft.pipeline import run as pipeline
from maft.records import AgentRef, Debate, Message, Problem, Reply, Request, SamplingParams, Turn, Vote
from maft.runs import seals, societies, status
from maft.runs.folder import RunFolder
from maft.samplers.base import Sampler
from maft.serving.engine import Dialogue

MAX_BALLOTS = 256
PROBE = (Message(role="user", content="What is 7 * 8?"),)
S = TypeVar("S", SamplingParams, AgentSampling)
_VOTE = re.compile(r"vote(?:@([1-9][0-9]{0,2}))?")


class Question(NamedTuple):
    """What a client asks."""

    model: str
    """`debate`, `vote`, `vote@12`, `base` or an agent's name."""
    messages: tuple[Message, ...]
    """An optional system message, then user and assistant in turn, a user's message last."""
    seed: int
    how: dict[str, float]
    """Sampling parameters that differ from the run's."""


class Answered(NamedTuple):
    """What a society or an agent answers."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    calls: int
    debate: Debate | None = None
    vote: Vote | None = None


class ServedSociety:
    """The society of an iteration, as dialogues for an engine."""

    def __init__(self, folder: RunFolder, iteration: int | None = None) -> None:
        """Look at the run only; nothing is loaded.

        `iteration` is whose agents speak; 0 is untrained, None the newest.

        Raises:
            UserError: its agents are not finetuned, or its votes need a judge.
            DataError: their files have changed since they were written.
        """
        check_voting(folder.config)
        newest = status.newest(folder)
        self.iteration = newest if iteration is None else iteration
        if self.iteration > newest:
            raise UserError(f"the agents of iteration {iteration} are not finetuned; the newest are {newest}'s.")
        damaged = [one.file for one in seals.damage(folder, thorough=False) if "/agents/" in one.file]
        if damaged:
            raise DataError(f"{folder.path / damaged[0]} was changed after it was written. Restore it.")
        self.folder, self.config = folder, folder.config
        self.society = societies.after(folder, self.iteration)
        self.rules = pipeline.answer_rules(folder, self.iteration, self.society)
        self.agents = {agent.name: agent for agent in self.society.agents}
        if self.config.model in bases(self.config):
            self.agents["base"] = AgentRef(role="generator", index=0, model=self.config.model)
        self.max_tokens: int | None = None
        """Maximum tokens of each reply, whatever the run or a client says."""
        self._probed: dict[str, str] = {}

    @property
    def models(self) -> list[str]:
        """The names that can be asked; `vote@K` is a vote over K first answers."""
        return ["debate", "vote", *self.agents]

    def check(self, model: str) -> None:
        """Refuse names that cannot be asked.

        Raises:
            UserError: says which can.
        """
        each = len(self.society.generators)
        match = _VOTE.fullmatch(model)
        if match and match[1] and (int(match[1]) % each or int(match[1]) > MAX_BALLOTS):
            raise UserError(
                f"vote@K needs a multiple of the {each} generators up to {MAX_BALLOTS}, such as vote@{4 * each}, "
                f"got {model}"
            )
        if model not in self.agents and model != "debate" and not match:
            raise UserError(f"there is no model {model!r}; there are {', '.join(self.models)} and vote@K")

    def dialogue(self, question: Question) -> Dialogue[Debate | Reply]:
        """Return the dialogue that answers a question whose model was checked."""
        if question.model in self.agents:
            return self._alone(question)
        rules = self.rules._replace(
            run_seed=question.seed,
            sampling=RoleSampling(**{role: self._drawn(how, question.how) for role, how in self.rules.sampling}),
            own_sampling={name: self._drawn(own, question.how) for name, own in self.rules.own_sampling.items()},
        )
        if match := _VOTE.fullmatch(question.model):
            each = int(match[1] or 0) // len(self.society.generators) or 1
            rules = rules._replace(debate=rules.debate.model_copy(update={"protocol": "vote", "num_samples": each}))
        *history, asked = question.messages
        if history and history[0].role == "system":
            rules = rules._replace(prompts=rules.prompts.model_copy(update={"system": history.pop(0).content}))
        rules = rules._replace(history=tuple(history))
        problem = Problem(id=digest(question.messages), question=asked.content)
        return protocol_of(rules.debate).play(problem, rules)

    def answered(self, question: Question, result: Debate | Reply) -> Answered:
        """Return what a dialogue has answered; a debate is voted on.

        Raises:
            UserError: a call failed, such as of a question longer than the context.
        """
        if result.error is not None:
            raise UserError(f"no answer: {result.error}")
        if isinstance(result, Reply):
            usage = (result.prompt_tokens, result.completion_tokens, 1)
            return Answered(result.text, result.finish_reason, *usage)
        over = self.config.vote.over if question.model == "debate" else "first"
        choose = protocol_of(self.config.debate).ballots if question.model == "debate" else voting.ballots
        vote = voting.vote(result, self.config.vote, question.seed, self.rules.equality, over, choose)
        replies = [call.reply for call in result.calls()]
        best = spokesman(result, vote, choose(result, over))
        return Answered(
            best.text,
            best.finish_reason,
            sum(reply.prompt_tokens for reply in replies),
            sum(reply.completion_tokens for reply in replies),
            len(replies),
            result,
            vote,
        )

    def probe(self, sampler: Sampler) -> None:
        """Let every agent say a few tokens, greedily; local engines compare each adapter with PEFT when they load it.

        Raises:
            DataError: an agent cannot be loaded, or says something else than at the start.
        """
        names = list(self.agents)
        how = SamplingParams(temperature=0.0, max_new_tokens=8)
        requests = [Request(agent=self.agents[name], messages=PROBE, sampling=how, seed=0) for name in names]
        for name, reply in zip(names, sampler.sample(requests), strict=True):
            if reply.error is not None:
                raise DataError(f"{name} cannot be served: {reply.error}")
            if self._probed.setdefault(name, reply.text) != reply.text:
                raise DataError(
                    f"{name} answers a test question with {reply.text!r}, not {self._probed[name]!r} as before."
                )

    def sampling(self, name: str, how: dict[str, float]) -> SamplingParams:
        """Return how an agent's replies are drawn: as in the run, with what a client asks for on top."""
        own = self.rules.own_sampling.get(name)
        of_role: SamplingParams = getattr(self.rules.sampling, self.agents[name].role)
        return self._drawn(own.over(of_role) if own else of_role, how)

    def _drawn(self, own: S, how: dict[str, float]) -> S:
        """Return sampling parameters with a client's on top, and replies no longer than allowed."""
        drawn = own.model_copy(update=how)
        if self.max_tokens is None or (drawn.max_new_tokens or 0) <= self.max_tokens:
            return drawn
        return drawn.model_copy(update={"max_new_tokens": self.max_tokens})

    def _alone(self, question: Question) -> Generator[list[Request], list[Reply], Reply]:
        """Give an agent the messages as they are."""
        (reply,) = yield [
            Request(
                agent=self.agents[question.model],
                messages=question.messages,
                sampling=self.sampling(question.model, question.how),
                seed=seeds.seed(question.seed, question.model, digest(question.messages)),
            )
        ]
        return reply


def spokesman(debate: Debate, vote: Vote, ballots: Sequence[Turn]) -> Reply:
    """Return the reply that is shown for a vote: the first that has its answer, if possible one that was not cut."""
    winners = vote.agreeing(debate)
    turns = [turn for turn in ballots if turn.answer in winners] or list(ballots)
    return min(turns, key=lambda turn: (turn.cut, not turn.call.reply.text.strip())).call.reply


def digest(messages: Sequence[Message]) -> str:
    """Return a short name for a conversation."""
    text = "".join(message.to_json() for message in messages[:-1]) + messages[-1].content
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
