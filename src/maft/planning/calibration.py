"""Measures what one batch of a run takes, for an estimate of the whole run.

A scratch run of one batch of questions, with the real engine and trainer:

    1. the untrained society debates the batch                      lengths, examples, tokens per second
    2. up to three generators and critics are finetuned, each on    seconds of a training, tokens per second by role
       as many examples as it will have, its own and others'
    3. 2N copies of these debate the batch again                    lengths after finetuning, time to change agents

One agent of a role would be quicker and is not enough: replies of finetuned agents differ by a quarter in length.

What follows for later societies: the second finetuning makes replies as long as the examples of step 3 are, and nothing
changes after that. Seeds are the run's own, so step 1 holds the debates that the run begins with.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maft import config as config_
from maft import engines, files, models, seeds, tasks
from maft.config import HOSTED, ClusterConfig, RunConfig
from maft.config.prompts import Prompts
from maft.errors import UserError
from maft.method import protocol_of
from maft.pipeline import examples as examples_
from maft.pipeline import finetune
from maft.pipeline import run as pipeline
from maft.planning.forecast import Behaviour, Texts, calls
from maft.records import Debate, Example, Message, Record, Reply, Request, Role, SamplingParams, Society, Vote
from maft.runs import manifest, societies
from maft.runs.folder import RunFolder
from maft.runs.progress import Progress
from maft.samplers import Sampler
from maft.trainers import Trainer, TrainJob, TrainProgress

log = logging.getLogger(__name__)

MAX_AGENTS = 3
"""Maximum number of agents of a role, and of a base model, that are finetuned."""


class Speed(Record):
    """Seconds and rates of the machine that calibrated; a rate of 0 was too fast to be measured."""

    start: float
    """Seconds until the sampler's first reply in a new process."""
    restart: float
    """The same after a finetuning, when the libraries are loaded."""
    sampling: float
    """Tokens per second, prompts and replies together."""
    changing: float
    """Further seconds of a batch of finetuned agents, whose weights engines exchange."""
    train_start: float
    """Seconds until the first agent of an iteration is trained."""
    training: dict[str, float]
    """Tokens per second, by role."""


class Calibration(Record):
    """Measured lengths and speed."""

    questions: int
    batch_size: int
    texts: Texts
    societies: tuple[Behaviour, ...]
    """Finetuned 0, 1 and more times."""
    speed: Speed
    processor: str
    seconds: float
    """Duration of the calibration."""


def cache_file(config: RunConfig) -> Path:
    """Return the file for the calibration of runs with these settings on this machine."""
    amount = {"name", "runs_dir", "seed", "num_iterations", "cluster"}
    tree = config.model_dump(mode="json", exclude={**dict.fromkeys(amount, True), "task": {"num_train", "num_eval"}})
    return models.cache_dir() / "calibration" / f"{config_.short_digest(tree | manifest.machine())}.json"


def cached(config: RunConfig) -> Calibration | None:
    """Return the kept calibration of runs with these settings on this machine; None if there is none."""
    file = cache_file(config)
    return Calibration.from_json(file.read_text(encoding="utf-8")) if file.exists() else None


