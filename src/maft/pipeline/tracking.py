"""Trackers that show a run while it goes: TensorBoard, trackio, Weights & Biases.

They follow events.jsonl. Events become numbers here, under the names of metrics.jsonl and of the report, and are passed
on at once. tracking.json keeps the last event that each tracker was sent, so that a resumed run, or one that asks for a
tracker later, sends what is missing, and nothing twice.

    accuracy/maft  unparsed/maft  calls/maft  tokens/maft  accuracy/critics  accuracy/critic_0      by iteration
    pseudo_labels/coverage  pseudo_labels/pseudo_label_accuracy  held_out_votes/mean_margin ...     by iteration
    examples/generator_0                                                                            by iteration
    loss/generator_0  learning_rate/generator_0                            by optimiser step, iterations end to end
    tokens_per_second/debate  tokens_per_second/evaluate  tokens_per_second/finetune      by batch or finetuned agent
"""

import logging
import os
import secrets
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from maft import files
from maft.config import RunConfig
from maft.errors import MissingExtra
from maft.evaluation import series as metrics
from maft.evaluation.series import Line
from maft.pipeline import run as pipeline
from maft.runs.folder import Event, RunFolder, stage_of

log = logging.getLogger(__name__)


class Measured(NamedTuple):
    """Numbers with names, at a step of an axis."""

    axis: str
    """What `step` counts, such as `iteration` or `step/critic_0`."""
    step: int
    values: Mapping[str, float]


class TrackedRun(NamedTuple):
    """What a tracker is told of a run at each start."""

    project: str
    group: str | None
    """Name of the comparison that the run is part of."""
    name: str
    id: str
    """The same at every start of the run."""
    path: Path
    config: RunConfig


class Tracker(Protocol):
    """A program that draws curves."""

    def log(self, measured: Measured, number: int) -> None:
        """Take numbers; `number` is that of the event, and rises."""

    def close(self) -> None:
        """Write out what is not written yet."""


@contextmanager
def following(folder: RunFolder, group: str | None = None) -> Iterator[None]:
    """Send the trackers of the run's config what happens in this block, and what they have missed.

    A tracker that fails is not used again until the next start, with a warning; the run continues.

    Raises:
        MissingExtra: a tracker is not installed.
    """
    config = folder.config
    for name in config.tracking.to:
        if find_spec(name) is None:
            raise MissingExtra(f"tracking.to: {name}", "tracking")
    if not config.tracking.to:
        yield
        return
    follower = _Follower(folder, group)
    folder.listeners.append(follower.tell)
    try:
        follower.catch_up()
        yield
    finally:
        folder.listeners.remove(follower.tell)
        follower.close()


class _Follower:
    """Reads events as they come, and sends each tracker what it does not have yet."""

    def __init__(self, folder: RunFolder, group: str | None) -> None:
        self._folder = folder
        kept: dict[str, Any] = files.read_json(folder.tracking) if folder.tracking.exists() else {}
        self._id: str = kept.get("id") or secrets.token_hex(4)
        self._sent: dict[str, int] = kept.get("told", {})
        name = f"{group}/{folder.path.parent.name}/{folder.path.name}" if group else folder.config.name
        self._run = TrackedRun(folder.config.tracking.project, group, name, self._id, folder.path, folder.config)
        self._working: list[str] = list(folder.config.tracking.to)
        self._open: dict[str, Tracker] = {}
        """Trackers that were sent something: each is opened by its first numbers."""
        self._reader = Reader(folder)
        self._number = 0

    def catch_up(self) -> None:
        for event in self._folder.events():
            self.tell(event)
        for event in _unlogged(self._folder):
            self._folder.log(**event)

    def tell(self, event: Event) -> None:
        self._number += 1
        is_new = self._reader.take(event)
        behind = [name for name in self._working if self._sent.get(name, 0) < self._number]
        if not behind:
            return
        try:
            measured = self._reader.measured(event) if is_new else []
        except Exception as error:  # numbers are not worth a run
            log.warning("Tracking: %s of iteration %s is left out: %s", event["event"], event.get("iteration"), error)
            measured = []
        for name in behind:
            if self._try(name, partial(self._send, name, measured)):
                self._sent[name] = self._number
        with suppress(OSError):  # the next event writes it again
            files.write_json(self._folder.tracking, {"id": self._id, "told": self._sent})

    def close(self) -> None:
        for name, tracker in self._open.items():
            if name in self._working:
                self._try(name, tracker.close)

    def _send(self, name: str, measured: Sequence[Measured]) -> None:
        for numbers in measured:
            if name not in self._open:
                self._open[name] = TRACKERS[name](self._run)
            self._open[name].log(numbers, self._number)

    def _try(self, name: str, work: Callable[[], None]) -> bool:
        try:
            with redirect_stdout(sys.stderr):  # ours is for results
                work()
        except Exception as error:  # whatever a foreign library raises, the run is worth more than its picture
            self._working.remove(name)
            log.warning(
                "Tracking: %s failed; the run continues without it: %s: %s. The next start sends what is missing.",
                *(name, type(error).__name__, error),
            )
            return False
        return True


