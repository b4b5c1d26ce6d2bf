"""Finetuning through Tinker's API, by the package `tinker`: forward, backward and optimiser steps on its GPUs.

The loop runs here, a thread for each agent. After every `SAVE_STEPS` steps, and when it is stopped, the service keeps
weights and optimiser state, and a small file beside the agent's folder says under which path; the next start goes on
from there. Only a kill (or a failure of the service) loses steps, fewer than `SAVE_STEPS` of each agent, which are paid
again. Money is set aside before a step and booked after it.

Written against the client and the API's documentation; not yet run against the service.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from maft import config as config_
from maft import files, seeds
from maft.config import HOSTED, OpenAiConfig, TrainConfig, Training
from maft.errors import ConfigError, DataError, MaftError, StageFailed
from maft.hosted import service as hosted
from maft.hosted.service import Spending
from maft.hosted.trainer import keep, note_of
from maft.records import Example, Record
from maft.samplers.chat import Chat
from maft.trainers.base import Trainer, TrainJob, TrainProgress
from maft.trainers.dialogue_tokens import IGNORED, DialogueTokens, tokenize

log = logging.getLogger("maft")

SAMPLED_AT = "/oai/api/v1"
"""Where the service has OpenAI's API, below the address of its own."""
SAVE_STEPS = 20
STATE, SAMPLER = "/weights/", "/sampler_weights/"
"""Parts of the paths of one set of weights: to train on, with the optimiser's state, and to sample from."""


class Reached(Record):
    """How far the training of one agent is at the service."""

    marker: str
    """What the training depends on, as a digest."""
    state: str
    """Path of weights and optimiser state."""
    step: int
    tokens: int


class Row(NamedTuple):
    """One example as tokens."""

    tokens: DialogueTokens
    weight: float


class TinkerTrainer(Trainer):
    """Adapters on the service's GPUs; `train.lora.rank` holds, its alpha and layers are the service's."""

    def __init__(self, settings: OpenAiConfig, folder: Path) -> None:
        """Send nothing yet; the money spent is kept in `folder`."""
        self.settings = settings
        self._folder = folder

    def train(
        self, jobs: Sequence[TrainJob], settings: TrainConfig, on_progress: Callable[[TrainProgress], None]
    ) -> None:
        """Make the output folder of each job, with the path of its weights at the service in hosted.json.

        Raises:
            ConfigError: no key, or one that is not accepted.
            DataError: an example that the model's chat template cannot render, or an unknown model.
            StageFailed: the service failed, or the spending limit is reached; finished steps are kept.
        """
        import tinker

        key, address = hosted.checked_key(self.settings), self.settings.base_url or HOSTED["tinker"].base_url or ""
        if not key.startswith(("tml-", "eyJ")):
            raise ConfigError(
                f"the key in {self.settings.api_key_env} does not begin with tml-, as those of Tinker do; the client "
                "sends no other. For a server at home any such text will do."
            )
        logging.getLogger("tinker").setLevel(logging.ERROR)  # else it warns of every answer that is not ready yet
        lock, stop = threading.Lock(), threading.Event()

        def report(progress: TrainProgress) -> None:
            with lock:
                on_progress(progress)

        service = _result(lambda: tinker.ServiceClient(base_url=address.removesuffix(SAMPLED_AT), api_key=key), self)
        spending = Spending(self.settings, self._folder)
        status = "errored"
        try:
            with ThreadPoolExecutor(len(jobs)) as threads:
                runs = [_Run(self, service, spending, job, job.training(settings), report, stop) for job in jobs]
                futures = [threads.submit(run.train) for run in runs]
                try:
                    ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
                finally:
                    stop.set()
            if error := next((error for future in ended if (error := future.exception())), None):
                raise error
            status = "success"
        finally:
            try:
                service.close(status).result(timeout=self.settings.timeout)
            except Exception as error:  # nothing depends on it, and it must not hide why training ended
                log.warning("The session at Tinker was not closed: %s", hosted.said(error, self.settings))


