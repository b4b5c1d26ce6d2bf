"""Calls and tokens of a run, from its protocol, the number of iterations, and lengths of prompts and replies.

The protocol names the kinds of its calls, what each of them reads, and whose replies are in it. Replies become shorter
as agents are finetuned, so every society has lengths of its own.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from maft import tasks
from maft.config import DebateConfig, RoleSampling, RunConfig, of_iteration, prompts
from maft.config.prompts import Prompts
from maft.config.training import EXAMPLES
from maft.hosted import service as hosted
from maft.method import learners, protocol_of
from maft.records import Record, Role
from maft.runs.folder import RunFolder
from maft.tasks import prepare

BYTES_PER_TOKEN = 3.5
MESSAGE_TOKENS = 6
"""Tokens that a chat template adds to a message."""
MAXIMAL_MESSAGE_TOKENS = 20
"""Upper estimate of it, with the names before quoted answers."""
REPLY_SHARE = 0.5
"""Assumed length of a reply, as a share of the longest allowed."""
ANSWER_TOKENS = 8
"""Assumed length of an answer that is quoted without its reasoning."""
LEARNED_SHARE = 0.6
"""Assumed share of an agent's responses that agree with the label."""

Texts = dict[str, float]
"""Tokens of a prompt without the replies quoted in it, by the kind of call, such as `summary 2`."""


class Behaviour(Record):
    """What one society does with a question, on average."""

    replies: dict[Role, float]
    """Tokens of a reply."""
    learned: dict[Role, float]
    """Examples of an agent for each question debated."""
    rows: dict[Role, float] = {}  # noqa: RUF012  # pydantic copies it
    """Tokens of an example; where none is given, it is the prompt and reply of the role's last call."""
    calls: dict[str, float] = {}  # noqa: RUF012  # pydantic copies it
    """Calls of each kind in a debate, where answers decide who is asked; where none is given, the protocol's guess."""
    answer: float = ANSWER_TOKENS
    """Tokens of an answer that is quoted without its reasoning."""


class Stage(Record):
    """Debates of one stage."""

    stage: str
    iteration: int
    debates: int
    calls: int
    prompt_tokens: float
    generated_tokens: float
    society: int
    """Number of finetunings behind the agents."""


class Training(Record):
    """The finetunings of one role in an iteration."""

    iteration: int
    role: str
    jobs: int
    examples: float
    """Of each job."""
    tokens: float
    """Of all jobs and epochs."""
    row: float
    """Tokens of an example."""


class Forecast(Record):
    """A whole run."""

    stages: tuple[Stage, ...]
    trainings: tuple[Training, ...]
    longest: float
    """Tokens of the longest sequence, if all replies are as long as allowed."""
    mean: float
    """Tokens of a sequence on average, when its reply is written."""

    @property
    def calls(self) -> int:
        """All calls."""
        return sum(stage.calls for stage in self.stages)

    @property
    def prompt_tokens(self) -> float:
        """All tokens read."""
        return sum(stage.prompt_tokens for stage in self.stages)

    @property
    def generated_tokens(self) -> float:
        """All tokens written."""
        return sum(stage.generated_tokens for stage in self.stages)

    @property
    def training_tokens(self) -> float:
        """All tokens trained on, every epoch counted."""
        return sum(training.tokens for training in self.trainings)

    @property
    def jobs(self) -> int:
        """All finetunings."""
        return sum(training.jobs for training in self.trainings)


class CallsOfKind(NamedTuple):
    """Calls of one kind in a debate, with the tokens of each."""

    kind: str
    role: Role
    times: float
    prompt: float
    reply: float


def calls(debate: DebateConfig, texts: Texts, of_society: Behaviour) -> Iterator[CallsOfKind]:
    """Yield the kinds of calls of one debate."""
    for kind in protocol_of(debate).kinds(debate, Prompts()):
        quoted = sum(number * of_society.replies[role] for role, number in kind.quoted.items())
        quoted += of_society.answer * sum(kind.answers.values())
        times = of_society.calls.get(kind.name, kind.times * kind.share)
        yield CallsOfKind(kind.name, kind.role, times, texts[kind.name] + quoted, of_society.replies[kind.role])


def assumed_texts(config: RunConfig, question_tokens: float | None = None, *, maximal: bool = False) -> Texts:
    """Estimate prompts from their characters, and from those of the questions unless their tokens are given.

    `maximal` is an upper estimate, with the question in every message.
    """

    def tokens(text: str) -> float:
        return hosted.tokens(text) if maximal else len(text.encode()) / BYTES_PER_TOKEN

    task = tasks.make(config.task)
    agents = [f"{role}_{n}" for role in ("generator", "critic") for n in range(config.debate.num_agents)]
    words = prompts.longest([prompts.build(task.prompts, config.prompts_of(agent)) for agent in agents])
    if question_tokens is None:
        split = prepare(task)
        sides = [[tokens(problem.question) for problem in side] for side in (split.train, split.eval)]
        question_tokens = max(sum(side) / max(1, len(side)) for side in sides)
    message = MAXIMAL_MESSAGE_TOKENS if maximal else MESSAGE_TOKENS
    return {
        kind.name: sum(
            tokens(text) + message + question_tokens * (maximal or "{question}" in text) for text in kind.texts
        )
        for kind in protocol_of(config.debate).kinds(config.debate, words)
    }


