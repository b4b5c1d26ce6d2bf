"""Finetuning jobs of Together, through its client, the package `together`.

Written against the client and the API's documentation; not yet run against the service.
"""

from typing import Any

import httpx

from maft import files
from maft.config import HOSTED, OpenAiConfig, Training
from maft.errors import ConfigError
from maft.hosted import service as hosted
from maft.hosted.jobs import Jobs, State, whole
from maft.hosted.service import NotAnAnswer
from maft.trainers.base import TrainJob

NANO = 1e9
"""Prices are in billionths of a US dollar."""
LONGEST_SUFFIX = 40
_ENDED = {"completed": "succeeded", "error": "failed", "user_error": "failed", "cancelled": "cancelled"}
_RUNNING = ("pending", "queued", "running", "compressing", "uploading", "cancel_requested")


class TogetherJobs(Jobs):
    """The settings of `train` hold but those in `not_sent`; the name of a job is the suffix of its model's name."""

    largest_file = 25 * 1000**3
    not_sent = ("max_length", "lora.target_modules")

    def __init__(self, settings: OpenAiConfig) -> None:
        import together

        self.error = together.TogetherError
        self._not_found = together.NotFoundError
        key, address = hosted.checked_key(settings), settings.base_url or HOSTED["together"].base_url
        self._client = together.Together(api_key=key, base_url=address, timeout=settings.timeout, max_retries=0)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def terms(self, job: TrainJob, training: Training) -> dict[str, Any]:
        """Return all settings of finetuning."""
        return {"train": training.model_dump(mode="json")}

    def upload(self, marker: str, text: str) -> str:
        """Return the id of a set; see `Jobs`."""
        for file in whole(list(self._client.files.list().data), "id", "filename"):
            if file.filename == f"{marker}.jsonl":
                return str(file.id)
        with files.scratch("upload") as folder:
            path = folder / f"{marker}.jsonl"
            path.write_text(text, encoding="utf-8")
            try:
                return str(whole([self._client.files.upload(path, purpose="fine-tune")], "id")[0].id)
            except httpx.HTTPError as error:  # of the storage behind the service, which the client passes on
                raise NotAnAnswer(f"the upload failed: {error}") from None

    def price(self, file: str, job: TrainJob, training: Training) -> float | None:
        """Return the service's own estimate."""
        chosen = _chosen(job, training)
        method: Any = {"method": chosen["training_method"]}
        if method["method"] == "sft":
            method["train_on_inputs"] = False
        kind: Any = {"type": "Lora", "lora_r": chosen["lora_r"], "lora_alpha": int(chosen["lora_alpha"])}
        answer = self._client.fine_tuning.estimate_price(
            training_file=file,
            n_epochs=training.num_epochs,
            training_method=method,
            training_type=kind if chosen["lora"] else {"type": "Full"},
            **self._start_from(job),
        )
        price = getattr(answer, "estimated_total_price", None)
        return None if price is None else float(price)

    def find(self, marker: str, training: Training) -> str | None:
        """Return the id of a job of this name; see `Jobs`."""
        for job in self._jobs():
            if job.suffix == _suffix(marker) and _ENDED.get(job.status) not in ("failed", "cancelled"):
                named = job.x_model_output_name or self._client.fine_tuning.retrieve(job.id).x_model_output_name
                if named or job.status in _RUNNING:
                    return str(job.id)
        return None

    def start(self, marker: str, file: str, job: TrainJob, training: Training) -> str:
        """Start a job and return its id."""
        try:
            answer = self._client.fine_tuning.create(
                training_file=file, suffix=_suffix(marker), **self._start_from(job), **_chosen(job, training)
            )
        except ValueError as error:  # the client checks limits of the model, which the service told it
            raise ConfigError(f"Together does not finetune {job.base_model} so: {error} Change it in train.") from None
        return str(whole([answer], "id")[0].id)

    def state(self, name: str, job: TrainJob) -> State | None:
        """Return the state of a job; see `Jobs`."""
        try:
            made = whole([self._client.fine_tuning.retrieve(name)], "id", "status")[0]
        except self._not_found:
            return None
        events = self._client.fine_tuning.list_events(name).data
        if made.status in _RUNNING:
            steps = [(event.step, event.total_steps) for event in events if event.step and event.total_steps]
            return State("running", step=max(steps, default=None))
        words = [event.message for event in events if "error" in (event.type, event.level) or event.type == "job_error"]
        return State(
            _ENDED.get(made.status, made.status),
            model=made.x_model_output_name,
            tokens=made.token_count,
            usd=None if made.total_price is None else made.total_price / NANO,
            reason=words[-1] if words else None,
        )

    def _jobs(self) -> list[Any]:
        return whole(list(self._client.fine_tuning.list().data), "id", "status")

    def _start_from(self, job: TrainJob) -> dict[str, Any]:
        """Return the base model, or the job that made the model to go on from."""
        made = next((str(each.id) for each in self._jobs() if each.x_model_output_name == job.base_model), None)
        return {"from_checkpoint": made} if made else {"model": job.base_model}


def _suffix(marker: str) -> str:
    return marker.replace("_", "-")[:LONGEST_SUFFIX]


def _chosen(job: TrainJob, training: Training) -> dict[str, Any]:
    """Return the settings of a job as the service names them."""
    constant, sft = training.lr_schedule == "constant", training.objective == "sft"
    return {
        "n_epochs": training.num_epochs,
        "batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "cosine" if training.lr_schedule == "cosine" else "linear",
        "min_lr_ratio": 1.0 if constant else 0.0,
        "warmup_ratio": training.warmup_ratio,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "packing": training.packing,
        "lora": training.method == "lora",
        "lora_r": training.lora.rank,
        "lora_alpha": training.lora.alpha,
        "lora_dropout": training.lora.dropout,
        "random_seed": job.seed % 2**31,
        "training_method": training.objective,
        **({"train_on_inputs": False} if sft else {"dpo_beta": training.beta}),
    }
