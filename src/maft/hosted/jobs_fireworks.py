"""Finetuning jobs of Fireworks, through its client, the package `fireworks-ai`.

Written against the client and the API's documentation; not yet run against the service. Names of sets and jobs are
ours, so that what was made before a kill is found by its name.
"""

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, count
from typing import Any

from maft.config import HOSTED, OpenAiConfig, Training
from maft.errors import ConfigError
from maft.hosted import service as hosted
from maft.hosted.jobs import Jobs, State, whole
from maft.hosted.service import NotAnAnswer
from maft.trainers.base import TrainJob

ACCOUNT = "FIREWORKS_ACCOUNT_ID"
"""Environment variable with the account, where a key has several."""
NANO = 1e9
SAMPLED_AT = "/inference/v1"
_MODEL = re.compile(r"accounts/(?P<account>[\w.-]+)/models/(?P<model>[\w.-]+)(?:#(?P<deployment>accounts/[\w./-]+))?")
_STATES = {
    "COMPLETED": "succeeded",
    "EARLY_STOPPED": "succeeded",
    "FAILED": "failed",
    "EXPIRED": "failed",
    "CANCELLED": "cancelled",
    "PAUSED": "paused",
    "DELETING": "being deleted",
    "DELETING_CLEANING_UP": "being deleted",
}
"""Jobs in any other state run."""


