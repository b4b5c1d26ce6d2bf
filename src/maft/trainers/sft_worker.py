"""The child process of `maft.trainers.sft`: trains the jobs of one jobs file after another.

python -m maft.trainers.sft_worker jobs.json < pipe-that-closes-when-the-parent-dies

Further jobs files are named on standard input, one a line; base model and optimiser states are held between them. With
several processes `accelerate launch` starts one of these for each; only the first one writes and reports, and they end
after their first file.
"""

import json
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from maft import models
from maft.config import EngineConfig, TrainConfig
from maft.errors import ConfigError, DataError
from maft.models import probe
from maft.trainers import agent
from maft.trainers.agent import Learner
from maft.trainers.base import TrainJob, TrainProgress
from maft.trainers.base_model import BaseModel, is_first, num_processes, save_adapter, sharded

Report = Callable[[TrainProgress], None]
log = logging.getLogger("maft.trainers.sft_worker")  # also where this file is the program


def main() -> int:
    """Train the jobs of the file named on the command line, then of those named on standard input."""
    channel = _private_stdout()
    logging.getLogger("maft").addHandler(_ToParent(channel))
    further = _lines_of_parent()
    work: Work | None = None

    def report(progress: TrainProgress) -> None:
        if is_first():
            _send(channel, {"progress": progress.model_dump()})

    for file in _files(sys.argv[1], further):
        request = json.loads(Path(file).read_text(encoding="utf-8"))
        jobs = [TrainJob.model_validate(job) for job in request["jobs"]]
        work = work or Work(request["dtype"], EngineConfig.model_validate(request["engine"]))
        try:
            work.train(jobs, TrainConfig.model_validate(request["settings"]), report)
        except (ConfigError, DataError) as error:
            _send(channel, {"error": {"kind": "DataError", "message": str(error)}})
            return error.exit_code
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            _send(channel, {"error": {"kind": "memory", "message": str(error).splitlines()[0]}})
            return 1
        except Exception as error:  # of whichever library writes
            if not any(words in str(error) for words in ("No space left on device", "Disk quota exceeded")):
                raise
            _send(channel, {"error": {"kind": "disk", "message": str(error).splitlines()[0]}})
            return 1
        if is_first():
            _send(channel, {"done": file})
    return 0


def _files(first: str, further: "queue.SimpleQueue[str]") -> Iterator[str]:
    yield first
    while num_processes() == 1:
        yield further.get()


def _is_out_of_memory(error: Exception) -> bool:
    """Recognise what torch raises on GPUs and what its allocator says on a CPU."""
    said = f"{type(error).__name__} {error}"
    return any(words in said for words in ("OutOfMemory", "out of memory", "MemoryError", "can't allocate memory"))


def _private_stdout() -> IO[str]:
    """Return what was standard output, and send what libraries print there to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _send(channel: IO[str], event: dict[str, Any]) -> None:
    channel.write(json.dumps(event) + "\n")
    channel.flush()


class _ToParent(logging.Handler):
    """Sends warnings of this package to the process that the user sees."""

    def __init__(self, channel: IO[str]) -> None:
        super().__init__(logging.WARNING)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send a warning, from one of several processes only."""
        if is_first():
            _send(self._channel, {"warning": record.getMessage()})


