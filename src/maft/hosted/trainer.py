"""Finetuning jobs of a hosted service, one per agent, concurrently.

A job costs money, so none is submitted twice. Before and after each step a small file beside the agent's folder says
what was submitted. If a kill comes between a submission and that note, the next start finds the file or job on the
service by its name and uses it.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import maft
from maft import config as config_
from maft import files
from maft.config import OpenAiConfig, TrainConfig
from maft.errors import DataError, StageFailed
from maft.files import appearing_whole
from maft.hosted import service as hosted
from maft.hosted.service import NotAnAnswer, Spending
from maft.method.formats import write_dialogues
from maft.records import Example, Record
from maft.trainers.base import Trainer, TrainJob, TrainProgress

log = logging.getLogger("maft")

LEAST_EXAMPLES = 10
"""The service refuses smaller sets."""
LARGEST_FILE = 512 * 1024 * 1024
"""In bytes; the service refuses larger files."""
FIRST_CONTACT_RETRIES = 5
"""Retries while a server has never answered, for half a minute: a run gets here after hours."""
RUNNING = ("validating_files", "queued", "running")
CLOSING = (
    "OpenAI is closing finetuning: it takes no new jobs after 6 January 2027, and its finetuned GPT-4o and GPT-4.1 "
    "models stop on 14 January 2027. docs/engines.md names other ways."
)


class Submission(Record):
    """What was submitted for one agent."""

    marker: str
    """Name of the uploaded file and of the job, by which they are found again."""
    file: str | None = None
    job: str | None = None

    def write(self, note: Path) -> None:
        """Write this to a file beside the agent's folder."""
        files.write_text(note, self.to_json() + "\n")


class OpenAiTrainer(Trainer):
    """Uploads each agent's set, starts its job, and waits for all of them."""

    def __init__(self, settings: OpenAiConfig, folder: Path) -> None:
        """Send nothing yet; the money spent is kept in `folder`."""
        self.settings = settings
        self._folder = folder

    def train(
        self, jobs: Sequence[TrainJob], settings: TrainConfig, on_progress: Callable[[TrainProgress], None]
    ) -> None:
        """Make the output folder of each job, with the name of the finetuned model in hosted.json.

        Raises:
            ConfigError: no key, or one that is not accepted.
            DataError: a set that the service would refuse, or an unknown model.
            StageFailed: a job failed or was cancelled, or the spending limit is reached; the others are kept.
        """
        if self.settings.base_url is None:
            log.warning(CLOSING)
        sets = {job.agent: _checked(job, settings) for job in jobs}
        spending = Spending(self.settings, self._folder)
        with hosted.client(self.settings) as client:
            service = _Service(client, self.settings, spending)
            running = [(job, service.submit(job, sets[job.agent], settings)) for job in jobs]
            failures: list[str] = []
            while running:
                running = [(job, at) for job, at in running if self._goes_on(job, at, service, on_progress, failures)]
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
        service: "_Service",
        on_progress: Callable[[TrainProgress], None],
        failures: list[str],
    ) -> bool:
        """Look at a job, and keep its model if it has one; return whether it is still running."""
        name, note = str(submission.job), _note(job.output)
        state = service.job(name)
        what = f"the job {name} of {job.agent}"
        if state is None:
            note.unlink(missing_ok=True)
            raise StageFailed(f"the service does not know {what} any more. The same command submits it again.")
        if state.status in RUNNING:
            if (step := service.step(name)) is not None:
                on_progress(_progress(job.agent, *step, 0))
            return True
        if state.status == "succeeded" and state.fine_tuned_model:
            if state.trained_tokens:
                service.spending.book(name, service.spending.training_cost(state.trained_tokens))
            _keep(job, submission, state)
            on_progress(_progress(job.agent, 1, 1, state.trained_tokens or 0))
            return False
        if state.status not in _ENDED_AS:
            waits = hosted.without_key(str(state.status), self.settings)
            raise StageFailed(f"{what} is {waits}. Resume or cancel it at the service; the same command continues.")
        note.unlink(missing_ok=True)
        reason = state.error.message if state.error and state.error.message else "no reason was given"
        reason = ": " + hosted.without_key(reason.strip().rstrip("."), self.settings)
        failures.append(f"{what} {_ENDED_AS[state.status]}{'' if state.status == 'succeeded' else reason}")
        return False


