"""The nouns of the method, as frozen records; every one of them can be written as one line of JSON.

`None` means "not there": an answer that could not be parsed, a vote nobody won, a question without a gold answer.
It is never the same as wrong.
"""

from collections.abc import Sequence
from math import exp
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

SCHEMA_VERSION = 1
VOTE_SCHEMA_VERSION = 2
NEWER_SCHEMA = "newer_schema"
"""Type of the error of a record that a newer maft wrote."""


def _up_to(newest: int) -> AfterValidator:
    """Refuse records of a later schema than the newest that is known."""

    def check(version: int) -> int:
        if version > newest:
            raise PydanticCustomError(
                NEWER_SCHEMA,
                "schema_version is {version}, this maft reads up to {newest}",
                {"version": version, "newest": newest},
            )
        return version

    return AfterValidator(check)


SchemaVersion = Annotated[int, _up_to(SCHEMA_VERSION)]


def _optional(default: Any = None) -> Any:
    """Return a field that is left out of the file where it has its default."""
    return Field(default=default, exclude_if=lambda value: value == default)


Role = Literal["generator", "critic", "summarizer"]


class Record(BaseModel):
    """Base of all records: frozen, compared by value, refusing fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def to_json(self) -> str:
        """Return the record as one line of JSON; equal records give equal bytes."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """Read what `to_json` wrote.

        Raises:
            pydantic.ValidationError: not JSON, a field missing, unknown or of another type.
        """
        return cls.model_validate_json(line)


class Message(Record):
    """One message of a dialogue, as the Hugging Face `messages` format has it."""

    role: Literal["system", "user", "assistant"]
    content: str


class CodeQuestion(Record):
    """What a question for a program says besides its text: how programs are called and compared."""

    name: str
    """Of the function."""
    signature: str
    """Its head, such as `def add(a: int, b: int) -> int`."""
    inputs: tuple[str, ...]
    """Lists of arguments, as Python literals, on which programs are compared."""
    tests: tuple[str, ...] = ()
    """Public tests, in Python; programs that fail them do not vote."""


class Problem(Record):
    """One question. Training never reads `gold`."""

    id: str
    question: str
    gold: str | None = None
    """The known answer, for reporting only; None where nobody knows it."""
    split_key: str = ""
    """Questions with equal non-empty keys stay on the same side of a split, such as 3 + 4 and 4 + 3."""
    code: CodeQuestion | None = _optional()
    """Of a question whose answers are programs."""


class SamplingParams(Record):
    """How a reply is sampled; the meaning is the same in every engine."""

    temperature: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 1.0
    """0 is greedy decoding."""
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    """Nucleus sampling: draw among the likeliest tokens with this total probability; 1 is no limit."""
    top_k: Annotated[int, Field(strict=True, ge=0)] = 0
    """Draw among the k likeliest tokens only; 0: no limit."""
    max_new_tokens: Annotated[int, Field(strict=True, ge=1)] = 512
    """Maximum length of a reply in tokens; a longer one is cut there."""


class AgentRef(Record):
    """The weights of an agent: a base model and, once finetuned, an adapter on it."""

    role: Role
    index: int
    model: str
    """A folder, a hub name or the name of a packaged model."""
    adapter: str | None = None
    """A PEFT folder; a relative path is relative to the run folder."""

    @property
    def name(self) -> str:
        """The agent's name in files and seeds, such as `critic_2`."""
        return f"{self.role}_{self.index}"


class Society(Record):
    """The agents of one debate: N generators, N critics and the summariser."""

    generators: tuple[AgentRef, ...]
    critics: tuple[AgentRef, ...]
    summarizer: AgentRef | None
    """None where critics write the summaries, or there are none."""

    @property
    def agents(self) -> tuple[AgentRef, ...]:
        """The 2N agents, generators first; the summariser is none of them."""
        return self.generators + self.critics


class Request(Record):
    """One call of one agent."""

    agent: AgentRef
    messages: tuple[Message, ...]
    sampling: SamplingParams
    seed: int


class Reply(Record):
    """The answer to a request. A failed call is a reply with an `error`, so that other calls go on."""

    text: str
    finish_reason: Literal["stop", "length", "error"]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    token_ids: tuple[int, ...] | None = _optional()
    """The sampled tokens, the one that ended the reply included; None where the engine does not return them."""
    logprobs: tuple[float, ...] | None = _optional()
    """Natural logarithm of each sampled token's probability, before temperature, top-k and top-p."""

    @property
    def likelihood(self) -> float | None:
        """The geometric mean of the sampled tokens' probabilities; None where they are not known."""
        return exp(sum(self.logprobs) / len(self.logprobs)) if self.logprobs else None

    def without_tokens(self) -> "Reply":
        """Return the reply as text alone."""
        return self.model_copy(update={"token_ids": None, "logprobs": None})


