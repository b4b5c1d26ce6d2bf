"""Finetunes agents with torch, PEFT and TRL in child processes, whose memory is gone when they end.

A child (`maft.trainers.sft_worker`) trains the jobs of one call, and holds the base model for the next one. It reports
on its standard output, one JSON object a line, and ends itself when its standard input closes, that is when we die. On
a CPU several children work side by side, each with its share of the jobs and of the threads: small matrix products
gain little from a second thread. Several processes that train one agent together are started by `accelerate launch`,
for each call anew; where they divide the weights, for each job, since the libraries leave divided weights divided.
"""

import json
import logging
import os
import queue
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from maft import files
from maft.config import EngineConfig, TrainConfig
from maft.errors import DataError, StageFailed
from maft.files import partial
from maft.trainers import launch
from maft.trainers.base import Trainer, TrainJob, TrainProgress

LOG_LINES = 15
LESS_MEMORY = (
    "Continue the same run with train.gradient_checkpointing=true, or on several GPUs with engine.num_train_processes "
    "and engine.train_sharding. A new one (name=...) may have a smaller train.batch_size and as many times more "
    "train.gradient_accumulation, a smaller train.max_length, or train.method=qlora."
)
SECONDS_TO_END = 30
"""What processes get to end by themselves, before nobody waits for them any longer."""

OnProgress = Callable[[TrainProgress], None]


log = logging.getLogger(__name__)


class SftTrainer(Trainer):
    """Finetunes one agent for each job; runs on the best device there is: CUDA, MPS or the CPU."""

    def __init__(self, engine: EngineConfig | None = None, worker: Sequence[str] | None = None) -> None:
        self.engine = engine or EngineConfig()
        """Its dtype is that of the base model; adapters are always trained and kept in float32."""
        self.worker = worker
        """Command to which the jobs file is added, in place of the real one; for tests."""

    def train(self, jobs: Sequence[TrainJob], settings: TrainConfig, on_progress: OnProgress) -> None:
        """Make the output folder of each job.

        Raises:
            DataError: the model, an adapter or the examples cannot be trained on.
            StageFailed: a worker ended too early; the folders of the jobs finished before it are there.
        """
        with self.open() as session:
            session.train(jobs, settings, on_progress)

    @contextmanager
    def open(self) -> Iterator[Trainer]:
        """Yield a trainer whose workers live until the block ends; one that fails is started again by the next call."""
        session = _Session(self.engine, self.worker)
        try:
            yield session
        finally:
            session.close()


class _Session(Trainer):
    """The workers of one session."""

    def __init__(self, engine: EngineConfig, command: Sequence[str] | None) -> None:
        self.engine, self.command = engine, command
        self.workers: list[_Worker] = []
        self.home: dict[str, int] = {}
        """The worker that holds an agent's optimiser state."""

    def train(self, jobs: Sequence[TrainJob], settings: TrainConfig, on_progress: OnProgress) -> None:
        if self.engine.num_train_processes > 1:
            for group in [[job] for job in jobs] if self.engine.train_sharding != "none" else [jobs]:
                with closing(_Worker(self.engine, self.command, 1)) as worker:
                    worker.train(group, settings, on_progress)
            return
        number = 1 if self.command else launch.side_by_side(self.engine, jobs, settings)
        while len(self.workers) < number:
            self.workers.append(_Worker(self.engine, self.command, number))
        self._side_by_side(self._shares(jobs, settings), settings, on_progress)

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.close()

    def _shares(self, jobs: Sequence[TrainJob], settings: TrainConfig) -> dict[int, list[TrainJob]]:
        """Divide jobs among the workers, the longest first; who continues an optimiser goes where it is held."""
        shares: dict[int, list[TrainJob]] = {}
        filled = [0] * len(self.workers)
        for job in sorted(jobs, key=lambda job: -job.work(settings)) if len(self.workers) > 1 else jobs:
            number = filled.index(min(filled))
            if job.keep_optimizer:
                number = self.home.setdefault(job.agent, number)
            shares.setdefault(number, []).append(job)
            filled[number] += job.work(settings)
        return shares

    def _side_by_side(
        self, shares: Mapping[int, Sequence[TrainJob]], settings: TrainConfig, on_progress: OnProgress
    ) -> None:
        """Let each worker do its share; one that fails stops no other."""
        events: queue.SimpleQueue[TrainProgress | None] = queue.SimpleQueue()
        with ThreadPoolExecutor(len(shares)) as pool:
            work = [
                pool.submit(self.workers[number].train, jobs, settings, events.put) for number, jobs in shares.items()
            ]
            for share in work:
                share.add_done_callback(lambda _: events.put(None))
            running = len(work)
            try:
                while running:
                    event = events.get()
                    if event is None:
                        running -= 1
                    else:
                        on_progress(event)
            except BaseException:  # an interrupt: without processes the threads end
                self.close()
                raise
        for share in work:
            share.result()