_ENDED_AS = {"succeeded": "succeeded, but names no model", "failed": "failed", "cancelled": "was cancelled"}


class _Service:
    """The calls that finetuning needs, tried again where that can help, always with the same parameters."""

    def __init__(self, client: Any, settings: OpenAiConfig, spending: Spending) -> None:
        self._client, self._settings, self.spending = client, settings, spending
        self._tries = hosted.Tries(settings, FIRST_CONTACT_RETRIES)

    def submit(self, job: TrainJob, text: str, settings: TrainConfig) -> Submission:
        """Return an agent's submission; only what is missing is uploaded and started."""
        note, marker = _note(job.output), _marker(job, text, settings, self._settings)
        known = Submission.from_json(note.read_text(encoding="utf-8")) if note.exists() else None
        submission = known if known is not None and known.marker == marker else Submission(marker=marker)
        if submission.file is None:
            submission = submission.model_copy(update={"file": self.file(marker, text)})
            submission.write(note)
        if submission.job is None:
            cost = self.spending.training_cost(hosted.tokens(text) * job.training(settings).num_epochs)
            name = self.find_job(marker)
            if name is None:
                with self.spending.job(cost, f"finetuning {job.agent}"):
                    name = self.start(submission, job, settings)
            self.spending.book(name, cost)  # also if a kill came before it could be booked
            submission = submission.model_copy(update={"job": name})
            submission.write(note)
        return submission

    def file(self, marker: str, text: str) -> str:
        """Return the id of the set, which is uploaded unless there is one of this name."""
        uploaded = self._try(lambda: _whole(list(self._client.files.list(purpose="fine-tune")), "id", "filename"))
        for file in uploaded:
            if file.filename == f"{marker}.jsonl":
                return str(file.id)
        content = (f"{marker}.jsonl", text.encode(), "application/jsonl")
        create = partial(self._client.files.create, file=content, purpose="fine-tune")
        return str(self._try(lambda: _whole([create()], "id"))[0].id)

    def find_job(self, marker: str) -> str | None:
        """Return the id of a job of this name that runs or has succeeded."""
        jobs = self._try(lambda: _whole(list(self._client.fine_tuning.jobs.list(limit=100)), "id", "status"))
        for job in jobs:
            useless = job.status in ("failed", "cancelled") or (job.status == "succeeded" and not job.fine_tuned_model)
            if (job.metadata or {}).get("maft") == marker and not useless:
                return str(job.id)
        return None

    def start(self, submission: Submission, job: TrainJob, settings: TrainConfig) -> str:
        """Start a job and return its id."""

        def create() -> Any:
            # An answer that was lost may have started the job: look before trying again.
            if (started := self.find_job(submission.marker)) is not None:
                return self._client.fine_tuning.jobs.retrieve(started)
            return self._client.fine_tuning.jobs.create(
                model=job.base_model,
                training_file=submission.file,
                seed=job.seed % 2**31,
                suffix=f"{self._settings.suffix}-{job.iteration}-{job.agent.replace('_', '-')}",
                metadata={"maft": submission.marker, "agent": job.agent, "iteration": str(job.iteration)},
                method={
                    "type": "supervised",
                    "supervised": {
                        "hyperparameters": {
                            "n_epochs": job.training(settings).num_epochs,
                            "batch_size": self._settings.job_batch_size,
                            "learning_rate_multiplier": self._settings.learning_rate_multiplier,
                        }
                    },
                },
            )

        return str(self._try(lambda: _whole([create()], "id"))[0].id)

    def job(self, name: str) -> Any:
        """Return the state of a job; None if the service does not know it any more."""
        import openai

        def retrieve() -> Any:
            try:
                return _whole([self._client.fine_tuning.jobs.retrieve(name)], "id", "status")[0]
            except openai.NotFoundError:
                return None

        return self._try(retrieve)

    def step(self, name: str) -> tuple[int, int] | None:
        """Return the steps that a job has done and its total, if the service reports them."""
        events = self._try(lambda: self._client.fine_tuning.jobs.list_events(name, limit=10).data)
        data = next((event.data for event in events if isinstance(event.data, dict) and "step" in event.data), None)
        total = (data or {}).get("total_steps")
        return (int(data["step"]), int(total)) if data and total else None

    def _try(self, call: Callable[[], Any]) -> Any:
        import openai

        try:
            return self._tries.call(lambda: hosted.understood(call), lambda _, seconds: time.sleep(seconds))
        except (openai.OpenAIError, NotAnAnswer) as error:
            where, words = self._settings.base_url or "the service", hosted.said(error, self._settings)
            if not hosted.can_pass(error):
                raise DataError(f"{where} refuses the finetuning: {words}") from None
            raise StageFailed(
                f"{where} does not answer: {words} What was submitted is noted; the same command continues."
            ) from None


