"""Workers on the nodes of a Ray cluster: they are given tasks, and the death of one loses nothing.

A worker is a Ray actor: a process with the CPUs and GPUs that Ray has set aside for it, on any node. Tasks are handed
out in their order, the next one to whoever is free. The task of a worker that died, with its process or with its whole
node, goes to another one, and a new worker takes its place as soon as there is room.
"""

import logging
import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from maft import __version__
from maft.cluster import connection
from maft.cluster.connection import Needs
from maft.config import ClusterConfig, RunConfig
from maft.errors import ConfigError, MaftError, StageFailed, UserError

log = logging.getLogger(__name__)

TRIES = 3
"""Workers that may die over one task, or as they start, before it is given up."""
SECONDS_TO_LOOK_AGAIN = 5.0
"""After which nodes are looked for that have come."""
SECONDS_TO_COMPLAIN = 60.0

Work = Callable[[Any], Iterator[Any]]
"""Does one task, and yields what is to be told of it on the way."""


class Where(NamedTuple):
    """A worker's process."""

    node: str
    pid: int
    version: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.node}"


class Host:
    """What lives in a worker's process."""

    def __init__(self, make: Callable[[], Work], home: str) -> None:
        """Make nothing yet: an error then would be the death of the actor, and have no kind of its own."""
        self._make = make
        self._work: Work | None = None
        if Path(home).is_dir():
            os.chdir(home)  # relative paths in a config mean the same as for the driver

    def where(self) -> Where:
        """Say who this is."""
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
        """Reference to what it says next; None if it is idle."""

    def begin(self, number: int, task: Any) -> None:
        self.task = number
        self.waits_for = self.actor.do.options(num_returns="streaming").remote(task)

    def rest(self) -> int:
        """Be idle; return the task that was worked at."""
        assert self.task is not None
        number, self.task, self.waits_for = self.task, None, None
        return number

    def listen(self) -> Any:
        """Return what was said, or raise StopIteration if the task is done."""
        import ray

        return ray.get(self.waits_for if self.where is None else next(self.waits_for))


class Pool:
    """Workers of one kind, who stay until `close`."""

    def __init__(
        self, settings: ClusterConfig, gpus: int, make: Callable[[Needs], Callable[[], Work]], advice: str
    ) -> None:
        """Start nobody yet.

        Args:
            settings: of the cluster.
            gpus: that a worker has where the cluster has any, unless the settings say otherwise.
            make: is told here what a worker has, and returns what makes its work there.
            advice: what to lower if workers die for want of memory.
        """
        self.settings, self.gpus, self.make, self.advice = settings, gpus, make, advice
        self._workers: list[_Worker] = []
        self.needs: Needs | None = None

    def size(self) -> int:
        """Return how many workers there is room for.

        Raises:
            ConfigError: no cluster answers, or not one worker fits.
        """
        assert self.settings.ray is not None
        connection.connect(self.settings.ray)
        there = connection.nodes()
        self.needs = self.needs or connection.needs(self.settings, self.gpus, there)
        return connection.room(self.settings, self.needs, there)

    def run(
        self,
        tasks: Sequence[Any],
        on_event: Callable[[int, Any], None],
        more: Callable[[int], Sequence[Any]] = lambda _: (),
    ) -> None:
        """Do all tasks, and tell `on_event` what each yields, with its number.

        When the tasks are handed out and workers are idle, `more` is asked for further ones, with the number of idle
        workers.

        A task that begins again, because its worker died, yields everything again. What goes wrong with one task ends
        none of those which others are at; it is raised when they are done.

        Raises:
            ConfigError: no cluster answers, or no worker fits.
            StageFailed: workers died over one task again and again, or as they started.
            MaftError: as the work raises it.
        """
        _Round(self, tasks, on_event, more).play()

    def start(self) -> None:
        """Start a worker."""
        import ray

        assert self.needs is not None
        cpus, gpus, memory = self.needs
        actor = ray.remote(Host).options(num_cpus=cpus, num_gpus=gpus, memory=memory or None, max_restarts=0)
        self._workers.append(_Worker(actor.remote(self.make(self.needs), os.getcwd())))

    def dismiss(self, worker: _Worker) -> None:
        """End a worker, dead or alive; what it held is free."""
        import ray

        self._workers.remove(worker)
        ray.kill(worker.actor)

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._workers):
            self.dismiss(worker)
        self.needs = None  # the cluster may be another one when it is needed again

    @property
    def workers(self) -> Sequence[_Worker]:
        """Those who are starting, idle or at work."""
        return tuple(self._workers)