class Call(Record):
    """A reply together with what was asked: the last user message and the seed."""

    agent: str
    prompt: str
    reply: Reply
    seed: int


class Turn(Record):
    """What one agent said in one round."""

    agent: int
    """The agent's place in the society, from 0; in round 1 the generator of that number speaks, after it the critic."""
    round: int
    """From 1."""
    call: Call
    answer: str | None
    """Extracted from the reply; None where it could not be parsed."""
    summary: Call | None = None
    """The call that condensed the other agents' answers for this turn."""

    @property
    def cut(self) -> bool:
        """Say whether the reply ended at the limit of tokens."""
        return self.call.reply.finish_reason == "length"


class Debate(Record):
    """One question, debated by N agents for M rounds."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    iteration: int
    """Society of which iteration spoke: debates of iteration l are held by agents finetuned l - 1 times."""
    problem_id: str
    question: str
    code: CodeQuestion | None = _optional()
    """As in the question."""
    system: str | None
    history: tuple[Message, ...] = _optional(())
    """A conversation that the question continues; only of debates held by `maft serve` and `maft chat`."""
    turns: tuple[Turn, ...]
    """Round by round, in each the agents in their order; fewer than the protocol has if the debate failed."""
    samples: tuple[Turn, ...] = ()
    """Further first answers of the generators, which nobody is shown: they only vote."""
    error: str | None = None

    def round(self, number: int) -> tuple[Turn, ...]:
        """Return the turns of one round (from 1; -1 is the last), in the order of the agents."""
        wanted = self.turns[-1].round if number == -1 and self.turns else number
        return tuple(turn for turn in self.turns if turn.round == wanted)

    @property
    def latest(self) -> tuple[Turn, ...]:
        """The last turn of each agent, in their order: an agent that is not asked again keeps its answer."""
        turns = {turn.agent: turn for turn in self.turns}
        return tuple(turns[agent] for agent in sorted(turns))

    def turns_of(self, agent: int) -> tuple[Turn, ...]:
        """Return the turns of one agent, in order."""
        return tuple(turn for turn in self.turns if turn.agent == agent)

    def dialogue(self, agent: int, *, num_rounds: int | None = None) -> tuple[Message, ...]:
        """Return agent's own dialogue, prompts and replies in turn: (x, y[1], ..., y[m]) in the paper's notation."""
        messages = [] if self.system is None else [Message(role="system", content=self.system)]
        messages += self.history
        for turn in self.turns_of(agent):
            if num_rounds is None or turn.round <= num_rounds:
                messages.append(Message(role="user", content=turn.call.prompt))
                messages.append(Message(role="assistant", content=turn.call.reply.text))
        return tuple(messages)

    def replies(self, agent: int) -> tuple[Reply, ...]:
        """Return agent's own replies, round by round."""
        return tuple(turn.call.reply for turn in self.turns if turn.agent == agent)

    def calls(self, *, samples: bool = True) -> Sequence[Call]:
        """Return every call that the debate cost, summaries included, with or without the further first answers."""
        turns = self.all_turns if samples else self.turns
        return [call for turn in turns for call in (turn.summary, turn.call) if call is not None]

    @property
    def all_turns(self) -> tuple[Turn, ...]:
        """The turns, then the samples: all that has an answer, in the order of `Vote.partition`."""
        return self.turns + self.samples

    def first_answers(self, agent: int | None = None) -> tuple[Turn, ...]:
        """Return the turns of round 1 and the samples beside it, of one agent or of all."""
        return tuple(turn for turn in self.round(1) + self.samples if agent in (None, turn.agent))


