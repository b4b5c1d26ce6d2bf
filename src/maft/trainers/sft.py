"""Finetunes agents with TRL and PEFT in a child process, whose memory is gone when it ends.

The child (`maft.trainers.sft_worker`) trains all jobs of one call in turn, with the base model loaded once. It reports
on its standard output, one JSON object a line, and ends itself when its standard input closes, that is when we die.
Several processes are started by `accelerate launch`, and do the same. Where they divide the weights among them, each
job has a start of its own, since the libraries leave divided weights divided.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from maft.config import EngineConfig, TrainConfig
from maft.errors import DataError, StageFailed
from maft.files import partial
from maft.trainers import launch
from maft.trainers.base import TrainJob, TrainProgress

LOG_LINES = 15
LESS_MEMORY = (
    "The same run goes on with train.gradient_checkpointing=true, or on several GPUs with engine.num_train_processes "
    "and engine.train_sharding. A new one (name=...) may have a smaller train.batch_size and as many times more "
    "train.gradient_accumulation, a smaller train.max_length, or train.method=qlora."
)
SECONDS_TO_END = 30
"""What processes get to end by themselves, before nobody waits for them any longer."""


class SftTrainer:
    """Finetunes one agent for each job; runs on the best device there is: CUDA, MPS or the CPU."""

    def __init__(self, engine: EngineConfig | None = None, worker: Sequence[str] | None = None) -> None:
        self.engine = engine or EngineConfig()
        """Its dtype is that of the base model; adapters are always trained and kept in float32."""
        self.worker = worker
        """Command to which the jobs file is added, in place of the real one; for tests."""

    def train(
        self, jobs: Sequence[TrainJob], settings: TrainConfig, on_progress: Callable[[TrainProgress], None]
    ) -> None:
        """Make the output folder of each job.

        Raises:
            DataError: the model, an adapter or the examples cannot be trained on.
            StageFailed: the worker ended too early; the folders of the jobs finished before it are there.
        """
        divided = self.engine.train_sharding != "none"
        for together in [[job] for job in jobs] if divided else [jobs]:
            self._train_in_one_start(together, settings, on_progress)

    def _train_in_one_start(
        self,
        jobs: Sequence[TrainJob],
        settings: TrainConfig,
        on_progress: Callable[[TrainProgress], None],
    ) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="maft-train-"))
        request = {
            "dtype": self.engine.dtype,
            "engine": self.engine.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
            "jobs": [job.model_dump(mode="json") for job in jobs],
        }
        (scratch / "jobs.json").write_text(json.dumps(request, indent=2), encoding="utf-8")
        command = [*self.worker, str(scratch / "jobs.json")] if self.worker else launch.command(self.engine, scratch)
        try:
            with _process(command, scratch / "worker.log", launch.environment(self.engine)) as process:
                complaint = _follow(process, on_progress)
                process.wait()
        except BaseException:  # an interrupt, or a fault of ours: nobody will read the log
            shutil.rmtree(scratch)
            raise
        finally:
            for job in jobs:
                shutil.rmtree(partial(job.output), ignore_errors=True)
        if complaint is not None and complaint["kind"] == "DataError":
            shutil.rmtree(scratch)
            raise DataError(complaint["message"])
        if process.returncode or not all(job.output.is_dir() for job in jobs):
            raise StageFailed(_failure(jobs, process.returncode, complaint, scratch / "worker.log"))
        shutil.rmtree(scratch)


@contextmanager
def _process(command: Sequence[str], log: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start the worker; whatever happens in the block, it does not outlive it."""
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            env=env,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.kill()
        process.stdin.close()  # which ends the workers that a launcher has started
        process.wait()
        _wait_for_the_end(process.stdout)
        process.stdout.close()


def _wait_for_the_end(pipe: IO[str]) -> None:
    """Wait until nobody can write into a pipe: until all who hold its other end are dead."""
    end = time.monotonic() + SECONDS_TO_END
    while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
        if not os.read(pipe.fileno(), 2**16):
            return


def _follow(process: "subprocess.Popen[str]", on_progress: Callable[[TrainProgress], None]) -> dict[str, Any] | None:
    """Pass the worker's progress on until it closes its output; return its complaint, if it made one."""
    assert process.stdout is not None
    complaint = None
    for line in process.stdout:
        if not line.startswith("{"):
            continue  # a launcher's own words
        event = json.loads(line)
        if "progress" in event:
            on_progress(TrainProgress.model_validate(event["progress"]))
        complaint = event.get("error", complaint)
    return complaint


def _failure(jobs: Sequence[TrainJob], code: int, complaint: Mapping[str, Any] | None, log: Path) -> str:
    finished = [job.agent for job in jobs if job.output.is_dir()]
    failed = next((job.agent for job in jobs if not job.output.is_dir()), "the last agent")
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    kept = f"Finished and kept: {', '.join(finished)}." if finished else "None was finished before it."
    why = f"ended by {signal.Signals(-code).name}, perhaps out of memory" if code < 0 else f"exit code {code}"
    if complaint is not None:
        return f"training {failed} ran out of memory: {complaint['message']}. {kept} {LESS_MEMORY}"
    return "\n  ".join([f"training {failed} failed ({why}). {kept} The whole log is {log}; it ends:", *tail])