class _Round:
    """One call of `Pool.run`."""

    def __init__(
        self,
        pool: Pool,
        tasks: Sequence[Any],
        on_event: Callable[[int, Any], None],
        more: Callable[[int], Sequence[Any]],
    ) -> None:
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
            self.recruit(self.pool.size())
            while self.left:
                self.hand_out()
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

    def recruit(self, size: int) -> None:
        for _ in range(len(self.pool.workers), min(size, len(self.left))):
            self.pool.start()

    def look_around(self) -> None:
        """Have as many workers as there is room for now: nodes come and go."""
        now = time.monotonic()
        if now - self.looked < SECONDS_TO_LOOK_AGAIN:
            return
        self.looked = now
        with suppress(ConfigError):  # no node is left that could have one; one may come
            self.recruit(self.pool.size())
        if now - self.heard > SECONDS_TO_COMPLAIN and all(worker.task is None for worker in self.pool.workers):
            self.heard = now
            log.warning("Waiting for room in the cluster: a worker needs %s.", self.pool.needs)

    def ask_for_more(self) -> None:
        """Queue further tasks for idle workers."""
        idle = sum(worker.waits_for is None for worker in self.pool.workers)
        new = self.more(max(1, idle)) if not self.queue and self.failure is None and (idle or not self.left) else ()
        numbers = range(len(self.tasks), len(self.tasks) + len(new))
        self.tasks += new
        self.queue += numbers
        self.left |= set(numbers)

    def hand_out(self) -> None:
        for worker in self.pool.workers:
            if self.queue and worker.waits_for is None:
                number = self.queue.popleft()
                worker.begin(number, self.tasks[number])

    def hear(self, worker: _Worker) -> None:
        """Take what a worker says, its last word, or the news of its end."""
        import ray

        self.heard = time.monotonic()
        try:
            said = worker.listen()
        except StopIteration:
            self.left.discard(worker.rest())
        except ray.exceptions.RayTaskError as error:
            self.failed(worker.rest(), worker, error.cause if isinstance(error.cause, MaftError | OSError) else error)
        except ray.exceptions.RayError as error:
            self.died(worker, error)
        else:
            if worker.task is None:
                self.welcome(worker, said)
            else:
                self.on_event(worker.task, said)

    def welcome(self, worker: _Worker, where: Where) -> None:
        worker.where, worker.waits_for = where, None
        self.failed_starts = 0
        if where.version != __version__:
            raise ConfigError(
                f"worker {where} has maft {where.version}, this process has {__version__}. Install the same one on all "
                "nodes."
            )

    def failed(self, number: int, worker: _Worker, error: BaseException) -> None:
        """Give up a task, or have it tried once more if that can help."""
        if isinstance(error, StageFailed) and self.once_more(number):
            log.warning("Worker %s: %s Another one tries.", worker.where, error)
            return
        self.give_up(number, error)
        if isinstance(error, UserError):  # what was asked wrongly is wrong for the others as well
            self.left -= set(self.queue)
            self.queue.clear()

    def died(self, worker: _Worker, error: Exception) -> None:
        """Replace a worker, and give its task to another one."""
        number, why = worker.task, cause_of_death(error)
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
        if self.tries[number] == TRIES:
            return False
        self.queue.appendleft(number)
        return True

    def give_up(self, number: int, error: BaseException) -> None:
        self.left.discard(number)
        self.failure = self.failure or error


def on_worker(config: RunConfig, needs: Needs) -> RunConfig:
    """Return the config of a worker: no cluster, and as many threads as it has CPUs, where these do the work."""
    engine = config.engine
    if engine.num_threads is None and not needs.gpus:
        engine = engine.model_copy(update={"num_threads": needs.cpus})
    return config.model_copy(update={"engine": engine, "cluster": ClusterConfig()})


def cause_of_death(error: Exception) -> str:
    """Return what Ray knows of it, in a sentence.

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