class _Run:
    """The training of one agent."""

    def __init__(
        self,
        trainer: TinkerTrainer,
        service: Any,
        spending: Spending,
        job: TrainJob,
        training: Training,
        report: Callable[[TrainProgress], None],
        stop: threading.Event,
    ) -> None:
        self.trainer, self.service, self.spending = trainer, service, spending
        self.job, self.training, self.report, self.stop = job, training, report, stop

    def train(self) -> None:
        """Train from the last kept step to the end, and keep the agent; if asked to stop, keep the last step."""
        job, training = self.job, self.training
        examples = files.read_records(job.examples, Example)
        marker, reached = self._marker(), self._reached()
        client = self._client(reached)
        rows = self._rows(client, examples)
        steps = list(_steps(rows, training, job.seed))
        step, tokens, state = (reached.step, reached.tokens, reached.state) if reached else (0, 0, "")
        kept = step

        def keep_step() -> None:
            nonlocal state, kept
            if step > kept:
                state, kept = self._saved(client, f"{marker}-{step}"), step
                note = Reached(marker=marker, state=state, step=step, tokens=tokens)
                files.write_text(note_of(job.output), note.to_json() + "\n")

        while step < len(steps) and not self.stop.is_set():
            rate = rate_at(training, step, len(steps))
            cost = self.spending.training_cost(sum(len(row.tokens.input_ids) for row in steps[step]))
            try:
                self.spending.reserve(cost, f"the next step of {job.agent}")
            except StageFailed:
                keep_step()
                raise
            try:
                loss = self._step(client, steps[step], rate)
            finally:
                self.spending.settle(cost, cost)
            step, tokens = step + 1, tokens + sum(len(row.tokens.input_ids) for row in steps[step])
            self.report(
                TrainProgress(
                    agent=job.agent, step=step, num_steps=len(steps), loss=loss, tokens=tokens, learning_rate=rate
                )
            )
            if step % SAVE_STEPS == 0:
                keep_step()
        keep_step()
        if step == len(steps):
            if reached is not None and reached.step == step:  # kept by an earlier client, whose paths differ
                state = self._saved(client, f"{marker}-{step}")
            name = state.rpartition("/")[2]  # the same as of the state, so that the next iteration finds it
            path = self._call(lambda: client.save_weights_for_sampler(name)).path
            content = {"model": path, "base_model": job.base_model, "state": state}
            keep(job, content, tokens, len(examples) - len(rows))

    def _saved(self, client: Any, name: str) -> str:
        """Return the path of weights and optimiser state, kept under this name."""
        return str(self._call(lambda: client.save_state(name, overwrite=True)).path)

    def _step(self, client: Any, rows: Sequence[Row], rate: float) -> float | None:
        """Make one step of the optimiser, and return the mean loss."""
        from tinker import AdamParams

        whole = sum(row.weight * row.tokens.num_completion_tokens for row in rows)
        adam = AdamParams(
            learning_rate=rate,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=self.training.weight_decay,
            grad_clip_norm=self.training.max_grad_norm,
        )
        made = client.forward_backward([_datum(row, whole) for row in rows], "cross_entropy")
        stepped = client.optim_step(adam)  # sent before the answer to the first, as the service wants it
        output = self._call(lambda: made)
        self._call(lambda: stepped)
        loss = output.metrics.get("loss:sum")
        return None if loss is None else float(loss)

    def _client(self, reached: Reached | None) -> Any:
        """Return a training client: where the last start stopped, from earlier weights, or a new adapter."""
        job, named = self.job, {"user_metadata": {"maft": self._marker()}}
        if reached is not None:
            state = reached.state
            return self._call(lambda: self.service.create_training_client_from_state_with_optimizer(state, **named))
        if job.base_model.startswith("tinker://"):
            path = job.base_model.replace(SAMPLER, STATE)
            return self._call(lambda: self.service.create_training_client_from_state(path, **named))
        rank, seed = self.training.lora.rank, job.seed % 2**31
        create = self.service.create_lora_training_client
        return self._call(lambda: create(job.base_model, rank=rank, seed=seed, train_unembed=False, **named))

    def _rows(self, client: Any, examples: Sequence[Example]) -> list[Row]:
        """Return the examples as tokens of the model's own tokenizer; too long ones are dropped.

        Raises:
            DataError: none is left.
        """
        data = self._call(client.get_info).model_data
        chat = Chat(data.tokenizer_id or str(data.model_name).partition(":")[0])
        turns, longest = self.training.loss_turns, self.training.max_length
        rows = [Row(tokenize(chat.template, each.messages, turns, each.token_ids), each.weight) for each in examples]
        kept = [row for row in rows if len(row.tokens.input_ids) <= longest]
        if len(kept) < len(rows):
            log.warning(
                "%s: %d of %d examples are longer than train.max_length = %d tokens and are left out.",
                *(self.job.agent, len(rows) - len(kept), len(rows), longest),
            )
        if not kept:
            raise DataError(
                f"{self.job.agent} has no examples of at most train.max_length = {longest} tokens ({len(rows)} in "
                f"{self.job.examples})."
            )
        return kept

    def _reached(self) -> Reached | None:
        note = note_of(self.job.output)
        known = Reached.from_json(note.read_text(encoding="utf-8")) if note.exists() else None
        return known if known is not None and known.marker == self._marker() else None

    def _marker(self) -> str:
        job = self.job
        content = {"model": job.base_model, "seed": job.seed, "set": job.examples.read_text(encoding="utf-8")}
        content |= {"train": self.training.model_dump(mode="json")}
        return f"maft-{config_.short_digest(content)}-{job.iteration}-{job.agent}"

    def _call(self, send: Callable[[], Any]) -> Any:
        """Return the result of a future of the client, or of a call of it."""
        return _result(send, self.trainer)


