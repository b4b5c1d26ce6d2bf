"""A trainer that never trains twice: finetuned agents are kept by what they were made from."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from maft.config import TrainConfig, identity
from maft.files import appearing_whole
from maft.models.adapters import digest, model
from maft.trainers.base import Trainer, TrainJob, TrainProgress


class CachedTrainer(Trainer):
    """Looks every job up in a folder, and gives only the others to another trainer.

    Two jobs are the same if they have the same examples, settings, starting weights and seed.
    """

    def __init__(self, trainer: Trainer, home: Path) -> None:
        self.trainer = trainer
        self.home = home

    @contextmanager
    def open(self) -> Iterator[Trainer]:
        """Open the other trainer."""
        with self.trainer.open() as trainer:
            yield CachedTrainer(trainer, self.home)

    def train(
        self, jobs: Sequence[TrainJob], settings: TrainConfig, on_progress: Callable[[TrainProgress], None]
    ) -> None:
        """Make the output folder of each job; one with `keep_optimizer` depends on earlier ones and is always done."""
        places = {job.agent: self.home / key(job, settings) for job in jobs}
        owed = [job for job in jobs if job.keep_optimizer or not places[job.agent].exists()]
        for job in jobs:
            if job not in owed:
                _link(places[job.agent], job.output)
                on_progress(TrainProgress(agent=job.agent, step=1, num_steps=1, loss=None, tokens=0))
        try:
            if owed:
                self.trainer.train(owed, settings, on_progress)
        finally:
            for job in owed:
                if job.output.exists() and not job.keep_optimizer and not places[job.agent].exists():
                    _link(job.output, places[job.agent])


def key(job: TrainJob, settings: TrainConfig) -> str:
    """Return what a finetuned agent depends on, as a digest."""
    start = digest(job.init_adapter) if job.init_adapter else ""
    chosen = json.dumps(identity(job.training(settings)), sort_keys=True)
    parts = [job.examples.read_text(encoding="utf-8"), chosen, model(job.base_model), start, str(job.seed)]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _link(source: Path, target: Path) -> None:
    """Give the files of a finished folder a second name; they are never changed."""
    with appearing_whole(target) as folder:
        shutil.copytree(source, folder, copy_function=_hard_link, dirs_exist_ok=True)


def _hard_link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