def _lines_of_parent() -> "queue.SimpleQueue[str]":
    """Return the lines of standard input; this process ends when it closes: the parent is dead, even by kill -9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too, but it is the parent who decides
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def watch() -> None:
        with os.fdopen(0, encoding="utf-8", closefd=False) as stdin:
            for line in stdin:
                lines.put(line.strip())
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return lines


class Work:
    """What is held from one call to the next: a base model, and the optimiser states of agents that ask for it."""

    def __init__(self, dtype: str, engine: EngineConfig | None = None) -> None:
        self.engine = engine
        self.dtype = models.usable_dtype(dtype)
        self.base: BaseModel | None = None
        self.states: dict[str, Mapping[str, Any]] = {}
        if self.dtype == "float32":  # `accelerate launch` was given the precision before anyone looked at the hardware
            os.environ["ACCELERATE_MIXED_PRECISION"] = "no"

    def train(self, jobs: Sequence[TrainJob], settings: TrainConfig, report: Report) -> None:
        """Make the output folder of each job."""
        # Where weights are divided, the libraries must know before they load any: while this object lives, they do.
        announced = None
        if sharded():
            from maft.trainers import trl_fit

            announced = trl_fit.arguments(jobs[0], jobs[0].training(settings), self.dtype, os.devnull)
        in_loop = num_processes() == 1 and settings.method != "full" and not settings.packing
        for name, of_base in groupby(jobs, key=lambda job: job.base_model):
            waiting = list(of_base)
            while waiting:
                base = self._loaded(name, settings)
                count = len(waiting) if in_loop and together(settings, base) else 1
                prepared = [self._prepared(job, settings, base, report) for job in waiting[:count]]
                if learners := [learner for learner in prepared if learner]:
                    self._train(learners, base, report, in_loop=in_loop)
                waiting = waiting[count:]
        del announced

    def _loaded(self, name: str, settings: TrainConfig) -> BaseModel:
        """Return a base model as it was loaded; another one is freed first."""
        known = self.base
        if known is None or known.name != name or known.method != settings.method or not known.pristine:
            self.base = known = None
            self.base = BaseModel(name, self.dtype, settings.method, self.engine)
        return self.base  # type: ignore[return-value]  # it has just been set

    def _prepared(self, job: TrainJob, settings: TrainConfig, base: BaseModel, report: Report) -> Learner | None:
        """Return what is to be trained; None if there is nothing to learn from, and the agent stays as it is."""
        learner = agent.prepare(job, settings, base)
        if learner.units:
            return learner._replace(optimizer_state=self.states.get(job.agent) if job.keep_optimizer else None)
        agent.write_untrained(learner, base)
        report(TrainProgress(agent=job.agent, step=0, num_steps=0, loss=None, tokens=0))
        return None

    def _train(self, learners: Sequence[Learner], base: BaseModel, report: Report, *, in_loop: bool) -> None:
        """Train agents in one loop; what it cannot do is done for one agent at a time, and then by TRL."""
        if not in_loop:
            for learner in learners:
                self._with_trl(learner, base, report)
            return
        from maft.trainers import together as loop

        left = {learner.job.agent: learner for learner in learners}

        def done(learner: Learner, result: loop.Trained) -> None:
            job = left.pop(learner.job.agent).job
            if job.keep_optimizer:
                self.states[job.agent] = result.optimizer_state
            save = partial(save_adapter, result.config, result.weights)
            agent.write(learner, base, result.losses, save, together=len(learners), probe=result.probe)

        try:
            loop.train(base, learners, report, done)
        except loop.Unsupported as why:
            log.warning(
                "Agents of %s are finetuned by TRL instead of maft's own loop, which takes longer: %s.", base.name, why
            )
            for learner in list(left.values()):
                self._train([learner], base, report, in_loop=len(learners) > 1)

    def _with_trl(self, learner: Learner, base: BaseModel, report: Report) -> None:
        from maft.trainers import trl_fit

        job = learner.job
        if job.keep_optimizer:
            raise DataError(
                f"model {base.name} cannot be trained in maft's own loop, and TRL does not continue optimisers from "
                "turn to turn. Leave out train.online_questions, or choose another model."
            )
        if learner.training.objective != "sft":
            raise DataError(
                f"model {base.name} cannot be trained in maft's own loop, and TRL is used for "
                "train.objective=sft only. Set that, or choose another model."
            )
        model = base.trainable(job, learner.training)
        losses, state = trl_fit.fit(job, learner.training, base, model, learner.rows, report)
        probed = None
        if base.method == "lora" and not sharded():
            probed = probe.of_training(model, base.tokenizer)
        agent.write(learner, base, losses, partial(base.save, model, state=state), probe=probed)
        if not sharded():  # divided weights stay divided, and this process ends
            base.restore(model)


def together(settings: TrainConfig, base: BaseModel) -> bool:
    """Say whether the agents of a base model are trained in the same steps: `auto` is on GPUs."""
    return not base.on_cpu if settings.together == "auto" else settings.together


if __name__ == "__main__":
    sys.exit(main())
