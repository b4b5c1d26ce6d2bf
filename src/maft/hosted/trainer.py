"""Finetuning jobs of a hosted service, one per agent, concurrently.

A job costs money, so none is submitted twice. Before and after each step a small file beside the agent's folder says
what was submitted. If a kill comes between a submission and that note, the next start finds the file or job on the
service by its name and uses it.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import maft
from maft import config as config_
from maft import files
from maft.config import OpenAiConfig, TrainConfig
from maft.errors import DataError, StageFailed
from maft.files import appearing_whole
from maft.hosted import service as hosted
from maft.hosted.jobs import ENDED, Jobs, State
from maft.hosted.service import NotAnAnswer, Spending
from maft.records import Example, Record
from maft.trainers.base import Trainer, TrainJob, TrainProgress

T = TypeVar("T")

FIRST_CONTACT_RETRIES = 5
"""Retries while a server has never answered, for half a minute: a run gets here after hours."""


class Submission(Record):
    """What was submitted for one agent."""

    marker: str
    """Name of the uploaded file and of the job, by which they are found again."""
    file: str | None = None
    job: str | None = None

    def write(self, note: Path) -> None:
        """Write this to a file beside the agent's folder."""
        files.write_text(note, self.to_json() + "\n")


class HostedTrainer(Trainer):
    """Uploads each agent's set, starts its job, and waits for all of them."""

    def __init__(self, jobs: type[Jobs], settings: OpenAiConfig, folder: Path) -> None:
        """Send nothing yet; the money spent is kept in `folder`."""
        self.settings = settings
        self._jobs = jobs
        self._folder = folder

    def train(
        self, jobs: Sequence[TrainJob], settings: TrainConfig, on_progress: Callable[[TrainProgress], None]
    ) -> None:
        """Make the output folder of each job, with the name of the finetuned model in hosted.json.

        Raises:
            ConfigError: no key, or one that is not accepted, or settings that the service does not offer.
            DataError: a set that the service would refuse, or an unknown model.
            StageFailed: a job failed or was cancelled, or the spending limit is reached; the others are kept.
        """
        with closing(self._jobs(self.settings)) as provider:
            sets = [(job, _checked(job, settings, provider)) for job in jobs]
            service = _Service(provider, self.settings, Spending(self.settings, self._folder))
            running = [(job, service.submit(job, text, settings), _tokens(text, job, settings)) for job, text in sets]
            failures: list[str] = []
            while running:
                running = [each for each in running if self._goes_on(*each, service, on_progress, failures)]
                if running:
                    time.sleep(self.settings.poll_seconds)
        if failures:
            raise StageFailed(
                f"{'; '.join(failures)}. {len(jobs) - len(failures)} of {len(jobs)} agents are finetuned and kept; "
                "the same command submits the others again."
            )

    def _goes_on(
        self,
        job: TrainJob,
        submission: Submission,
        estimate: int,
        service: "_Service",
        on_progress: Callable[[TrainProgress], None],
        failures: list[str],
    ) -> bool:
        """Look at a job, and keep its model if it has one; return whether it is still running.

        `estimate` is the number of tokens trained on where the service does not say it.
        """
        name, note = str(submission.job), note_of(job.output)
        state = service.state(name, job)
        what = f"the job {name} of {job.agent}"
        if state is None:
            note.unlink(missing_ok=True)
            raise StageFailed(f"the service does not know {what} any more. The same command submits it again.")
        if state.status == "running":
            if state.step is not None:
                on_progress(_progress(job.agent, *state.step, 0))
            return True
        if state.status == "succeeded" and state.model:
            service.book(name, state)
            keep(job, _content(job, submission, state), state.tokens or estimate)
            on_progress(_progress(job.agent, 1, 1, state.tokens or estimate))
            return False
        if state.status not in ENDED:
            waits = hosted.without_key(state.status, self.settings)
            raise StageFailed(f"{what} is {waits}. Resume or cancel it at the service; the same command continues.")
        note.unlink(missing_ok=True)
        reason = ": " + hosted.without_key((state.reason or "no reason was given").strip().rstrip("."), self.settings)
        failures.append(f"{what} {_ENDED_AS[state.status]}{'' if state.status == 'succeeded' else reason}")
        return False


_ENDED_AS = {"succeeded": "succeeded, but names no model", "failed": "failed", "cancelled": "was cancelled"}


