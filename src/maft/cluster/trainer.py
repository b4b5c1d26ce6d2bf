"""Finetunings side by side on the nodes of a Ray cluster, one job at a time on each worker.

The longest go first, so that no long one is left over at the end. A job is done in a folder of its own and gets its
name when it is finished, so that an attempt which was given up, and lives on for a moment, is in nobody's way.
"""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from maft.cluster.pool import Pool, on_worker
from maft.cluster.storage import ATTEMPT, Place
from maft.config import RunConfig, TrainConfig
from maft.trainers.base import Trainer, TrainJob, TrainProgress

ADVICE = (
    "If memory is short: train.gradient_checkpointing=true, or fewer workers on a node (more cluster.cpus_per_worker, "
    "or cluster.memory_gb_per_worker set)."
)


class RayTrainer(Trainer):
    """Gives each job to a worker of the cluster."""

    def __init__(self, config: RunConfig, trainer: Callable[[RunConfig], Trainer]) -> None:
        """Use workers that make their trainer by `trainer`, of a config that fits what a worker has."""
        self._config, self._trainer = config, trainer
        self._place = Place.of(config)

    def train(
        self, jobs: Sequence[TrainJob], settings: TrainConfig, on_progress: Callable[[TrainProgress], None]
    ) -> None:
        """Make the output folder of each job; see `maft.trainers.base.Trainer`."""
        jobs = [absolute(job) for job in sorted(jobs, key=lambda job: (-job.work(settings), job.agent))]
        for job in jobs:
            for path in (job.examples, job.init_adapter, Path(job.base_model)):
                if path is not None and path.is_absolute():
                    self._place.publish(path)
        pool = Pool(
            self._config.cluster,
            self._config.engine.num_train_processes,
            lambda needs: partial(_Training, partial(self._trainer, on_worker(self._config, needs)), self._place),
            ADVICE,
        )

        def hear(number: int, step: TrainProgress | None) -> None:
            if step is None:
                self._place.receive(jobs[number].output)
            else:
                on_progress(step)

        try:
            pool.run([(job, settings) for job in jobs], hear)
        finally:
            pool.close()
            for home in {job.output.parent for job in jobs}:
                for left in home.glob(f".*{ATTEMPT}"):
                    shutil.rmtree(left, ignore_errors=True)


def absolute(job: TrainJob) -> TrainJob:
    """Return a job whose paths mean the same in any working folder."""
    paths = {"examples": job.examples, "output": job.output, "init_adapter": job.init_adapter}
    return job.model_copy(update={name: path and path.absolute() for name, path in paths.items()})


class _Training:
    """The work of a worker: a job to its progress, and None once it is delivered."""

    def __init__(self, trainer: Callable[[], Trainer], place: Place) -> None:
        self.trainer, self.place = trainer(), place

    def __call__(self, task: tuple[TrainJob, TrainConfig]) -> Iterator[TrainProgress | None]:
        job, settings = task
        with tempfile.TemporaryDirectory(prefix="maft-examples-") as scratch, self.place.delivering(job.output) as made:
            local = job.model_copy(
                update={
                    "examples": self.place.fetch_file(job.examples, Path(scratch)),
                    "base_model": self._folder(job.base_model),
                    "init_adapter": job.init_adapter and self.place.fetch(job.init_adapter),
                    "output": made,
                }
            )
            yield from said_by(lambda say: self.trainer.train([local], settings, say))
        yield None

    def _folder(self, model: str) -> str:
        return str(self.place.fetch(Path(model))) if Path(model).is_absolute() else model


def said_by(call: Callable[[Callable[[TrainProgress], None]], None]) -> Iterator[TrainProgress]:
    """Make the call, and yield what it reports while it goes."""
    told: SimpleQueue[TrainProgress | BaseException | None] = SimpleQueue()

    def run() -> None:
        try:
            call(told.put)
            told.put(None)
        except BaseException as error:
            told.put(error)

    threading.Thread(target=run, daemon=True).start()
    while (said := told.get()) is not None:
        if isinstance(said, BaseException):
            raise said
        yield said