class Reader:
    """Turns events into numbers. Events must be taken in their order; a repeated one is not new."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._taken: set[tuple[Any, ...]] = set()
        self._steps: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
        """Steps of each agent by iteration and turn; 0 where an iteration has no turns."""
        self._batches: Counter[str] = Counter()

    def take(self, event: Event) -> bool:
        """Count an event, and say whether it is new; a training that was killed repeats its first steps."""
        what, iteration, agent = event["event"], event.get("iteration", 0), event.get("agent", "")
        if what in ("debated", "trained"):
            self._batches[stage_of(event)] += 1
            return True
        place = (iteration, event.get("turn") or 0)
        key = (what, place, agent, event.get("step"))
        is_new = key not in self._taken
        self._taken.add(key)
        if what == "step":
            self._steps[agent][place] = max(self._steps[agent][place], event["step"])
        return is_new

    def measured(self, event: Event) -> list[Measured]:
        """Return the numbers of the event that was taken last."""
        what = event["event"]
        if what in ("debated", "trained"):
            return self._speed(event)
        if what == "step":
            return self._training(event)
        if event.get("turn") is not None:  # what turns made is measured when their iteration is done
            return []
        iteration = event.get("iteration", 0)
        lines = metrics.of_society(self._folder, iteration) if what == "evaluated" else []
        values: dict[str, float] = {}
        if what == "curated":
            lines = metrics.of_labels(self._folder, iteration)
            counts = pipeline.num_examples(self._folder, iteration)
            values = {f"examples/{agent}": count for agent, count in counts.items()}
        for line in lines:
            values |= named(line)
        return [Measured("iteration", iteration, values)] if values else []

    def _training(self, event: Event) -> list[Measured]:
        agent, place = event["agent"], (event["iteration"], event.get("turn") or 0)
        before = sum(steps for earlier, steps in self._steps[agent].items() if earlier < place)
        values = {f"{name}/{agent}": event[name] for name in ("loss", "learning_rate") if event.get(name) is not None}
        return [Measured(f"step/{agent}", before + event["step"], values)]

    def _speed(self, event: Event) -> list[Measured]:
        stage = stage_of(event)
        tokens = sum(event.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "tokens"))
        if not tokens or not event["seconds"]:
            return []
        rate = {f"tokens_per_second/{stage}": tokens / event["seconds"]}
        return [Measured(f"batch/{stage}", self._batches[stage], rate)]


def named(line: Line) -> dict[str, float]:
    """Return the numbers of a line of metrics.jsonl by the names that trackers show.

    >>> named({"kind": "method", "iteration": 1, "method": "maft", "accuracy": 0.5, "n": 107})
    {'accuracy/maft': 0.5}
    >>> named({"kind": "pseudo_labels", "iteration": 1, "coverage": 0.9, "dropped": {"no_answer": 3}})
    {'pseudo_labels/coverage': 0.9}
    """
    who = line.get("method") or line.get("agent")
    numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
    shown = {name: value for name, value in numbers.items() if name not in ("iteration", "n", "num_problems")}
    return {f"{name}/{who}" if who else f"{line['kind']}/{name}": value for name, value in shown.items()}


def _unlogged(folder: RunFolder) -> Iterator[Event]:
    """Yield the events of what is done but not logged, by a kill in between or by an older maft."""
    logged = {(event["event"], event.get("iteration")) for event in folder.events() if event.get("turn") is None}
    stages = {"voted": folder.votes, "curated": folder.examples_summary, "evaluated": folder.results}
    for number in range(folder.config.num_iterations + 1):
        for event, file in stages.items():
            if file(number).exists() and (event, number) not in logged:
                yield {"event": event, "iteration": number}


class _TensorBoard:
    """Event files in the run folder; `tensorboard --logdir runs` shows all runs."""

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.summary import Writer

        self._writer = Writer(str(run.path / "tensorboard"))

    def log(self, measured: Measured, number: int) -> None:
        for name, value in measured.values.items():
            self._writer.add_scalar(name, value, measured.step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    """A local database, in the place that trackio has for it; `trackio show` draws it."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._finish = trackio.finish  # the run's own would leave it to be finished once more when we exit
        self._run = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id}",  # trackio knows runs by their names
            group=run.group,
            config=run.config.model_dump(mode="json"),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, measured: Measured, number: int) -> None:
        self._run.log(dict(measured.values), step=measured.step)

    def close(self) -> None:
        self._finish()


class _Wandb:
    """Weights & Biases; offline, in the run folder, where this machine has no account."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=run.project,
            group=run.group,
            name=run.name,
            id=run.id,
            dir=str(run.path),
            config=run.config.model_dump(mode="json"),
            resume="allow",
            mode=None if "WANDB_MODE" in os.environ or _has_wandb_account() else "offline",
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )
        self._axes: set[str] = set()

    def log(self, measured: Measured, number: int) -> None:
        for name in measured.values.keys() - self._axes:
            self._run.define_metric(name, step_metric=measured.axis)
        self._axes |= measured.values.keys()
        # Its own steps may only rise, over all starts of a run, and so do the numbers of events.
        self._run.log({**measured.values, measured.axis: measured.step}, step=number)

    def close(self) -> None:
        self._run.finish()


def _has_wandb_account() -> bool:
    """Say whether wandb would find a key, for without one it asks for it and waits."""
    from requests.utils import get_netrc_auth

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return "WANDB_API_KEY" in os.environ or get_netrc_auth(server) is not None


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _Wandb,
}