def assumed_behaviour(config: RunConfig, reply_tokens: float | None = None) -> Behaviour:
    """Return replies of half the length that is allowed, unless it is given, three fifths of which are learned."""
    kinds = [kind for kind in protocol_of(config.debate).kinds(config.debate, Prompts()) if kind.kind == "answer"]
    asked = {kind.role: kind.share * min(1.0, kind.times / config.debate.num_agents) for kind in kinds}
    limits = _longest_replies(config, (config.sampling.train,))
    return Behaviour(
        replies={role: min(reply_tokens or REPLY_SHARE * limit, limit) for role, limit in limits.items()},
        learned={role: share * _assumed_share(config, role) for role, share in asked.items()},
    )


def _assumed_share(config: RunConfig, role: Role) -> float:
    """Return how many examples an agent is taken to have for each question, in the first iteration."""
    shape, times = EXAMPLES.get(config.train.of(role, 1).objective, "agreeing"), _examples_per_question(config, role)
    return {"agreeing": LEARNED_SHARE * times, "judged": times, "pairs": (1 - LEARNED_SHARE) * times}.get(shape, times)


def maximal_behaviour(config: RunConfig) -> Behaviour:
    """Return replies as long as they may be, all of which are learned."""
    sampling = config.sampling
    limits = _longest_replies(config, (sampling.train, sampling.eval or sampling.train))
    kinds = list(protocol_of(config.debate).kinds(config.debate, Prompts()))
    roles = {kind.role for kind in kinds if kind.kind == "answer"}
    return Behaviour(
        replies=limits,
        learned={role: _examples_per_question(config, role) for role in roles},
        calls={kind.name: kind.times for kind in kinds if kind.share < 1},
        answer=max(limits.values()),
    )


def _longest_replies(config: RunConfig, sampling: Sequence[RoleSampling]) -> dict[Role, float]:
    """Return the tokens that a reply of each role may have, the settings of single agents included."""
    roles: tuple[Role, ...] = ("generator", "critic", "summarizer")
    agents = range(config.debate.num_agents)
    return {
        role: max(
            config.own(role, n).sampling.over(getattr(how, role)).max_new_tokens for how in sampling for n in agents
        )
        for role in roles
    }


def _examples_per_question(config: RunConfig, role: Role) -> float:
    """Return the maximum number of examples that an agent has of a question."""
    if role != "generator":
        return 1.0
    shape, num_samples = EXAMPLES.get(config.train.of(role, 1).objective), config.debate.num_samples
    most = config.curate.examples_per_question * (2 if shape == "judged" else 1)
    return float(num_samples if shape == "advantages" else min(most, num_samples))


def evaluated(config: RunConfig) -> DebateConfig:
    """Return the settings of debates on held-out questions."""
    more = config.debate.num_eval_samples or config.debate.num_samples
    return config.debate.model_copy(update={"num_samples": more})


def forecast(
    config: RunConfig, num_train: int, num_eval: int, texts: Texts, societies: Sequence[Behaviour]
) -> Forecast:
    """Return what a run takes that debates `num_train` questions in each iteration and holds out `num_eval`.

    `societies` are those finetuned 0, 1, ... times; the last entry holds for all further ones.
    """

    def behaviour(society: int) -> Behaviour:
        return societies[min(society, len(societies) - 1)]

    def stage_of(name: str, iteration: int, society: int, debate: DebateConfig, debates: int, asked: Texts) -> Stage:
        every_call = list(calls(debate, asked, behaviour(society)))
        return Stage(
            stage=name,
            iteration=iteration,
            debates=debates,
            calls=round(debates * sum(call.times for call in every_call)),
            prompt_tokens=debates * sum(call.times * call.prompt for call in every_call),
            generated_tokens=debates * sum(call.times * call.reply for call in every_call),
            society=society,
        )

    def stage(name: str, iteration: int, society: int) -> Stage:
        debate, debates = (config.debate, num_train) if name == "train" else (evaluated(config), num_eval)
        return stage_of(name, iteration, society, debate, debates, texts)

    stages, trainings = [stage("eval", 0, 0)], list[Training]()
    for iteration in range(1, config.num_iterations + 1):
        stages += [stage("train", iteration, iteration - 1), stage("eval", iteration, iteration)]
        trainings += _trainings(config, iteration, num_train, texts, behaviour(iteration - 1))
    for other in RunFolder(Path(), config).others:
        held_out = len(prepare(tasks.make(other.config.task)).eval)
        asked = assumed_texts(other.config, maximal=config.engine.sampler == "openai")
        stages += [
            stage_of(f"eval.also: {other.config.task.name}", number, number, other.config.debate, held_out, asked)
            for number in (0, config.num_iterations)
        ]
    return Forecast(
        stages=tuple(stages),
        trainings=tuple(trainings),
        longest=max(call.prompt + call.reply for call in calls(config.debate, texts, maximal_behaviour(config))),
        mean=sum(of.prompt_tokens + of.generated_tokens / 2 for of in stages) / (sum(of.calls for of in stages) or 1),
    )


def _trainings(
    config: RunConfig, iteration: int, num_train: int, texts: Texts, of_society: Behaviour
) -> Iterator[Training]:
    rows = {call.role: call.prompt + call.reply for call in calls(config.debate, texts, of_society)} | of_society.rows
    learned = {role: share * num_train for role, share in of_society.learned.items()}
    jobs = {role: sum(name.startswith(role) for name in learners(config)) for role in learned}
    if config.society.one_model:  # one agent learns what all of them would
        tokens = sum(learned[role] * rows[role] for role in learned) / sum(learned.values())
        learned["generator"] = config.debate.num_agents * sum(learned.values())
        rows["generator"] = tokens
    for role, count in jobs.items():
        if count:
            examples = min(learned[role], of_iteration(config.curate.max_examples, iteration) or math.inf)
            tokens = count * examples * rows[role] * config.train.of(role, iteration).num_epochs
            yield Training(iteration=iteration, role=role, jobs=count, examples=examples, tokens=tokens, row=rows[role])
