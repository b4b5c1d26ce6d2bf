"""Finetuning jobs of a hosted service, one for each agent, side by side.

A job costs money, so none is submitted twice. Before and after each step a small file beside the agent's folder says
what was submitted. Should a kill come between a submission and that note, the next start finds the file or job on the
service by its name and takes it over.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import maft
from maft import config as config_
from maft import files
from maft.config import OpenAiConfig, TrainConfig
from maft.errors import DataError, MaftError, StageFailed
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
"""The service refuses larger files; in bytes."""
FIRST_CONTACT_RETRIES = 5
"""Further tries to reach a server that has not answered yet, for half a minute: a run comes here after hours."""
ENDED = ("succeeded", "failed", "cancelled")
RUNNING = ("validating_files", "queued", "running")
CLOSING = (
    "OpenAI is closing finetuning: it takes no new jobs after 6 January 2027, and its finetuned GPT-4o and GPT-4.1 "
    "models stop on 14 January 2027. docs/engines.md names other ways."
)


class Submission(Record):
    """What is known of one agent's job."""

    marker: str
    """Name of the uploaded file and of the job, by which they are found again."""
    file: str | None = None
    job: str | None = None


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
            service = _Service(client, self.settings)
            running = {job.agent: self._submit(job, sets[job.agent], settings, service, spending) for job in jobs}
            self._wait({job.agent: job for job in jobs}, running, settings, service, spending, on_progress)

    def _submit(
        self,
        job: TrainJob,
        text: str,
        settings: TrainConfig,
        service: "_Service",
        spending: Spending,
    ) -> Submission:
        """Return the agent's submission, making what is not there yet."""
        note, marker = _note(job.output), _marker(job, text, settings, self.settings)
        known = Submission.from_json(note.read_text(encoding="utf-8")) if note.exists() else None
        found = known if known is not None and known.marker == marker else Submission(marker=marker)
        if found.file is None:
            found = found.model_copy(update={"file": service.file(marker, text)})
            files.write_text(note, found.to_json() + "\n")
        if found.job is None:
            cost = spending.training_cost(hosted.tokens(text) * job.training(settings).num_epochs)
            there = service.find_job(marker)
            if there is None:
                with spending.job(cost, f"finetuning {job.agent}"):
                    there = service.start(found, job, settings)
            spending.book(there, cost)  # also where a kill came before it could be booked
            found = found.model_copy(update={"job": there})
            files.write_text(note, found.to_json() + "\n")
        return found

    def _wait(
        self,
        jobs: Mapping[str, TrainJob],
        running: Mapping[str, Submission],
        settings: TrainConfig,
        service: "_Service",
        spending: Spending,
        on_progress: Callable[[TrainProgress], None],
    ) -> None:
        """Look at the jobs now and then until all have ended."""
        failures: list[str] = []
        unfinished = dict(running)
        while unfinished:
            for agent, submission in list(unfinished.items()):
                state = service.job(str(submission.job))
                if state is None:
                    _note(jobs[agent].output).unlink(missing_ok=True)
                    raise StageFailed(
                        f"the service does not know the job {submission.job} of {agent} any more. The same command "
                        "submits it again."
                    )
                if state.status == "succeeded" and not state.fine_tuned_model:
                    _note(jobs[agent].output).unlink(missing_ok=True)
                    failures.append(f"the job {submission.job} of {agent} succeeded, but names no model")
                elif state.status == "succeeded":
                    if state.trained_tokens:
                        spending.book(str(submission.job), spending.training_cost(state.trained_tokens))
                    _keep(jobs[agent], submission, state)
                    on_progress(_progress(agent, 1, 1, state.trained_tokens or 0))
                elif state.status in ENDED:
                    _note(jobs[agent].output).unlink(missing_ok=True)
                    reason = state.error.message if state.error and state.error.message else "no reason was given"
                    reason = hosted.without_key(reason.strip().rstrip("."), self.settings)
                    failures.append(f"the job {submission.job} of {agent} {_ENDED_AS[state.status]}: {reason}")
                elif state.status not in RUNNING:
                    waits = hosted.without_key(str(state.status), self.settings)
                    raise StageFailed(
                        f"the job {submission.job} of {agent} is {waits}. Resume or cancel it at the service; the same "
                        "command continues."
                    )
                elif (step := service.step(str(submission.job))) is not None:
                    on_progress(_progress(agent, *step, 0))
                if state.status in ENDED:
                    del unfinished[agent]
            if unfinished:
                time.sleep(self.settings.poll_seconds)
        if failures:
            raise StageFailed(
                f"{'; '.join(failures)}. {len(jobs) - len(failures)} of {len(jobs)} agents are finetuned and kept; "
                "the same command submits the others again."
            )