class FireworksJobs(Jobs):
    """The settings of `train` hold but those in `not_sent`.

    A model `NAME#DEPLOYMENT` is loaded into that deployment once it is finetuned.
    """

    least_examples = 3
    largest_file = 150 * 1000**2
    not_sent = (
        "max_length",
        "packing",
        "lr_schedule",
        "max_grad_norm",
        "lora.alpha",
        "lora.dropout",
        "lora.target_modules",
    )

    def __init__(self, settings: OpenAiConfig) -> None:
        import fireworks

        self.error = fireworks.FireworksError
        self._not_found = fireworks.NotFoundError
        self._conflict = fireworks.ConflictError
        address = settings.base_url or HOSTED["fireworks"].base_url or ""
        self._client = fireworks.Fireworks(
            api_key=hosted.checked_key(settings),
            account_id=os.environ.get(ACCOUNT, "").strip() or None,
            base_url=address.removesuffix("/").removesuffix(SAMPLED_AT).removesuffix("/v1"),
            timeout=settings.timeout,
            max_retries=0,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def terms(self, job: TrainJob, training: Training) -> dict[str, Any]:
        """Return all settings of finetuning."""
        return {"train": training.model_dump(mode="json")}

    def upload(self, marker: str, text: str) -> str:
        """Return the name of a set; see `Jobs`."""
        name, account = _id(marker), self._account()
        if not self._is_ready(name):
            row: Any = {"userUploaded": {}, "exampleCount": str(text.count("\n")), "format": "CHAT"}
            with suppress(self._conflict):  # made by a start that was killed before its upload
                self._client.datasets.create(dataset_id=name, dataset=row, account_id=account)
            content = (f"{name}.jsonl", text.encode(), "application/jsonl")
            self._client.datasets.upload(name, file=content, account_id=account)
            if not self._is_ready(name):
                raise NotAnAnswer(f"the set {name} was uploaded and is not ready.")
        return f"accounts/{account}/datasets/{name}"

    def find(self, marker: str, training: Training) -> str | None:
        """Return the name of a job of this name; see `Jobs`."""
        for name in self._ids(marker):
            job = self._get(name, training.objective)
            if job is None:
                return None
            if _status(job) not in ("failed", "cancelled"):
                return str(job.name)
        return None

    def start(self, marker: str, file: str, job: TrainJob, training: Training) -> str:
        """Start a job and return its name."""
        name = next(name for name in self._ids(marker) if self._get(name, training.objective) is None)
        model = _parsed(job.base_model)
        known = self._client.models.get(model["model"], account_id=model["account"])
        start = "warm_start_from" if str(known.kind).endswith("_ADDON") else "base_model"
        chosen = _chosen(job, training) | {start: f"accounts/{model['account']}/models/{model['model']}"}
        where: Any = {"account_id": self._account(), "dataset": file, "display_name": name}
        if training.objective == "dpo":
            loss: Any = {"method": "DPO", "dpo": {"beta": training.beta}}
            settings: Any = chosen | {"output_model": name}
            made: Any = self._client.dpo_jobs.create(
                dpo_job_id=name, loss_config=loss, training_config=settings, **where
            )
        else:
            create = self._client.supervised_fine_tuning_jobs.create
            made = create(supervised_fine_tuning_job_id=name, output_model=name, **where, **chosen)
        return str(whole([made], "name")[0].name)

    def state(self, name: str, job: TrainJob) -> State | None:
        """Return the state of a job; see `Jobs`. One whose model is being loaded into a deployment still runs."""
        objective = "dpo" if "/dpoJobs/" in name else "sft"
        made = self._get(name.rpartition("/")[2], objective)
        if made is None:
            return None
        status, progress = _status(made), getattr(made, "job_progress", None)
        if status != "succeeded":
            reason = made.status.message if made.status else None
            percent = progress.percent if progress else None
            return State(status, reason=reason, step=None if percent is None else (percent, 100))
        settings = made.training_config if objective == "dpo" else made
        output = (settings.output_model if settings else None) or name.rpartition("/")[2]
        model = output if output.startswith("accounts/") else f"accounts/{self._account()}/models/{output}"
        price, deployment = getattr(made, "estimated_cost", None), _parsed(job.base_model)["deployment"]
        usd = None if price is None else int(price.units or 0) + (price.nanos or 0) / NANO
        if deployment is None:
            return State(status, model=model, usd=usd)
        return State(status if self._loaded(model, deployment) else "running", model=f"{model}#{deployment}", usd=usd)

    def _loaded(self, model: str, deployment: str) -> bool:
        """Say whether a deployment serves a model, which is loaded into it if it was not yet."""
        for each in self._client.lora.list(account_id=self._account()):
            if each.model == model and each.deployment == deployment:
                return bool(each.state == "DEPLOYED")
        self._client.lora.load(model=model, deployment=deployment, account_id=self._account())
        return False

    def _get(self, name: str, objective: str) -> Any:
        """Return a job; None if there is none of this name."""
        jobs: Any = self._client.dpo_jobs if objective == "dpo" else self._client.supervised_fine_tuning_jobs
        try:
            return whole([jobs.get(name, account_id=self._account())], "name", "state")[0]
        except self._not_found:
            return None

    def _is_ready(self, name: str) -> bool:
        try:
            return bool(self._client.datasets.get(name, account_id=self._account()).state == "READY")
        except self._not_found:
            return False

    def _account(self) -> str:
        if self._client.account_id is None:
            names = [str(each.name).removeprefix("accounts/") for each in self._client.accounts.list()]
            if len(names) != 1:
                raise ConfigError(
                    f"the key has {len(names)} accounts at Fireworks ({', '.join(names)}). Put the name of one into "
                    f"the environment variable {ACCOUNT}."
                )
            self._client.account_id = names[0]
        return self._client.account_id

    def _ids(self, marker: str) -> Iterator[str]:
        """Yield the names of a job's first try, its second one ... of which all before the last have failed."""
        return chain([_id(marker)], (f"{_id(marker)}-{number}" for number in count(2)))


def _id(marker: str) -> str:
    return marker.replace("_", "-")


def _status(job: Any) -> str:
    return _STATES.get(str(job.state).removeprefix("JOB_STATE_"), "running")


def _parsed(model: str) -> dict[str, Any]:
    """Return account, model and deployment (or None) of a model's name.

    Raises:
        ConfigError: it is no name of a model at Fireworks.
    """
    match = _MODEL.fullmatch(model)
    if match is None:
        raise ConfigError(
            f"model {model}: a model at Fireworks is named accounts/ACCOUNT/models/MODEL, or with the deployment that "
            "serves it, accounts/ACCOUNT/models/MODEL#accounts/ACCOUNT/deployments/DEPLOYMENT."
        )
    return match.groupdict()


def _chosen(job: TrainJob, training: Training) -> dict[str, Any]:
    """Return the settings of a job as the service names them; it has a schedule of its own after the warm-up."""
    accumulation = training.gradient_accumulation
    steps = math.ceil(job.num_examples / (training.batch_size * accumulation)) * training.num_epochs
    return {
        "epochs": training.num_epochs,
        "learning_rate": training.learning_rate,
        "learning_rate_warmup_steps": round(training.warmup_ratio * steps),
        "lora_rank": training.lora.rank,
        "batch_size_samples": training.batch_size,
        "gradient_accumulation_steps": accumulation,
        "optimizer_weight_decay": training.weight_decay,
    }
