"""Finetunes LoRA adapters with TRL and PEFT in a child process, whose memory is gone when it ends.

The child (`maft.trainers.sft_worker`) trains all jobs of one call in turn, with the base model loaded once. It reports
on its standard output, one JSON object a line, and ends itself when its standard input closes, that is when we die.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import maft
from maft.config import TrainConfig
from maft.errors import DataError, MissingExtra, StageFailed
from maft.trainers.base import TrainJob, TrainProgress
from maft.trainers.folder import partial

WORKER = (sys.executable, "-m", "maft.trainers.sft_worker")
LOG_LINES = 15

_CHILD_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    # With several visible GPUs transformers would wrap the model in DataParallel, which TRL refuses.
    "CUDA_VISIBLE_DEVICES": "0",
}


class SftTrainer:
    """Finetunes one LoRA adapter for each job; runs on the best device there is: CUDA, MPS or the CPU."""

    def __init__(
        self,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        worker: Sequence[str] = WORKER,
        num_threads: int | None = None,
    ) -> None:
        self.dtype = dtype
        """Of the base model; adapters are always trained and kept in float32."""
        self.worker = worker
        """Command to which the jobs file is added; another one is for tests."""
        self.num_threads = num_threads
        """CPU threads; None is one for each core."""

    def train(
        self, jobs: Sequence[TrainJob], settings: TrainConfig, on_progress: Callable[[TrainProgress], None]
    ) -> None:
        """Make the output folder of each job.

        Raises:
            MissingExtra: TRL, PEFT or what they need is not installed.
            DataError: the model, an adapter or the examples cannot be trained on.
            StageFailed: the worker ended too early; the folders of the jobs finished before it are there.
        """
        if self.worker is WORKER and not all(map(find_spec, ("torch", "trl", "peft", "datasets"))):
            raise MissingExtra("engine.trainer=sft", "hf")
        scratch = Path(tempfile.mkdtemp(prefix="maft-train-"))
        request = {
            "dtype": self.dtype,
            "settings": settings.model_dump(mode="json"),
            "jobs": [job.model_dump(mode="json") for job in jobs],
        }
        (scratch / "jobs.json").write_text(json.dumps(request, indent=2), encoding="utf-8")
        try:
            command, env = [*self.worker, str(scratch / "jobs.json")], _env(self.num_threads)
            with _process(command, scratch / "worker.log", env) as process:
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
            raise StageFailed(_failure(jobs, process.returncode, scratch / "worker.log"))
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
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def _env(num_threads: int | None) -> dict[str, str]:
    """Return the environment of the worker: ours, with our own package to be found, over the defaults."""
    paths = [str(Path(maft.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = {"OMP_NUM_THREADS": str(num_threads)} if num_threads else {}
    return _CHILD_ENV | os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | threads


def _follow(process: "subprocess.Popen[str]", on_progress: Callable[[TrainProgress], None]) -> dict[str, Any] | None:
    """Pass the worker's progress on until it closes its output; return its complaint, if it made one."""
    assert process.stdout is not None
    complaint = None
    for line in process.stdout:
        event = json.loads(line)
        if "progress" in event:
            on_progress(TrainProgress.model_validate(event["progress"]))
        complaint = event.get("error", complaint)
    return complaint


def _failure(jobs: Sequence[TrainJob], code: int, log: Path) -> str:
    finished = [job.agent for job in jobs if job.output.is_dir()]
    failed = next((job.agent for job in jobs if not job.output.is_dir()), "the last agent")
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    kept = f"Finished and kept: {', '.join(finished)}." if finished else "None was finished before it."
    why = f"ended by {signal.Signals(-code).name}, perhaps out of memory" if code < 0 else f"exit code {code}"
    return "\n  ".join([f"training {failed} failed ({why}). {kept} The whole log is {log}; it ends:", *tail])