_ENDED_AS = {"failed": "failed", "cancelled": "was cancelled"}


class _Service:
    """The few calls that finetuning needs; what may pass is tried again, and never with other parameters."""

    def __init__(self, client: Any, settings: OpenAiConfig) -> None:
        self._client = client
        self._settings = settings
        self._tries = hosted.Tries(settings, FIRST_CONTACT_RETRIES)

    def file(self, marker: str, text: str) -> str:
        """Return the id of the uploaded set; one of this name is not uploaded again."""
        there = self._try(lambda: _whole(list(self._client.files.list(purpose="fine-tune")), "id", "filename"))
        found = [file.id for file in there if file.filename == f"{marker}.jsonl"]
        if found:
            return str(found[0])
        content = (f"{marker}.jsonl", text.encode(), "application/jsonl")
        create = partial(self._client.files.create, file=content, purpose="fine-tune")
        return str(self._try(lambda: _whole([create()], "id"))[0].id)

    def find_job(self, marker: str) -> str | None:
        """Return the id of a job of this name that runs or has succeeded."""
        there = self._try(lambda: _whole(list(self._client.fine_tuning.jobs.list(limit=100)), "id", "status"))
        found = [job for job in there if (job.metadata or {}).get("maft") == marker]
        good = (job for job in found if job.status not in ("failed", "cancelled"))
        return next((str(job.id) for job in good if job.status != "succeeded" or job.fine_tuned_model), None)

    def start(self, submission: Submission, job: TrainJob, settings: TrainConfig) -> str:
        """Start a job and return its id."""

        def create() -> Any:
            # An answer that was lost on the way may have started the job: look before trying again.
            if (there := self.find_job(submission.marker)) is not None:
                return self._client.fine_tuning.jobs.retrieve(there)
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
        """Return the state of a job, None where the service does not know it any more."""
        import openai

        def retrieve() -> Any:
            try:
                return _whole([self._client.fine_tuning.jobs.retrieve(name)], "id", "status")[0]
            except openai.NotFoundError:
                return None

        return self._try(retrieve)

    def step(self, name: str) -> tuple[int, int] | None:
        """Return how many steps of how many a job has done, where the service tells."""
        events = self._try(lambda: self._client.fine_tuning.jobs.list_events(name, limit=10).data)
        data = next((event.data for event in events if isinstance(event.data, dict) and "step" in event.data), None)
        total = (data or {}).get("total_steps")
        return (int(data["step"]), int(total)) if data and total else None

    def _try(self, call: Callable[[], Any]) -> Any:
        import openai

        attempt = 0
        while True:
            try:
                result = _api_result(call)
                self._tries.answered = True
                return result
            except (openai.OpenAIError, NotAnAnswer) as error:
                wait = self._tries.wait(error, attempt)
                if wait is None:
                    where, words = self._settings.base_url or "the service", hosted.said(error, self._settings)
                    if not hosted.can_pass(error):
                        raise DataError(f"{where} refuses the finetuning: {words}") from None
                    raise StageFailed(
                        f"{where} does not answer: {words} What was submitted is noted; the same command continues."
                    ) from None
            time.sleep(wait)
            attempt += 1


def _whole(answers: list[Any], *names: str) -> list[Any]:
    """Return what the service answered, if it has these fields.

    Raises:
        TypeError: it is something else, such as a page of HTML, which the client takes for text.
    """
    if not all(isinstance(getattr(answer, name, None), str) for answer in answers for name in names):
        raise TypeError
    return answers


def _api_result(call: Callable[[], Any]) -> Any:
    """Return what the client makes of the service's answer.

    Raises:
        NotAnAnswer: it could make nothing of it.
    """
    try:
        return call()
    except MaftError:
        raise
    except (AttributeError, TypeError, ValueError):
        raise NotAnAnswer("what came back is none of the answers documented") from None


def _checked(job: TrainJob, settings: TrainConfig) -> str:
    """Return an agent's set as the service wants it.

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
    """Return a name that only the same job has; it does not depend on where the run folder is, which may be moved."""
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
    """Return the file that says what was submitted for an agent; hidden, so that no listing takes it for one."""
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
    """Write down which model the agent is now."""
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