class _Service:
    """The calls of one service, tried again where that can help, always with the same parameters."""

    def __init__(self, provider: Jobs, settings: OpenAiConfig, spending: Spending) -> None:
        self._provider, self._settings, self._spending = provider, settings, spending
        self._tries = hosted.Tries(settings, FIRST_CONTACT_RETRIES, provider.error)

    def submit(self, job: TrainJob, text: str, settings: TrainConfig) -> Submission:
        """Return an agent's submission; only what is missing is uploaded and started."""
        training = job.training(settings)
        note, marker = note_of(job.output), _marker(job, text, self._provider.terms(job, training))
        known = Submission.from_json(note.read_text(encoding="utf-8")) if note.exists() else None
        submission = known if known is not None and known.marker == marker else Submission(marker=marker)
        if submission.file is None:
            submission = submission.model_copy(update={"file": self._try(lambda: self._provider.upload(marker, text))})
            submission.write(note)
        if submission.job is None:
            cost = self._spending.training_cost(_tokens(text, job, settings))
            name = self._try(lambda: self._provider.find(marker, training))
            if name is None:
                price = self._try(lambda: self._provider.price(str(submission.file), job, training))
                cost = max(cost, price or 0.0)
                with self._spending.job(cost, f"finetuning {job.agent}"):
                    name = self.start(submission, job, settings)
            self._spending.book(name, cost)  # also if a kill came before it could be booked
            submission = submission.model_copy(update={"job": name})
            submission.write(note)
        return submission

    def start(self, submission: Submission, job: TrainJob, settings: TrainConfig) -> str:
        """Start a job and return its id."""
        marker, file, training, provider = (
            submission.marker,
            str(submission.file),
            job.training(settings),
            self._provider,
        )

        # An answer that was lost may have started the job: look before trying again.
        return self._try(lambda: provider.find(marker, training) or provider.start(marker, file, job, training))

    def state(self, name: str, job: TrainJob) -> State | None:
        """Return the state of a job; None if the service does not know it any more."""
        return self._try(lambda: self._provider.state(name, job))

    def book(self, name: str, state: State) -> None:
        """Book what a finished job cost, in place of the estimate, if the service says it."""
        if state.usd is not None:
            self._spending.book(name, state.usd)
        elif state.tokens:
            self._spending.book(name, self._spending.training_cost(state.tokens))

    def _try(self, call: Callable[[], T]) -> T:
        try:
            return self._tries.call(lambda: hosted.understood(call), lambda _, seconds: time.sleep(seconds))
        except (self._provider.error, NotAnAnswer) as error:
            where, words = self._settings.base_url or "the service", hosted.said(error, self._settings)
            if not hosted.can_pass(error):
                raise DataError(f"{where} refuses the finetuning: {words}") from None
            raise StageFailed(
                f"{where} does not answer: {words} What was submitted is noted; the same command continues."
            ) from None


def _checked(job: TrainJob, settings: TrainConfig, provider: Jobs) -> str:
    """Return an agent's training set in the service's format.

    Raises:
        DataError: the service would refuse it.
    """
    examples = files.read_records(job.examples, Example)
    if len(examples) < provider.least_examples:
        raise DataError(
            f"{job.agent} has {len(examples)} examples in {job.examples}, and the service finetunes on "
            f"{provider.least_examples} at least. Debate more questions (task.num_train), or use more of them "
            "(vote.min_agreement=plurality, curate.short_side=use_all)."
        )
    for number, example in enumerate(examples, 1):
        if example.messages[-1].role != "assistant" or not example.messages[-1].content.strip():
            raise DataError(f"{job.examples}, line {number}: the last message must be a reply that is not empty.")
    text = provider.rows(examples, last_only=settings.loss_turns == "last")
    if (size := len(text.encode())) > provider.largest_file:
        raise DataError(
            f"the set of {job.agent} has {size:,} bytes; the service takes {provider.largest_file:,} at most."
        )
    return text


def _marker(job: TrainJob, text: str, terms: dict[str, Any]) -> str:
    """Return a name that only the same job has, wherever the run folder is."""
    content = {"model": job.base_model, "seed": job.seed, "set": text} | terms
    return f"maft-{config_.short_digest(content)}-{job.iteration}-{job.agent}"


def note_of(output: Path) -> Path:
    """Return the file that says what was submitted for an agent; hidden, so that no listing takes it for an agent."""
    return output.with_name(f".{output.name}.job.json")


def _tokens(text: str, job: TrainJob, settings: TrainConfig) -> int:
    """Estimate the tokens that an agent is trained on, every epoch counted."""
    return round(hosted.tokens(text) * job.training(settings).num_epochs)


def _progress(agent: str, step: int, num_steps: int, tokens: int) -> TrainProgress:
    return TrainProgress(agent=agent, step=step, num_steps=num_steps, loss=None, tokens=tokens)


_CARD = """\
---
base_model: {base}
tags: [maft, multiagent-finetuning]
---

# {agent}, iteration {iteration}

A hosted model, `{model}`, finetuned from `{base}` on {num_examples} of this agent's own responses that
agree with the majority vote, with maft {version}.
"""


def _content(job: TrainJob, submission: Submission, state: State) -> dict[str, Any]:
    return {
        "model": state.model,
        "base_model": job.base_model,
        "job": submission.job,
        "file": submission.file,
        "trained_tokens": state.tokens,
    }


def keep(job: TrainJob, content: dict[str, Any], tokens: int, dropped: int = 0) -> None:
    """Write the agent's folder, with the name of its model.

    `content` has `model` and how it was made; `dropped` examples were left out.
    """
    card = _CARD.format(
        base=job.base_model,
        agent=job.agent,
        iteration=job.iteration,
        model=content["model"],
        num_examples=job.num_examples - dropped,
        version=maft.__version__,
    )
    training = {"agent": job.agent, "tokens": tokens, "num_examples": job.num_examples, "num_dropped_too_long": dropped}
    with appearing_whole(job.output) as folder:
        for name, value in (("hosted.json", content), ("training.json", training)):
            (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