class Vote(Record):
    """How the answers of one question were counted, and whether the question may be trained on."""

    schema_version: Annotated[int, _up_to(VOTE_SCHEMA_VERSION)] = VOTE_SCHEMA_VERSION
    iteration: int
    problem_id: str
    label: str | None
    """The winning answer, which is the pseudo-label; None if there is no answer or, by `vote.ties`, a tie."""
    counts: tuple[tuple[str, int], ...]
    """One (representative answer, votes) for each class of equal answers, most votes first."""
    num_ballots: int
    """Answers that were asked for: the N agents' where the last round votes."""
    abstained: int
    """Answers that could not be parsed."""
    tied: bool
    """Whether several classes have the most votes; by `vote.ties` the label is drawn among them, or there is none."""
    dropped: Literal["failed", "no_answer", "tied", "low_agreement"] | None
    """Why the question is not used for training; None if it is used."""
    partition: tuple[int | None, ...] | None = None
    """Class of equal answers of each answer of the debate, its turns first, then its samples; None in the tuple: could
    not be parsed. Schema 1 has no partition."""
    winner: int | None = None
    """The class of the label."""
    weights: tuple[float, ...] | None = _optional()
    """Sum of the ballots' weights of each class, in the order of `counts`; None where all ballots weigh the same."""

    @property
    def agreement(self) -> float:
        """Votes for the label as a share of all ballots, abstentions included; 0 without a label."""
        return self.votes / self.num_ballots if self.votes else 0.0

    @property
    def votes(self) -> int:
        """Votes for the label; 0 without one."""
        return 0 if self.label is None else self.counts[0][1]

    @property
    def margin(self) -> int:
        """Votes for the winner minus votes for the runner-up; 0 is a tie, or a winner by weight that has fewer."""
        top = [votes for _, votes in self.counts[:2]] + [0, 0]
        return max(0, top[0] - top[1])

    def classes(self, debate: Debate) -> dict[str | None, int | None]:
        """Return the class of each answer of the debate that was voted on."""
        assert self.partition is not None, "a vote of schema 1 is grouped again when it is read"
        answers = (turn.answer for turn in debate.all_turns)
        return dict(zip(answers, self.partition, strict=True))

    def agreeing(self, debate: Debate) -> frozenset[str | None]:
        """Return the answers of the debate that are the label."""
        if self.winner is None:
            return frozenset()
        return frozenset(answer for answer, number in self.classes(debate).items() if number == self.winner)


class GradedVote(Vote):
    """The vote on a held-out question, whose classes are graded."""

    grades: tuple[bool, ...] | None
    """Whether the answers of each class are right; None where nobody knows the right answer."""

    def verdicts(self, debate: Debate) -> dict[str | None, bool | None]:
        """Return whether each answer of the debate is right; None where nobody knows. No answer is wrong."""
        known = self.grades is not None
        grades = {None: False} | dict(enumerate(self.grades or ()))
        numbers = {None: None} | self.classes(debate)
        return {answer: grades[number] if known else None for answer, number in numbers.items()}


class Example(Record):
    """One training example of one agent: a dialogue whose last message is the response to learn."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    iteration: int
    problem_id: str
    agent: str
    kind: Literal["first", "corrected", "kept", "dissenting"]
    """`first`: a generator's first answer. `corrected`: D-, the critic's first answer was not the label but its
    last one is. `kept`: D+, both are. `dissenting`: the answer of the debate that it comes from is not the label."""
    messages: tuple[Message, ...]
    token_ids: tuple[tuple[int, ...] | None, ...] | None = _optional()
    """Sampled tokens of each assistant message, in order; None where they are not known (`debate.keep_tokens`)."""
    logprobs: tuple[float, ...] | None = _optional()
    """Log-probabilities of the sampled tokens of the last message, under the weights that sampled it."""
    weight: float = _optional(1.0)
    """Factor of this example's loss: a weight, or an advantage, which may be negative."""
    wanted: bool | None = _optional()
    """Whether the response is to become likelier or less likely; None for objectives that want every response."""
    rejected: str | None = _optional()
    """Of a pair: another response to the same prompt, to become less likely than the last message."""
    rejected_token_ids: tuple[int, ...] | None = _optional()
    """Sampled tokens of `rejected`."""


class Score(Record):
    """What one method answered to one held-out question. `correct` is None where there is no gold answer."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    iteration: int
    method: str
    problem_id: str
    answers: tuple[str | None, ...]
    """One answer, or for a mean over single agents the answer of each; None is unparsed, which counts as wrong."""
    correct: tuple[bool, ...] | None
    no_answer: Literal["failed", "tied"] | None = _optional()
    """Why there is no answer, where not for want of one that could be read: the debate failed, or the vote is tied."""
    calls: float
    """Calls that the method needs for this question."""
    prompt_tokens: float
    completion_tokens: float

    @property
    def accuracy(self) -> float | None:
        """Share of `answers` that are right."""
        return None if self.correct is None else sum(self.correct) / len(self.correct)