def calibrate(
    config: RunConfig,
    sampler: Sampler | None = None,
    trainer: Trainer | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Play one batch, train a few agents of each role, play the batch again; keep the measurements.

    Raises:
        UserError: the run uses a hosted service, where this would cost money.
    """
    if config.engine.sampler == "openai" or config.engine.trainer in HOSTED:
        raise UserError("a calibration would pay for hosted models. Use `maft plan` without --calibrate.")
    config = config.model_copy(update={"cluster": ClusterConfig()})  # one engine is measured, that of this machine
    sampler, trainer = sampler or engines.make_sampler(config), trainer or engines.make_trainer(config)
    started = time.monotonic()
    with files.scratch("calibration") as scratch:
        small = config.model_copy(update={"name": "calibration", "runs_dir": scratch, "num_iterations": 2})
        with RunFolder.open(small) as folder:
            measured = _measure(folder, sampler, trainer, progress or Progress(quiet=True))
    calibration = measured.model_copy(update={"seconds": time.monotonic() - started})
    files.write_text(cache_file(config), calibration.to_json() + "\n")
    return calibration


def _measure(folder: RunFolder, sampler: Sampler, trainer: Trainer, progress: Progress) -> Calibration:
    config = folder.config
    manifest.write(folder)
    split = pipeline.questions(folder)
    train = tasks.train_set(split.train, config.task, 1)
    batch = train[: config.engine.batch_size]
    plan = "debate, finetune up to %d agents of each role, debate again"
    log.info(f"Calibrating with %d questions: {plan}.", len(batch), MAX_AGENTS)
    society = societies.untrained(config)

    start = _seconds_of_one_reply(sampler, society)
    began = time.monotonic()
    debates = list(pipeline.debate(folder, 1, society, batch, sampler, progress))
    playing = time.monotonic() - began
    votes = pipeline.vote(folder, 1, debates)
    examples = _examples(folder, debates, votes)
    before = _behaviour(config, debates, examples)
    rate = _tokens(debates) / playing if playing > 0 else 0.0
    sampler.release()

    jobs = _jobs(folder, society, examples, len(train) / len(batch))
    training = _Watch()
    with progress.stage("calibration: finetune", len(jobs), "agent") as bar:

        def on_step(step: TrainProgress) -> None:
            training(step)
            bar.advance(1 / max(1, step.num_steps))

        trainer.train(jobs, config.train, on_step)
    trained = _copies(folder, society, jobs)

    restart = _seconds_of_one_reply(sampler, society)
    began = time.monotonic()
    again = list(pipeline.debate(folder, 2, trained, batch, sampler, progress))
    playing = time.monotonic() - began
    sampler.release()
    learned = _examples(folder, again, pipeline.vote(folder, 2, again))
    after = _behaviour(config, again, learned)
    return Calibration(
        questions=len(batch),
        batch_size=config.engine.batch_size,
        texts=_texts(config, debates, before),
        societies=(before, after, _later(config, after, again, learned)),
        speed=Speed(
            start=start,
            restart=restart,
            sampling=rate,
            changing=max(0.0, playing - _tokens(again) / rate) if rate else 0.0,
            **training.summary(),
        ),
        processor=manifest.machine()["processor"],
        seconds=0.0,
    )


def _seconds_of_one_reply(sampler: Sampler, society: Society) -> float:
    """Return how long a model that is not loaded takes to its first reply."""
    hello = Request(
        agent=society.generators[0],
        messages=(Message(role="user", content="Hello."),),
        sampling=SamplingParams(max_new_tokens=1),
        seed=0,
    )
    began = time.monotonic()
    sampler.sample([hello])
    return time.monotonic() - began


def _examples(
    folder: RunFolder, debates: Sequence[Debate], votes: Mapping[str, Vote]
) -> dict[Role, list[tuple[Example, ...]]]:
    """Return the examples of each agent, by role."""
    config = folder.config
    sets: dict[Role, list[tuple[Example, ...]]] = {}
    for name, make in examples_.of_agents(config, 1, debates, votes).items():
        role: Role = "generator" if name.startswith("generator") else "critic"
        if role == "generator" or config.train.critics or config.society.one_model:
            sets.setdefault(role, []).append(make().examples)
    return sets


def _jobs(
    folder: RunFolder, society: Society, examples: Mapping[Role, list[tuple[Example, ...]]], scale: float
) -> list[TrainJob]:
    """Write examples for the first agents of each role and base, as many as they will have: own ones, then others'."""
    jobs: list[TrainJob] = []
    most = 1 if folder.config.society.one_model else MAX_AGENTS
    for role, sets in examples.items():
        agents = society.generators if role == "generator" else society.critics
        expected = round(scale * sum(map(len, sets)) / len(sets))
        for place, agent in enumerate(agents):
            if sum(one.base_model == agent.model for one in jobs if one.role == role) == most:
                continue
            others = [example for n, one in enumerate(sets) if n != place for example in one]
            more = min(max(0, expected - len(sets[place])), len(others)) if scale > 1 else 0
            chosen = [*sets[place], *seeds.rng(folder.config.seed, "calibration", agent.name).sample(others, more)]
            files.write_records(folder.examples(1, agent.name), chosen)
            jobs.append(finetune.job(folder, 1, agent, len(chosen)))
    return jobs


def _copies(folder: RunFolder, society: Society, jobs: Sequence[TrainJob]) -> Society:
    """Return a society of 2N agents, copies of the trained ones: engines take time to change agents."""
    for agent in society.agents:
        outputs = [job.output for job in jobs if (job.role, job.base_model) == (agent.role, agent.model)]
        if outputs and not folder.agent(1, agent.name).exists():
            folder.agent(1, agent.name).symlink_to(
                outputs[agent.index % len(outputs)].absolute(), target_is_directory=True
            )
    return societies.after(folder, 1)


class _Watch:
    """Records when each step of a training ended."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.steps: dict[str, list[tuple[float, int]]] = {}

    def __call__(self, step: TrainProgress) -> None:
        self.steps.setdefault(step.agent, []).append((time.monotonic(), step.tokens))

    def summary(self) -> dict[str, Any]:
        """Return the rate of each role, and the time that libraries and the model took to load before the first job.

        The first job's rate is that of its steps after the first; the others begin when the one before them ends.
        """
        spent: dict[str, list[tuple[int, float]]] = {}
        start, began = 0.0, self.began
        for number, (agent, steps) in enumerate(self.steps.items()):
            (first, first_tokens), (last, tokens) = steps[0], steps[-1]
            if number == 0 and len(steps) > 1 and last > first:
                took = (tokens - first_tokens, last - first)
                start = max(0.0, last - began - tokens * took[1] / took[0]) if took[0] else 0.0
            else:
                took = (tokens, max(1e-9, last - began))
            spent.setdefault(agent.partition("_")[0], []).append(took)
            began = last
        rates = {
            role: sum(tokens for tokens, _ in of) / sum(seconds for _, seconds in of) for role, of in spent.items()
        }
        return {"train_start": start, "training": rates}


def _tokens(debates: Sequence[Debate]) -> int:
    return sum(call.reply.prompt_tokens + call.reply.completion_tokens for debate in debates for call in debate.calls())


def _texts(config: RunConfig, debates: Sequence[Debate], behaviour: Behaviour) -> Texts:
    """Return the tokens of prompts without the replies quoted in them."""
    asked = {name: _mean([reply.prompt_tokens for reply in replies]) for name, replies in _by_kind(debates).items()}
    silent = dict.fromkeys(asked, 0.0)
    return {call.kind: asked[call.kind] - call.prompt for call in calls(config.debate, silent, behaviour)}


def _by_kind(debates: Sequence[Debate]) -> dict[str, list[Reply]]:
    """Return all replies by the kind of their call."""
    replies: dict[str, list[Reply]] = defaultdict(list)
    for debate in debates:
        for turn in (*debate.turns, *debate.samples):
            replies[f"answer {turn.round}"].append(turn.call.reply)
            if turn.summary is not None:
                replies[f"summary {turn.round}"].append(turn.summary.reply)
    return replies


def _behaviour(
    config: RunConfig, debates: Sequence[Debate], examples: Mapping[Role, list[tuple[Example, ...]]]
) -> Behaviour:
    by_kind = _by_kind(debates)
    lengths: dict[Role, list[float]] = {"generator": [], "critic": [], "summarizer": []}
    kinds = list(protocol_of(config.debate).kinds(config.debate, Prompts()))
    for kind in kinds:
        lengths[kind.role] += [reply.completion_tokens for reply in by_kind[kind.name]]
    rows = {role: _rows(debates, sets, role, config) for role, sets in examples.items()}
    num_responses = config.debate.num_agents * len(debates)
    return Behaviour(
        calls={kind.name: len(by_kind[kind.name]) / len(debates) for kind in kinds if kind.share < 1},
        replies={role: _mean(of_role) for role, of_role in lengths.items()},
        learned={role: len(of_role) / num_responses for role, of_role in rows.items()},
        rows={role: _mean([prompt + reply for prompt, reply in of_role]) for role, of_role in rows.items() if of_role},
    )


def _later(
    config: RunConfig,
    now: Behaviour,
    debates: Sequence[Debate],
    examples: Mapping[Role, list[tuple[Example, ...]]],
) -> Behaviour:
    """Return the behaviour of the society that learns from these debates: its replies are as long as its examples."""
    lengths = {role: [reply for _, reply in _rows(debates, sets, role, config)] for role, sets in examples.items()}
    learned = {role: _mean(of_role) for role, of_role in lengths.items() if of_role}
    return now.model_copy(update={"replies": now.replies | learned, "rows": {}})


def _rows(
    debates: Sequence[Debate], sets: Sequence[tuple[Example, ...]], role: Role, config: RunConfig
) -> list[tuple[int, int]]:
    """Return the tokens of prompt and reply of every example; further samples count as the first answer does."""
    kinds = protocol_of(config.debate).kinds(config.debate, Prompts())
    number = max(kind.round for kind in kinds if kind.role == role)
    replies = {(debate.problem_id, turn.agent): turn.call.reply for debate in debates for turn in debate.round(number)}
    learned = [replies.get((example.problem_id, place)) for place, examples in enumerate(sets) for example in examples]
    return [(reply.prompt_tokens, reply.completion_tokens) for reply in learned if reply is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
