"""A trainer that learns nothing: for demos, tests and bug reports. It needs no model and no torch."""

import hashlib
import json
from collections.abc import Callable, Sequence

from maft.config import TrainConfig
from maft.files import appearing_whole
from maft.trainers.base import Trainer, TrainJob, TrainProgress


class NullTrainer(Trainer):
    """Writes, in place of each adapter, a small file that says what would have been trained on what."""

    def train(
        self, jobs: Sequence[TrainJob], settings: TrainConfig, on_progress: Callable[[TrainProgress], None]
    ) -> None:
        """Make the output folder of each job, with an adapter.json that depends on the job's content only."""
        for job in jobs:
            with appearing_whole(job.output) as folder:
                (folder / "adapter.json").write_text(json.dumps(_summary(job), indent=2) + "\n", encoding="utf-8")
            on_progress(TrainProgress(agent=job.agent, step=1, num_steps=1, loss=None, tokens=0))


def _summary(job: TrainJob) -> dict[str, str | int | None]:
    return {
        "agent": job.agent,
        "iteration": job.iteration,
        "examples_sha256": hashlib.sha256(job.examples.read_bytes()).hexdigest(),
        "init_adapter": job.init_adapter.name if job.init_adapter else None,  # no path: equal bytes in any place
        "seed": job.seed,
    }
