"""How many calls and tokens a run will take: from its protocol, L, and how long prompts and replies are.

The protocol names the kinds of its calls, what each of them reads, and whose replies are in it. Lengths are those of a
society: replies become shorter as agents are finetuned, so every society has its own.
"""

import math
from collections.abc import Iterator, Sequence

from maft import tasks
from maft.config import DebateConfig, RunConfig, of_iteration, prompts
from maft.config.prompts import Prompts
from maft.config.training import EXAMPLES
from maft.method import learners, protocol_of
from maft.planning.bounds import evaluated
from maft.records import Record, Role
from maft.tasks import prepare

BYTES_PER_TOKEN = 3.5
MESSAGE_TOKENS = 6
"""What a chat template adds to a message."""
REPLY_SHARE = 0.5
"""Length of a reply as a share of the longest allowed, where nothing is known of it."""
ANSWER_TOKENS = 8
"""Tokens of an answer that is quoted without its reasoning."""
LEARNED_SHARE = 0.6
"""Share of an agent's responses that agree with the label, where nothing is known of it."""


Texts = dict[str, float]
"""Tokens of a prompt that no model wrote, by the kind of call, such as `summary 2`; the same for every society."""


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


class Stage(Record):
    """Debates of one stage."""

    stage: str
    iteration: int
    debates: int
    calls: int
    prompt_tokens: float
    generated_tokens: float
    society: int
    """How often the agents were finetuned before."""


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
        """Return all calls."""
        return sum(stage.calls for stage in self.stages)

    @property
    def prompt_tokens(self) -> float:
        """Return all tokens read."""
        return sum(stage.prompt_tokens for stage in self.stages)

    @property
    def generated_tokens(self) -> float:
        """Return all tokens written."""
        return sum(stage.generated_tokens for stage in self.stages)

    @property
    def training_tokens(self) -> float:
        """Return all tokens trained on, every epoch counted."""
        return sum(training.tokens for training in self.trainings)

    @property
    def jobs(self) -> int:
        """Return all finetunings."""
        return sum(training.jobs for training in self.trainings)


class Call(Record):
    """Calls of one kind in a debate."""

    kind: str
    role: Role
    times: float
    prompt: float
    reply: float


def calls(debate: DebateConfig, texts: Texts, said: Behaviour) -> Iterator[Call]:
    """Yield the kinds of calls of one debate."""
    for kind in protocol_of(debate).kinds(debate, Prompts()):
        quoted = sum(number * said.replies[role] for role, number in kind.quoted.items())
        quoted += ANSWER_TOKENS * sum(kind.answers.values())
        prompt, reply = texts[kind.name] + quoted, said.replies[kind.role]
        times = said.calls.get(kind.name, kind.times * kind.share)
        yield Call(kind=kind.name, role=kind.role, times=times, prompt=prompt, reply=reply)


def assumed_texts(config: RunConfig, question_tokens: float | None = None) -> Texts:
    """Estimate what is asked from the characters of the prompts, and of the questions unless their tokens are given."""
    task = tasks.make(config.task)
    words = prompts.build(task.prompts, config.prompts)
    if question_tokens is None:
        questions = prepare(task).train
        question_tokens = sum(_tokens(problem.question) for problem in questions) / max(1, len(questions))
    return {
        kind.name: sum(_tokens(text) + MESSAGE_TOKENS + question_tokens * ("{question}" in text) for text in kind.texts)
        for kind in protocol_of(config.debate).kinds(config.debate, words)
    }


def assumed_behaviour(config: RunConfig, reply_tokens: float | None = None) -> Behaviour:
    """Return what replies are taken to be where none were measured."""
    how = config.sampling.train

    def length(most: int) -> float:
        return min(reply_tokens, most) if reply_tokens else most * REPLY_SHARE

    kinds = [kind for kind in protocol_of(config.debate).kinds(config.debate, Prompts()) if kind.kind == "answer"]
    asked = {kind.role: kind.share * min(1.0, kind.times / config.debate.num_agents) for kind in kinds}
    return Behaviour(
        replies={
            "generator": length(how.generator.max_new_tokens),
            "critic": length(how.critic.max_new_tokens),
            "summarizer": length(how.summarizer.max_new_tokens),
        },
        learned={role: share * _assumed_share(config, role) for role, share in asked.items()},
    )


