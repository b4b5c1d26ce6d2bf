"""One agent's finetuning before and after the training itself: examples to tokens, and its folder."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import maft
from maft import files, models
from maft.config import TrainConfig, Training
from maft.files import appearing_whole
from maft.models.probe import Probe, of_training
from maft.records import Example, Message
from maft.trainers import cards, objectives
from maft.trainers.base import TrainJob
from maft.trainers.base_model import BaseModel, is_first, num_processes
from maft.trainers.dialogue_tokens import DialogueTokens, tokenize
from maft.trainers.objectives import Objective, Unit

log = logging.getLogger("maft")

LIBRARIES = ("torch", "transformers", "trl", "peft")


class Learner(NamedTuple):
    """One agent's training: a job with its examples as tokens."""

    job: TrainJob
    training: Training
    objective: Objective
    units: Sequence[Unit]
    """The examples that are not too long."""
    num_examples: int = 0
    """Examples of the job, with those that are too long."""
    started: float = 0.0
    optimizer_state: Mapping[str, Any] | None = None
    """Moments to continue from."""

    @property
    def rows(self) -> list[DialogueTokens]:
        """All rows of all examples."""
        return [row for unit in self.units for row in unit.rows]


def prepare(job: TrainJob, settings: TrainConfig, base: BaseModel) -> Learner:
    """Read and tokenise the examples of a job.

    Raises:
        DataError: they cannot be read, or the objective or the chat template cannot work with them.
    """
    started = time.monotonic()
    training = job.training(settings)
    objective = objectives.make(training.objective, training)

    def tokens(messages: Sequence[Message], sampled: Sequence[Sequence[int] | None] | None) -> DialogueTokens:
        turns = training.loss_turns if objective.examples == "agreeing" else "last"  # the one that is judged
        return tokenize(base.template, messages, turns, sampled)

    units = [Unit(example, objective.rows(example, tokens)) for example in files.read_records(job.examples, Example)]
    kept = [unit for unit in units if all(len(row.input_ids) <= training.max_length for row in unit.rows)]
    if len(kept) < len(units):
        log.warning(
            "%s: %d of %d examples are longer than train.max_length = %d tokens and are left out.",
            *(job.agent, len(units) - len(kept), len(units), training.max_length),
        )
    if objective.mismatched:
        kept = objectives.mismatch(kept, training.max_length)
    return Learner(job, training, objective, kept, len(units), started)


def write(
    learner: Learner,
    base: BaseModel,
    losses: Sequence[float],
    save: Callable[[Path], object],
    together: int = 1,
    probe: Probe | None = None,
) -> None:
    """Make the agent's folder: it appears whole."""
    if not is_first():
        return
    job, training = learner.job, learner.training
    summary = _summary(learner, base, losses) | {
        "together": together,
        "seconds": round(time.monotonic() - learner.started, 1),
    }
    if probe is not None:
        summary["probe"] = probe.model_dump()
    public = models.public_name(job.base_model)
    card = cards.card(cards.Finetuned(job.agent, job.role, job.iteration, public, training, summary))
    with appearing_whole(job.output) as folder:
        save(folder)
        (folder / "training.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")


def write_untrained(learner: Learner, base: BaseModel) -> None:
    """Make the folder of an agent without examples: the adapter that it begins with, or a fresh one."""
    start = learner.job.init_adapter
    if start is not None and base.method != "full":
        write(learner, base, [], lambda folder: shutil.copytree(start, folder, dirs_exist_ok=True))
        return
    model = base.trainable(learner.job, learner.training)
    probed = of_training(model, base.tokenizer) if base.method == "lora" else None
    write(learner, base, [], lambda folder: base.save(model, folder), probe=probed)
    base.restore(model)


def _summary(learner: Learner, base: BaseModel, losses: Sequence[float]) -> dict[str, Any]:
    """Return what training.json says."""
    job, rows, epochs = learner.job, learner.rows, learner.training.num_epochs
    return {
        "agent": job.agent,
        "role": job.role,
        "iteration": job.iteration,
        "seed": job.seed,
        "init_adapter": job.init_adapter and job.init_adapter.name,
        "method": base.method,
        "objective": learner.training.objective,
        "trained": bool(rows),
        "num_examples": learner.num_examples,
        "num_dropped_too_long": learner.num_examples - len(learner.units),
        "steps": len(losses),
        "tokens": epochs * sum(len(row.input_ids) for row in rows),
        "completion_tokens": epochs * sum(row.num_completion_tokens for row in rows),
        "losses": list(losses),
        "dtype": base.dtype,
        "num_processes": num_processes(),
        "versions": {"maft": maft.__version__}
        | {name: metadata.version(name) for name in LIBRARIES if find_spec(name) is not None},
    }
