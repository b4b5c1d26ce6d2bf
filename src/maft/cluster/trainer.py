"""Finetunings on the nodes of a Ray cluster, one job at a time on each worker.

The longest go first, so that none of them is left over at the end. A job works in a folder of its own, which is renamed
when it is finished, so that an attempt that was given up and is still running does no harm.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from maft.cluster.pool import Pool, on_worker, reported
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
            self._place.publish(job.examples, job.init_adapter, job.base_model)
        pool = Pool(
            self._config.cluster,
            self._config.engine.num_train_processes,
            lambda needs: partial(_Training, partial(self._trainer, on_worker(self._config, needs)), self._place),
            ADVICE,
        )

        def hear(number: int, steps: list[TrainProgress] | None) -> None:
            if steps is None:
                self._place.receive(jobs[number].output)
            for step in steps or ():
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

    def __call__(self, task: tuple[TrainJob, TrainConfig]) -> Iterator[list[TrainProgress] | None]:
        job, settings = task
        with (
            tempfile.TemporaryDirectory(prefix="maft-examples-") as scratch,
            self.place.delivering(job.output) as output,
        ):
            local = job.model_copy(
                update={
                    "examples": self.place.fetch_file(job.examples, Path(scratch)),
                    "base_model": self.place.weights(job.base_model),
                    "init_adapter": job.init_adapter and self.place.fetch(job.init_adapter),
                    "output": output,
                }
            )
            yield from reported(partial(self.trainer.train, [local], settings))
        yield None