def _result(send: Callable[[], Any], trainer: TinkerTrainer) -> Any:
    """Return what a call of the client returns, or the result of its future.

    Raises:
        MaftError: the service refused it, or the client gave up.
    """
    import tinker

    settings = trainer.settings
    try:
        answer = send()
        return answer.result() if hasattr(answer, "result") else answer
    except (tinker.TinkerError, ValueError) as error:  # the client raises ValueError where trying again cannot help
        refused: MaftError | None = hosted.refusal(error, settings)
        where = settings.base_url or "Tinker"
        raise refused or StageFailed(
            f"{where}: {hosted.said(error, settings)} Finished steps are kept; the same command continues."
        ) from None


def _datum(row: Row, whole: float) -> Any:
    """Return an example with weights whose sum over a step is 1, given their sum: the step's loss is a mean."""
    from tinker import Datum, ModelInput

    ids, labels = row.tokens
    weights = [row.weight / whole if label != IGNORED else 0.0 for label in labels[1:]]
    inputs: Any = {"target_tokens": ids[1:], "weights": weights}  # the client makes arrays of them
    return Datum(model_input=ModelInput.from_ints(ids[:-1]), loss_fn_inputs=inputs)


def _steps(rows: Sequence[Row], training: Training, seed: int) -> Iterator[list[Row]]:
    """Yield the examples of each step, in a new order every epoch."""
    size = training.batch_size * training.gradient_accumulation
    for epoch in range(training.num_epochs):
        order = list(range(len(rows)))
        seeds.rng(seed, "order", epoch).shuffle(order)
        for start in range(0, len(order), size):
            yield [rows[place] for place in order[start : start + size]]


def rate_at(training: Training, step: int, num_steps: int) -> float:
    """Return the learning rate of a step, from 0.

    >>> training = Training(learning_rate=1.0, lr_schedule="linear", warmup_ratio=0.25)
    >>> [round(rate_at(training, step, 4), 2) for step in range(4)]
    [0.5, 1.0, 0.67, 0.33]
    """
    warm = min(math.ceil(training.warmup_ratio * num_steps), num_steps - 1)
    if step < warm:
        return training.learning_rate * (step + 1) / (warm + 1)
    done = (step - warm) / (num_steps - warm)
    factor = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}.get(training.lr_schedule, 1.0)
    return training.learning_rate * factor
