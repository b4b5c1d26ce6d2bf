"""How many calls and tokens a run will take: from N, M, L, and how long prompts and replies are.

    first answer    prompt = solve                                              reply = first
    summary         prompt = summarize + others x the replies of the round before
    critic, round m prompt = its prompt and reply of the round before + asked + what it is shown

What it is shown is the summary, or the other agents' replies. Lengths are those of a society: replies become shorter as
agents are finetuned, so every society has its own.
"""

import math
from collections.abc import Iterator, Sequence

from maft import tasks
from maft.config import DebateConfig, RunConfig, of_iteration, prompts
from maft.records import Record
from maft.tasks import prepare

BYTES_PER_TOKEN = 3.5
MESSAGE_TOKENS = 6
"""What a chat template adds to a message."""
REPLY_SHARE = 0.5
"""Length of a reply as a share of the longest allowed, where nothing is known of it."""
LEARNED_SHARE = 0.6
"""Share of an agent's responses that agree with the label, where nothing is known of it."""


class Texts(Record):
    """Tokens of what is asked, the same for every society."""

    solve: float
    """Whole prompt of a first answer."""
    asked: float
    """What a critic is told in a round, beside what it is shown."""
    summarize: float
    """Prompt of a summary without the answers."""


class Behaviour(Record):
    """What one society does with a question, on average."""

    first: float
    """Tokens of a generator's reply."""
    critic: float
    summary: float
    learned_first: float
    """Examples of a generator for each question debated."""
    learned_critic: float
    first_row: float | None = None
    """Tokens of a generator's example; None takes prompt and reply."""
    critic_row: float | None = None


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
    """A kind of call in a debate, and how often it is made."""

    kind: str
    times: int
    prompt: float
    reply: float


def calls(debate: DebateConfig, texts: Texts, said: Behaviour) -> Iterator[Call]:
    """Yield the kinds of calls of one debate."""
    n, others = debate.num_agents, min(debate.num_agents - 1, debate.max_others)
    summarized = debate.summarizer != "none" and others > 0
    prompt, reply = texts.solve, said.first
    yield Call(kind="first", times=n * debate.num_samples, prompt=prompt, reply=reply)
    for _ in range(debate.num_rounds - 1):
        if summarized:
            yield Call(kind="summary", times=n, prompt=texts.summarize + others * reply, reply=said.summary)
        prompt += reply + texts.asked + (said.summary if summarized else others * reply)
        reply = said.critic
        yield Call(kind="critic", times=n, prompt=prompt, reply=reply)


def assumed_texts(config: RunConfig, question_tokens: float | None = None) -> Texts:
    """Estimate what is asked from the characters of the prompts, and of the questions unless their tokens are given."""
    task = tasks.make(config.task)
    words = prompts.build(task.prompts, config.prompts)
    if question_tokens is None:
        questions = prepare(task).train
        question_tokens = sum(_tokens(problem.question) for problem in questions) / max(1, len(questions))
    system = _tokens(words.system) + MESSAGE_TOKENS if words.system is not None else 0.0
    alone = config.debate.num_agents == 1
    shown = words.critic_alone if alone else words.critic_full
    asked = words.critic_summary if config.debate.summarizer != "none" and not alone else shown
    return Texts(
        solve=system + _tokens(words.solve) + question_tokens + MESSAGE_TOKENS,
        asked=_tokens(asked) + question_tokens + MESSAGE_TOKENS,
        summarize=_tokens(words.summarize) + question_tokens + MESSAGE_TOKENS,
    )


def assumed_behaviour(config: RunConfig, reply_tokens: float | None = None) -> Behaviour:
    """Return what replies are taken to be where none were measured."""
    how = config.sampling.train

    def length(most: int) -> float:
        return min(reply_tokens, most) if reply_tokens else most * REPLY_SHARE

    return Behaviour(
        first=length(how.generator.max_new_tokens),
        critic=length(how.critic.max_new_tokens),
        summary=length(how.summarizer.max_new_tokens),
        learned_first=LEARNED_SHARE * min(config.curate.examples_per_question, config.debate.num_samples),
        learned_critic=LEARNED_SHARE,
    )


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
    more = config.debate.num_eval_samples or config.debate.num_samples
    evaluated = config.debate.model_copy(update={"num_samples": more})
    stages = [_stage("eval", 0, evaluated, num_eval, texts, societies, 0)]
    trainings: list[Training] = []
    for iteration in range(1, config.num_iterations + 1):
        stages.append(_stage("train", iteration, config.debate, num_train, texts, societies, iteration - 1))
        trainings += _trainings(config, iteration, num_train, texts, _of(societies, iteration - 1))
        stages.append(_stage("eval", iteration, evaluated, num_eval, texts, societies, iteration))
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
        calls=debates * sum(call.times for call in made),
        prompt_tokens=debates * sum(call.times * call.prompt for call in made),
        generated_tokens=debates * sum(call.times * call.reply for call in made),
        society=society,
    )


def _trainings(config: RunConfig, iteration: int, num_train: int, texts: Texts, said: Behaviour) -> Iterator[Training]:
    last = list(calls(config.debate, texts, said))[-1]
    rows = {"generator": said.first_row or texts.solve + said.first,
            "critic": said.critic_row or last.prompt + last.reply}  # fmt: skip
    learned = {"generator": said.learned_first * num_train, "critic": said.learned_critic * num_train}
    most = of_iteration(config.curate.max_examples, iteration)
    jobs = {role: sum(name.startswith(role) for name in config.learners) for role in rows}
    if config.society.one_model:  # one agent learns what all of them would
        tokens = sum(learned[role] * rows[role] for role in rows) / sum(learned.values())
        learned["generator"] = config.debate.num_agents * sum(learned.values())
        rows["generator"] = tokens
    for role, count in jobs.items():
        if count:
            examples = min(learned[role], most or math.inf)
            tokens = count * examples * rows[role] * config.train.of(role, iteration).num_epochs
            yield Training(iteration=iteration, role=role, jobs=count, examples=examples, tokens=tokens, row=rows[role])


def _tokens(text: str) -> float:
    return len(text.encode()) / BYTES_PER_TOKEN