def _assumed_share(config: RunConfig, role: Role) -> float:
    """Return how many examples an agent is taken to have for each question, in the first iteration."""
    shape = EXAMPLES.get(config.train.of(role, 1).objective, "agreeing")
    times = min(config.curate.examples_per_question, config.debate.num_samples) if role == "generator" else 1
    return {"agreeing": LEARNED_SHARE * times, "judged": float(times), "pairs": (1 - LEARNED_SHARE) * times}[shape]


def forecast(
    config: RunConfig, num_train: int, num_eval: int, texts: Texts, societies: Sequence[Behaviour]
) -> Forecast:
    """Return what a run will take.

    Args:
        config: of the run.
        num_train: questions debated in each iteration.
        num_eval: questions held out.
        texts: tokens of what is asked.
        societies: what a society says that was finetuned 0, 1, ... times; the last entry lasts.
    """
    held_out = evaluated(config)
    stages = [_stage("eval", 0, held_out, num_eval, texts, societies, 0)]
    trainings: list[Training] = []
    for iteration in range(1, config.num_iterations + 1):
        stages.append(_stage("train", iteration, config.debate, num_train, texts, societies, iteration - 1))
        trainings += _trainings(config, iteration, num_train, texts, _of(societies, iteration - 1))
        stages.append(_stage("eval", iteration, held_out, num_eval, texts, societies, iteration))
    most = assumed_behaviour(config, math.inf)
    everything = [(call, stage.debates) for stage in stages
                  for call in calls(config.debate, texts, _of(societies, stage.society))]  # fmt: skip
    total = sum(call.times * debates for call, debates in everything) or 1
    return Forecast(
        stages=tuple(stages),
        trainings=tuple(trainings),
        longest=max(call.prompt + call.reply for call in calls(config.debate, texts, most)),
        mean=sum((call.prompt + call.reply / 2) * call.times * debates for call, debates in everything) / total,
    )


def _of(societies: Sequence[Behaviour], number: int) -> Behaviour:
    return societies[min(number, len(societies) - 1)]


def _stage(
    stage: str,
    iteration: int,
    debate: DebateConfig,
    debates: int,
    texts: Texts,
    societies: Sequence[Behaviour],
    society: int,
) -> Stage:
    made = list(calls(debate, texts, _of(societies, society)))
    return Stage(
        stage=stage,
        iteration=iteration,
        debates=debates,
        calls=round(debates * sum(call.times for call in made)),
        prompt_tokens=debates * sum(call.times * call.prompt for call in made),
        generated_tokens=debates * sum(call.times * call.reply for call in made),
        society=society,
    )


def _trainings(config: RunConfig, iteration: int, num_train: int, texts: Texts, said: Behaviour) -> Iterator[Training]:
    rows = {call.role: call.prompt + call.reply for call in calls(config.debate, texts, said)} | said.rows
    learned = {role: share * num_train for role, share in said.learned.items()}
    most = of_iteration(config.curate.max_examples, iteration)
    jobs = {role: sum(name.startswith(role) for name in learners(config)) for role in learned}
    if config.society.one_model:  # one agent learns what all of them would
        tokens = sum(learned[role] * rows[role] for role in learned) / sum(learned.values())
        learned["generator"] = config.debate.num_agents * sum(learned.values())
        rows["generator"] = tokens
    for role, count in jobs.items():
        if count:
            examples = min(learned[role], most or math.inf)
            training = config.train.of(role, iteration)
            row = rows[role] * (2 if EXAMPLES.get(training.objective) == "pairs" else 1)
            tokens = count * examples * row * training.num_epochs
            yield Training(iteration=iteration, role=role, jobs=count, examples=examples, tokens=tokens, row=row)


def _tokens(text: str) -> float:
    return len(text.encode()) / BYTES_PER_TOKEN
