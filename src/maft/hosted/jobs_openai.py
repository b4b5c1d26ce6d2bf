"""Finetuning jobs of OpenAI's service, or of a server with its API."""

from functools import partial
from typing import Any

from maft.config import OpenAiConfig, Training
from maft.hosted import service as hosted
from maft.hosted.jobs import Jobs, State, whole
from maft.trainers.base import TrainJob

CLOSING = (
    "OpenAI is closing finetuning: it takes no new jobs after 6 January 2027, and its finetuned GPT-4o and GPT-4.1 "
    "models stop on 14 January 2027. docs/howto/hosted.md names other services."
)
_RUNNING = ("validating_files", "queued", "running")


class OpenAiJobs(Jobs):
    """`openai.learning_rate_multiplier` and `openai.job_batch_size` take the place of `train`'s settings."""

    least_examples = 10
    largest_file = 512 * 1024 * 1024

    def __init__(self, settings: OpenAiConfig) -> None:
        import openai

        self.error = openai.OpenAIError
        self._not_found = openai.NotFoundError
        self._settings = settings
        self._client = hosted.client(settings)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def terms(self, job: TrainJob, training: Training) -> dict[str, Any]:
        """Return epochs, batch size and rate, and what differs from imitation."""
        settings = self._settings
        chosen = {"objective": "dpo", "beta": training.beta} if training.objective == "dpo" else {}
        return {
            "epochs": training.num_epochs,
            "batch": settings.job_batch_size,
            "rate": settings.learning_rate_multiplier,
        } | chosen

    def upload(self, marker: str, text: str) -> str:
        """Return the id of a set; see `Jobs`."""
        for file in whole(list(self._client.files.list(purpose="fine-tune")), "id", "filename"):
            if file.filename == f"{marker}.jsonl":
                return str(file.id)
        content = (f"{marker}.jsonl", text.encode(), "application/jsonl")
        return str(whole([self._client.files.create(file=content, purpose="fine-tune")], "id")[0].id)

    def find(self, marker: str, training: Training) -> str | None:
        """Return the id of a job of this name; see `Jobs`."""
        for job in whole(list(self._client.fine_tuning.jobs.list(limit=100)), "id", "status"):
            useless = job.status in ("failed", "cancelled") or (job.status == "succeeded" and not job.fine_tuned_model)
            if (job.metadata or {}).get("maft") == marker and not useless:
                return str(job.id)
        return None

    def start(self, marker: str, file: str, job: TrainJob, training: Training) -> str:
        """Start a job and return its id."""
        settings = self._settings
        hyperparameters = {
            "n_epochs": training.num_epochs,
            "batch_size": settings.job_batch_size,
            "learning_rate_multiplier": settings.learning_rate_multiplier,
        }
        kind = "dpo" if training.objective == "dpo" else "supervised"
        if kind == "dpo":
            hyperparameters["beta"] = training.beta
        create = partial(
            self._client.fine_tuning.jobs.create,
            model=job.base_model,
            training_file=file,
            seed=job.seed % 2**31,
            suffix=f"{settings.suffix}-{job.iteration}-{job.agent.replace('_', '-')}",
            metadata={"maft": marker, "agent": job.agent, "iteration": str(job.iteration)},
            method={"type": kind, kind: {"hyperparameters": hyperparameters}},
        )
        return str(whole([create()], "id")[0].id)

    def state(self, name: str, job: TrainJob) -> State | None:
        """Return the state of a job; see `Jobs`."""
        try:
            made = whole([self._client.fine_tuning.jobs.retrieve(name)], "id", "status")[0]
        except self._not_found:
            return None
        if made.status in _RUNNING:
            return State("running", step=self._step(name))
        reason = made.error.message if made.error else None
        return State(made.status, model=made.fine_tuned_model, tokens=made.trained_tokens, reason=reason)

    def _step(self, name: str) -> tuple[int, int] | None:
        events = self._client.fine_tuning.jobs.list_events(name, limit=10).data
        data = next((event.data for event in events if isinstance(event.data, dict) and "step" in event.data), None)
        total = (data or {}).get("total_steps")
        return (int(data["step"]), int(total)) if data and total else None