class _Worker:
    """One child process, started at the first call and after a failed one."""

    def __init__(self, engine: EngineConfig, command: Sequence[str] | None, share: int) -> None:
        self.engine, self.command, self.share = engine, command, share
        self.scratch: Path | None = None
        self.process: subprocess.Popen[str] | None = None
        self.num_calls = 0

    def train(self, jobs: Sequence[TrainJob], settings: TrainConfig, on_progress: OnProgress) -> None:
        """Make the output folder of each job; see `SftTrainer.train`."""
        scratch = self.scratch = self.scratch or files.temporary("train")
        self.num_calls += 1
        request = {
            "dtype": self.engine.dtype,
            "engine": self.engine.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
            "jobs": [job.model_dump(mode="json") for job in jobs],
        }
        file = scratch / f"jobs_{self.num_calls}.json"
        file.write_text(json.dumps(request, indent=2), encoding="utf-8")
        try:
            process = self.process = self._told(file)
            finished, complaint = _follow(process, on_progress)
            code = 0 if finished else process.wait()
        except BaseException:  # an interrupt, or a fault of ours: nobody will read the log
            self.close()
            raise
        finally:
            for job in jobs:
                shutil.rmtree(partial(job.output), ignore_errors=True)
        if complaint is None and not code and all(job.output.is_dir() for job in jobs):
            if not finished:
                self.close()
            return
        is_data = complaint is not None and complaint["kind"] == "DataError"
        self.close(keep_log=not is_data)
        if complaint is not None and is_data:
            raise DataError(complaint["message"])
        raise StageFailed(_failure(jobs, code, complaint, scratch / "worker.log"))

    def close(self, *, keep_log: bool = False) -> None:
        """End the process, and what it was given."""
        process, self.process = self.process, None
        scratch, self.scratch = self.scratch, None
        if process is not None:
            assert process.stdin is not None and process.stdout is not None
            process.kill()
            with suppress(OSError):
                process.stdin.close()  # which ends the workers that a launcher has started
            process.wait()
            _wait_for_the_end(process.stdout)
            process.stdout.close()
        if scratch is not None and not keep_log:
            shutil.rmtree(scratch, ignore_errors=True)

    def _told(self, file: Path) -> "subprocess.Popen[str]":
        """Return the process, which has been given a jobs file."""
        if self.process is not None and self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.write(f"{file}\n")
            self.process.stdin.flush()
            return self.process
        command = [*self.command, str(file)] if self.command else launch.command(self.engine, file)
        with (file.parent / "worker.log").open("w", encoding="utf-8") as stderr:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
                env=launch.environment(self.engine, self.share),
            )


def _wait_for_the_end(pipe: IO[str]) -> None:
    """Wait until nobody can write into a pipe: until all who hold its other end are dead."""
    end = time.monotonic() + SECONDS_TO_END
    while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
        if not os.read(pipe.fileno(), 2**16):
            return


def _follow(process: "subprocess.Popen[str]", on_progress: OnProgress) -> tuple[bool, dict[str, Any] | None]:
    """Pass a worker's progress on until it has done its file, or closes its output.

    Returns:
        Whether it has done its file, and its complaint, if it made one.
    """
    assert process.stdout is not None
    complaint = None
    for line in process.stdout:
        if not line.startswith("{"):
            continue  # a launcher's own words
        event = json.loads(line)
        if "progress" in event:
            on_progress(TrainProgress.model_validate(event["progress"]))
        if "warning" in event:
            log.warning("%s", event["warning"])
        if "done" in event:
            return True, None
        complaint = event.get("error", complaint)
    return False, complaint


def _failure(jobs: Sequence[TrainJob], code: int, complaint: Mapping[str, Any] | None, log: Path) -> str:
    finished = [job.agent for job in jobs if job.output.is_dir()]
    failed = next((job.agent for job in jobs if not job.output.is_dir()), "the last agent")
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    kept = f"Finished and kept: {', '.join(finished)}." if finished else "None was finished before it."
    why = f"ended by {signal.Signals(-code).name}, perhaps out of memory" if code < 0 else f"exit code {code}"
    if complaint is not None and complaint["kind"] == "disk":
        free = "Free some space and run the same command again."
        return f"the weights of {failed} could not be written: {complaint['message']}. {kept} {free}"
    if complaint is not None:
        return f"training {failed} ran out of memory: {complaint['message']}. {kept} {LESS_MEMORY}"
    return "\n  ".join([f"training {failed} failed ({why}). {kept} The whole log is {log}; it ends:", *tail])
