"""Workers on the nodes of a Ray cluster: they are given tasks, and no task is lost when a worker dies.

A worker is a Ray actor: a process with the CPUs and GPUs that Ray has set aside for it, on any node. Tasks are handed
out in order, the next one to any idle worker. The task of a worker that died, with its process or with its whole node,
goes to another one, and a new worker replaces it as soon as there is room.
"""

import logging
import os
import re
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from maft import __version__
from maft.cluster import connection
from maft.cluster.connection import Needs
from maft.config import ClusterConfig, RunConfig
from maft.errors import ConfigError, MaftError, StageFailed, UserError

T = TypeVar("T")
log = logging.getLogger(__name__)

TRIES = 3
"""Workers that may die over one task, or as they start, before it is given up."""
SECONDS_TO_LOOK_AGAIN = 5.0
"""Interval at which the pool looks for new nodes."""
SECONDS_TO_COMPLAIN = 60.0

Work = Callable[[Any], Iterator[Any]]
"""Does one task, and yields events on the way."""
OnEvent = Callable[[int, Any], None]
More = Callable[[int], Sequence[Any]]


class Where(NamedTuple):
    """A worker's process."""

    node: str
    pid: int
    version: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.node}"


class Host:
    """What runs in a worker's process."""

    def __init__(self, make: Callable[[], Work], home: str) -> None:
        """Make nothing yet: an error here would kill the actor and lose its type."""
        self._make = make
        self._work: Work | None = None
        if Path(home).is_dir():
            os.chdir(home)  # relative paths in a config mean the same as for the driver

    def where(self) -> Where:
        """Identify this process."""
        return Where(socket.gethostname(), os.getpid(), __version__)

    def do(self, task: Any) -> Iterator[Any]:
        """Do a task."""
        self._work = self._work or self._make()
        yield from self._work(task)


