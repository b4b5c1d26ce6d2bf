"""The run folder: what is written where, whole or not at all.

    runs/<name>/
      config.json                 resolved settings; their digest is the run's identity; usable as input
      manifest.json               versions, commit, hardware, argv, seeds, hashes of the questions
      problems/{train,eval}.jsonl the questions of this run
      checksums.jsonl             of every finished file, see maft.runs.seals
      events.jsonl                log of events with times
      verdicts.jsonl              pairs of answers whose comparison took algebra
      judgements.jsonl            pairs of answers that a judge compared, with task.equality: judge
      metrics.jsonl               methods, single agents and votes over iterations, see maft.evaluation.series
      report.html
      replies.sqlite              replies of the running stage by request; with a hosted service, of all stages
      spending.json, served.json  with a hosted service: money spent; adapters that a vLLM server holds
      teacher.json                of a student of `maft distil`: the society that taught it
      tracking.json, tensorboard/, wandb/   with tracking.to: how much each tracker was sent, and its files
      iter_00/eval/               the untrained society on held-out questions
      iter_01/debates.jsonl       one Debate a line
      iter_01/votes.jsonl         one Vote a line
      iter_01/examples/           generator_0.jsonl ... critic_2.jsonl, summary.json
      iter_01/agents/             generator_0/ ... critic_2/: PEFT adapters
      iter_01/eval/               debates.jsonl, votes.jsonl, <method>.jsonl, summary.json; also
                                  diversity.json, preference.json
      iter_01/collapse.json       why a run stopped after this iteration, see maft.evaluation.guard
      iter_01/online/             with train.online_questions: the turns of the iteration, as iterations of their own
      iter_01/readings.jsonl      replies read by every agent, for likelihood and KL
      iter_01/hints.jsonl         with STaR: answers that were given after a hint
      also/<task>/                with eval.also: questions of another task, and evaluations as of a run of its own

A file is complete when it exists; only debates.jsonl and events.jsonl grow line by line. An incomplete line after a
kill is removed when the run is resumed, and its work is repeated. Settings of a run are fixed once its questions are
written; until then, such as after a mistake in the task's settings, the folder accepts other settings.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maft import config as config_
from maft import files
from maft.answers import verify
from maft.answers.meaning import judgements
from maft.config import AgentConfig, EvalConfig, RunConfig, TaskConfig, VoteConfig
from maft.errors import ConfigError, DataError

log = logging.getLogger(__name__)

Event = dict[str, Any]
"""A line of events.jsonl: `time`, `event` and what belongs to it."""


Mirrored = Callable[[RunConfig, Path], AbstractContextManager[Callable[[], None]]]
"""Keeps a copy of a run folder elsewhere while its block runs; yields a function that stores what is new."""


@dataclass(frozen=True)
class _File:
    """A file of a run: an attribute that is its path."""

    place: str

    def __get__(self, run: "RunFolder", owner: object) -> Path:
        return run.path / self.place


@dataclass(frozen=True)
class _FileOf:
    """A file of an iteration, by number; 0 is the untrained society."""

    place: str

    def __get__(self, run: "RunFolder", owner: object) -> Callable[[int], Path]:
        return lambda number: run.path / self.place.format(number)


@dataclass(frozen=True)
class _NamedFileOf:
    """A file of an iteration for each agent or method, by number and name."""

    place: str

    def __get__(self, run: "RunFolder", owner: object) -> Callable[[int, str], Path]:
        return lambda number, name: run.path / self.place.format(number, name)


class RunFolder:
    """One run's folder. `open` makes or resumes it, `existing` only reads it."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        """Use `open` or `existing` instead."""
        self.path = path
        self.config = config
        self.listeners: list[Callable[[Event], None]] = []
        """Called with every event that is logged."""
        self.turns_of: int | None = None
        """The iteration whose turns are this folder's iterations."""

    @classmethod
    @contextmanager
    def open(cls, config: RunConfig, mirrored: Mirrored | None = None) -> Iterator["RunFolder"]:
        """Make the folder of a run, or resume it; no other process can have it open at the same time.

        `mirrored` keeps a copy of the folder elsewhere, such as `maft.cluster.mirror.mirrored`.

        Raises:
            ConfigError: the folder holds a run with another config; names the keys that differ.
            DataError: the folder is in use, or is something else than a run.
        """
        import filelock

        path = config.runs_dir / config.name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise DataError(
                f"{path} cannot be a folder: there is a file in its place. Choose another name=..."
            ) from None
        # Hidden files may be ours: a start that was killed at once leaves its lock.
        strange = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
        if strange and not (path / "config.json").exists():
            raise DataError(f"{path} exists and is not a run folder. Choose another name=..., or move it away.")
        lock = filelock.FileLock(path / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise DataError(f"{path} is in use by another process. Wait for it, or choose another name=...") from None
        except OSError as error:
            raise DataError(
                f"{path}/.lock cannot be locked: {error.strerror}. Remove it if it is not a file."
            ) from None
        try:
            files.remove_leftovers(path.rglob(".*.tmp"))
            copy = mirrored(config, path) if mirrored else nullcontext(lambda: None)
            kept = cls(path, config)
            keeping = verify.verifier.keeping(kept.verdicts), judgements.keeping(kept.judgements)
            with copy as store_news, keeping[0], keeping[1]:
                folder = cls._begun(config, path)
                store_news()
                folder.listeners.append(lambda _: store_news())
                yield folder
        finally:
            lock.release()

    @classmethod
    def _begun(cls, config: RunConfig, path: Path) -> "RunFolder":
        folder = cls(path, config)
        if folder.problems("eval").exists():
            earlier = cls.existing(path).config
            refuse_other(config, earlier, path)
            if earlier.num_iterations >= config.num_iterations:
                folder.config = config.model_copy(update={"num_iterations": earlier.num_iterations})
        if not folder.config_file.exists() or config_.resolved(folder.config) != files.read_text(folder.config_file):
            files.write_text(folder.config_file, config_.resolved(folder.config))
        files.drop_torn_line(folder.events_file)
        return folder

    @classmethod
    def existing(cls, path: Path) -> "RunFolder":
        """Read the folder of a run.

        Raises:
            DataError: there is no run in it.
        """
        if (path / "compare.json").is_file():
            raise DataError(f"{path} is a comparison. Give one of its runs, {path}/seed_N/METHOD.")
        if not (path / "config.json").is_file():
            raise DataError(
                f"{path} is not a run folder: it has no config.json. Give the folder that `maft run` printed."
            )
        try:
            folder = cls(path, config_.load(path / "config.json"))
        except ConfigError as error:
            raise DataError(f"{path} was made by another version of maft, or was edited. {error}") from None
        verify.verifier.learn(folder.verdicts)
        judgements.learn(folder.judgements)
        return folder

    config_file = _File("config.json")
    manifest = _File("manifest.json")
    events_file = _File("events.jsonl")
    checksums = _File("checksums.jsonl")
    replies = _File("replies.sqlite")
    verdicts = _File("verdicts.jsonl")
    judgements = _File("judgements.jsonl")
    metrics = _File("metrics.jsonl")
    page = _File("report.html")
    tracking = _File("tracking.json")
    teacher = _File("teacher.json")

    iteration = _FileOf("iter_{:02d}")
    debates = _FileOf("iter_{:02d}/debates.jsonl")
    votes = _FileOf("iter_{:02d}/votes.jsonl")
    """Written when all debates are there."""
    examples_summary = _FileOf("iter_{:02d}/examples/summary.json")
    """Written last: the examples are done when it exists."""
    hints = _FileOf("iter_{:02d}/hints.jsonl")
    readings = _FileOf("iter_{:02d}/readings.jsonl")
    evaluation = _FileOf("iter_{:02d}/eval")
    held_out_debates = _FileOf("iter_{:02d}/eval/debates.jsonl")
    held_out_votes = _FileOf("iter_{:02d}/eval/votes.jsonl")
    results = _FileOf("iter_{:02d}/eval/summary.json")
    """Written last: the evaluation is done when it exists."""
    collapse = _FileOf("iter_{:02d}/collapse.json")
    """The iteration ruined an agent: the society before it stays the newest."""
    diversity = _FileOf("iter_{:02d}/eval/diversity.json")
    preference = _FileOf("iter_{:02d}/eval/preference.json")
    """After `maft judge`."""

    examples = _NamedFileOf("iter_{:02d}/examples/{}.jsonl")
    agent = _NamedFileOf("iter_{:02d}/agents/{}")
    scores = _NamedFileOf("iter_{:02d}/eval/{}.jsonl")

    def problems(self, side: str) -> Path:
        """Return the file of the `train` or `eval` questions."""
        return self.path / "problems" / f"{side}.jsonl"

    def part(self, number: int) -> str:
        """Return what an iteration is called in messages: one of the run, or a turn of one."""
        return f"iteration {number}" if self.turns_of is None else f"iteration {self.turns_of}, turn {number}"

    @property
    def others(self) -> "tuple[RunFolder, ...]":
        """The tasks of `eval.also`, each as a folder in which this run's generators are evaluated on it."""
        society = self.config.society
        agents = {role: tuple(map(_without_prompts, getattr(society, role))) for role in ("generators", "critics")}
        alone = self.config.debate.model_copy(
            update={"protocol": "vote", "num_samples": 1, "num_eval_samples": None, "wrong_majorities": None}
        )
        changes = {
            "debate": alone,
            "prompts": {},
            "society": society.model_copy(update=agents),
            "vote": VoteConfig(count_cut=self.config.vote.count_cut),
            "eval": EvalConfig(),
        }
        return tuple(
            RunFolder(self.path / "also" / _short_name(task), self.config.model_copy(update={**changes, "task": task}))
            for task in self.config.eval.also
        )

    def evaluated(self, number: int) -> bool:
        """Say whether an iteration is evaluated."""
        return self.results(number).exists()

    def log(self, event: str, **fields: Any) -> None:
        """Append a line to events.jsonl, and pass it to the listeners."""
        entry: Event = {"time": round(time.time(), 3), "event": event, **fields}
        with self.events_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        for listener in self.listeners:
            listener(entry)

    def events(self) -> list[Event]:
        """Read events.jsonl; a torn last line is left out, and so is a damaged one, with a warning."""
        path = self.events_file
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
        events: list[Event] = []
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if isinstance(event, dict) and "event" in event:
                events.append(event)
            else:
                log.warning("%s, line %d, is damaged and ignored: %r", path, number, line[:80])
        return events


def _without_prompts(agent: str | AgentConfig) -> str | AgentConfig:
    """Return an agent's entry without prompts of its own, which are for another task."""
    return agent if isinstance(agent, str) else agent.model_copy(update={"prompts": {}})


def _short_name(task: TaskConfig) -> str:
    """Return the name of a task's folder, another one for other settings."""
    return f"{re.sub('[^a-z0-9]+', '_', task.name.lower())[-40:]}-{config_.short_digest(config_.identity(task))[:8]}"


def stage_of(event: Event) -> str:
    """Return the stage that debates or a training are part of: `debate`, `evaluate` or `finetune`."""
    return {"train": "debate", "hint": "debate", "eval": "evaluate"}.get(event.get("stage", ""), "finetune")


def refuse_other(config: RunConfig, theirs: RunConfig, path: Path) -> None:
    """Refuse settings with which a run cannot be resumed.

    Raises:
        ConfigError: names the settings that differ from those of the run at `path`.
    """
    changed = config_.differences(theirs, config)
    if changed:
        keys = "\n".join(f"  {key}: {old!r} there, {new!r} asked for" for key, (old, new) in changed.items())
        raise ConfigError(
            f"{path} holds a run with other settings:\n{keys}\n"
            "Give the same settings to resume it, or another name=... to start a new run."
        )