def _whole(answers: list[Any], *names: str) -> list[Any]:
    """Return a service's answers, if they have these fields.

    Raises:
        TypeError: they are something else, such as a page of HTML, which the client takes for text.
    """
    if not all(isinstance(getattr(answer, name, None), str) for answer in answers for name in names):
        raise TypeError
    return answers


def _checked(job: TrainJob, settings: TrainConfig) -> str:
    """Return an agent's training set in the service's format.

    Raises:
        DataError: the service would refuse it.
    """
    if job.training(settings).objective != "sft":
        raise DataError(f"{job.agent}: a hosted service finetunes with train.objective=sft only.")
    examples = files.read_records(job.examples, Example)
    if len(examples) < LEAST_EXAMPLES:
        raise DataError(
            f"{job.agent} has {len(examples)} examples in {job.examples}, and the service finetunes on "
            f"{LEAST_EXAMPLES} at least. Debate more questions (task.num_train), or use more of them "
            "(vote.min_agreement=plurality, curate.short_side=use_all)."
        )
    for number, example in enumerate(examples, 1):
        if example.messages[-1].role != "assistant" or not example.messages[-1].content.strip():
            raise DataError(f"{job.examples}, line {number}: the last message must be a reply that is not empty.")
    text = write_dialogues(examples, "openai", last_only=settings.loss_turns == "last")
    if len(text.encode()) > LARGEST_FILE:
        raise DataError(f"the set of {job.agent} has {len(text):,} bytes; the service takes {LARGEST_FILE:,} at most.")
    return text


def _marker(job: TrainJob, text: str, settings: TrainConfig, service: OpenAiConfig) -> str:
    """Return a name that only the same job has, wherever the run folder is."""
    content = {
        "model": job.base_model,
        "seed": job.seed,
        "set": text,
        "epochs": job.training(settings).num_epochs,
        "batch": service.job_batch_size,
        "rate": service.learning_rate_multiplier,
    }
    return f"maft-{config_.short_digest(content)}-{job.iteration}-{job.agent}"


def _note(output: Path) -> Path:
    """Return the file that says what was submitted for an agent; hidden, so that no listing takes it for an agent."""
    return output.with_name(f".{output.name}.job.json")


def _progress(agent: str, step: int, num_steps: int, tokens: int) -> TrainProgress:
    return TrainProgress(agent=agent, step=step, num_steps=num_steps, loss=None, tokens=tokens)


_CARD = """\
---
base_model: {base}
tags: [maft, multiagent-finetuning]
---

# {agent}, iteration {iteration}

A hosted model, `{model}`, finetuned from `{base}` by job `{job}` on {num_examples} of this agent's own responses that
agree with the majority vote, with maft {version}.
"""


def _keep(job: TrainJob, submission: Submission, state: Any) -> None:
    """Write the agent's folder, with the name of its model."""
    content = {
        "model": state.fine_tuned_model,
        "base_model": job.base_model,
        "job": submission.job,
        "file": submission.file,
        "trained_tokens": state.trained_tokens,
    }
    card = _CARD.format(
        base=job.base_model,
        agent=job.agent,
        iteration=job.iteration,
        model=state.fine_tuned_model,
        job=submission.job,
        num_examples=job.num_examples,
        version=maft.__version__,
    )
    training = {"agent": job.agent, "tokens": state.trained_tokens or 0, "num_examples": job.num_examples}
    with appearing_whole(job.output) as folder:
        for name, value in (("hosted.json", content), ("training.json", training)):
            (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