class _Worker:
    """The driver's side of a worker: starting until `where` is known, then idle or at a task."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.where: Where | None = None
        self.task: int | None = None
        self.waits_for: Any = actor.where.remote()
        """Reference to its next event; None while it is idle."""


class Pool:
    """Workers of one kind, who stay until `close`."""

    def __init__(
        self, settings: ClusterConfig, gpus: int, make: Callable[[Needs], Callable[[], Work]], advice: str
    ) -> None:
        """Start no worker yet.

        Args:
            settings: of the cluster.
            gpus: GPUs of a worker if the cluster has any, unless the settings give a number.
            make: gets what a worker has, and returns what makes its work there.
            advice: what to lower if workers run out of memory.
        """
        self.settings, self.gpus, self.make, self.advice = settings, gpus, make, advice
        self.workers: list[_Worker] = []
        """Those that are starting, idle or at work."""
        self.needs: Needs | None = None

    def size(self) -> int:
        """Return how many workers there is room for.

        Raises:
            ConfigError: no cluster answers, or not one worker fits.
        """
        assert self.settings.ray is not None
        connection.connect(self.settings.ray)
        nodes = connection.nodes()
        self.needs = self.needs or connection.needs(self.settings, self.gpus, nodes)
        return connection.room(self.settings, self.needs, nodes)

    def run(self, tasks: Sequence[Any], on_event: OnEvent, more: More = lambda _: ()) -> None:
        """Do all tasks, and call `on_event` with the number of a task and each event that it yields.

        When all tasks are handed out and workers are idle, `more` is called with the number of idle workers and returns
        further tasks. A task that starts again, because its worker died, yields everything again. An error of one task
        is raised when the tasks that others have begun are done.

        Raises:
            ConfigError: no cluster answers, or no worker fits.
            StageFailed: workers died over one task again and again, or as they started.
            MaftError: as the work raises it.
        """
        _Round(self, tasks, on_event, more).play()

    def recruit(self, number: int) -> None:
        """Start workers, so that there are `number` of them."""
        import ray

        assert self.needs is not None
        cpus, gpus, memory = self.needs
        kind = ray.remote(Host).options(num_cpus=cpus, num_gpus=gpus, memory=memory or None, max_restarts=0)
        for _ in range(len(self.workers), number):
            self.workers.append(_Worker(kind.remote(self.make(self.needs), os.getcwd())))

    def dismiss(self, worker: _Worker) -> None:
        """End a worker, dead or alive, so that its resources are free."""
        import ray

        self.workers.remove(worker)
        ray.kill(worker.actor)

    def close(self) -> None:
        """End all workers."""
        for worker in list(self.workers):
            self.dismiss(worker)
        self.needs = None  # the cluster may be another one next time


class _Round:
    """One call of `Pool.run`."""

    def __init__(self, pool: Pool, tasks: Sequence[Any], on_event: OnEvent, more: More) -> None:
        self.pool, self.tasks, self.on_event, self.more = pool, list(tasks), on_event, more
        self.queue = deque(range(len(tasks)))
        self.left = set(self.queue)
        """Neither done nor given up."""
        self.tries: Counter[int] = Counter()
        self.failed_starts = 0
        self.failure: BaseException | None = None
        self.looked = self.heard = time.monotonic()

    def play(self) -> None:
        import ray

        try:
            self.pool.recruit(min(self.pool.size(), len(self.left)))
            while self.left:
                for worker in self.pool.workers:
                    if self.queue and worker.waits_for is None:
                        worker.task = self.queue.popleft()
                        worker.waits_for = worker.actor.do.options(num_returns="streaming").remote(
                            self.tasks[worker.task]
                        )
                waiting = {worker.waits_for: worker for worker in self.pool.workers if worker.waits_for is not None}
                if waiting:
                    ready, _ = ray.wait(list(waiting), num_returns=1, timeout=SECONDS_TO_LOOK_AGAIN)
                    for reference in ready:
                        self.hear(waiting[reference])
                else:
                    time.sleep(SECONDS_TO_LOOK_AGAIN)
                self.look_around()
                self.ask_for_more()
        except BaseException:
            self.pool.close()
            raise
        if self.failure is not None:
            raise self.failure

    def look_around(self) -> None:
        """Have as many workers as there is room for now: nodes come and go."""
        now = time.monotonic()
        if now - self.looked < SECONDS_TO_LOOK_AGAIN:
            return
        self.looked = now
        with suppress(ConfigError):  # no node is left that could have one; one may come
            self.pool.recruit(min(self.pool.size(), len(self.left)))
        if now - self.heard > SECONDS_TO_COMPLAIN and all(worker.task is None for worker in self.pool.workers):
            self.heard = now
            log.warning("Waiting for free resources in the cluster: a worker needs %s.", self.pool.needs)

    def ask_for_more(self) -> None:
        """Queue further tasks for idle workers."""
        idle = sum(worker.waits_for is None for worker in self.pool.workers)
        new = self.more(max(1, idle)) if not self.queue and self.failure is None and (idle or not self.left) else ()
        numbers = range(len(self.tasks), len(self.tasks) + len(new))
        self.tasks += new
        self.queue += numbers
        self.left |= set(numbers)

    def hear(self, worker: _Worker) -> None:
        """Take an event of a worker, its end of a task, or the news of its death."""
        import ray

        self.heard = time.monotonic()
        try:
            event = ray.get(worker.waits_for if worker.where is None else next(worker.waits_for))
        except StopIteration:
            self.left.discard(self.rest(worker))
        except ray.exceptions.RayTaskError as error:
            self.failed(worker, error.cause if isinstance(error.cause, MaftError | OSError) else error)
        except ray.exceptions.RayError as error:
            self.died(worker, cause_of_death(error))
        else:
            if worker.task is not None:
                self.on_event(worker.task, event)
                return
            worker.where, worker.waits_for, self.failed_starts = event, None, 0
            if event.version != __version__:
                raise ConfigError(
                    f"worker {event} has maft {event.version}, this process has {__version__}. Install the same one on "
                    "all nodes."
                )

    def rest(self, worker: _Worker) -> int:
        """Make a worker idle; return its task."""
        assert worker.task is not None
        number, worker.task, worker.waits_for = worker.task, None, None
        return number

    def failed(self, worker: _Worker, error: BaseException) -> None:
        """Give up a task, or have it tried once more if that can help."""
        number = self.rest(worker)
        if isinstance(error, StageFailed) and self.once_more(number):
            log.warning("Worker %s: %s Another one tries.", worker.where, error)
            return
        self.give_up(number, error)
        if isinstance(error, UserError):  # the other tasks would fail alike
            self.left -= set(self.queue)
            self.queue.clear()

    def died(self, worker: _Worker, why: str) -> None:
        """Replace a worker, and give its task to another one."""
        number = worker.task
        self.pool.dismiss(worker)
        self.looked = 0.0
        if number is None:
            self.failed_starts += 1
            if self.failed_starts == TRIES:
                raise StageFailed(f"{TRIES} workers died as they started, the last one so: {why} {self.pool.advice}")
        elif self.once_more(number):
            log.warning("Worker %s died: %s Another one takes over.", worker.where, why)
        else:
            text = (
                f"{TRIES} workers died over the same task, the last one was {worker.where}: {why} {self.pool.advice} "
                "Finished work is kept; run the same command again to continue."
            )
            self.give_up(number, StageFailed(text))

    def once_more(self, number: int) -> bool:
        self.tries[number] += 1
        if self.tries[number] < TRIES:
            self.queue.appendleft(number)
        return self.tries[number] < TRIES

    def give_up(self, number: int, error: BaseException) -> None:
        self.left.discard(number)
        self.failure = self.failure or error


def reported(call: Callable[[Callable[[T], None]], object]) -> Iterator[list[T]]:
    """Run a call in a thread, and yield what it reports to its argument, as soon as there is any."""
    events: SimpleQueue[T | _End] = SimpleQueue()

    def run() -> None:
        try:
            call(events.put)
            events.put(_End(None))
        except BaseException as error:
            events.put(_End(error))

    threading.Thread(target=run, daemon=True).start()
    while True:
        batch = [events.get()]
        while not events.empty():
            batch.append(events.get())
        if new := [event for event in batch if not isinstance(event, _End)]:
            yield new
        if isinstance(end := batch[-1], _End):
            if end.error is not None:
                raise end.error
            return


class _End(NamedTuple):
    error: BaseException | None


def on_worker(config: RunConfig, needs: Needs) -> RunConfig:
    """Return the config of a worker: no cluster, and one thread per CPU unless it has GPUs."""
    engine = config.engine
    if engine.num_threads is None and not needs.gpus:
        engine = engine.model_copy(update={"num_threads": needs.cpus})
    return config.model_copy(update={"engine": engine, "cluster": ClusterConfig()})


def cause_of_death(error: Exception) -> str:
    """Return the cause that Ray reports, in a sentence.

    >>> cause_of_death(ValueError("The actor died. The actor is dead because its node has died. Reason: lost"))
    'its node has died.'
    """
    text = " ".join(str(error).split())
    if used := re.search(r"low on memory.*? was ([\d.]+) ?GB used / ([\d.]+) ?GB", text):
        own = re.search(r"actual memory used=([\d.]+) ?GB", text)
        share = f", {own[1]} GB of it by the worker" if own else ""
        return f"its node ran low on memory ({used[1]} of {used[2]} GB in use{share}), and Ray ended it."
    reason = text.partition("dead because ")[2] or text
    ended = re.search(r"Worker exit type: \w+ Worker exit detail: (.*?)\. ", reason)
    if ended:
        return f"its process ended unexpectedly ({ended[1]}); perhaps it was killed for want of memory."
    return reason.partition(". ")[0].rstrip(".") + "."
