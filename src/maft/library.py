"""maft as a library: carry out a run, read one, and ask the society that it made.

run = maft.run("config.yaml", "seed=1")           # or a RunConfig, or a dictionary of settings
run = maft.open("runs/mine")
run.results().to_pandas()                         # also debates(), votes(), examples("critic_0"), questions()
with run.society() as society:
    print(society.ask("What is 7 * 8?").text)
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar, overload

from maft import config as config_
from maft import engines, files, report, tasks
from maft.cluster.mirror import mirrored
from maft.comparison.arms import ARMS
from maft.config import RunConfig
from maft.errors import UserError
from maft.evaluation.metrics import MethodResult
from maft.evaluation.replay import Replayed, replay
from maft.method import learners, play, protocol_of
from maft.method import vote as voting
from maft.pipeline import rollouts, tracking
from maft.pipeline import run as pipeline
from maft.records import Debate, Example, Problem, Record, Score, Vote
from maft.runs import manifest, seals, societies, status
from maft.runs.folder import RunFolder
from maft.runs.progress import Progress
from maft.samplers.base import Sampler
from maft.trainers.base import Trainer

R = TypeVar("R", bound=Record)
Settings = RunConfig | Mapping[str, Any] | str | Path
"""A config, a dictionary of settings, or the path of a YAML file, a config.json or a run folder."""

FINISHES = ("voted", "curated", "trained", "evaluated")
"""Events after which files are finished."""


def run(
    settings: Settings,
    *overrides: str,
    sampler: Sampler | None = None,
    trainer: Trainer | None = None,
    quiet: bool = False,
    keep_going: bool = False,
) -> "Run":
    """Carry out a run, or what is missing of it, and write its report.

    Args:
        settings: see `Settings`.
        overrides: such as `"debate.num_agents=5"`; not with a `RunConfig`.
        sampler: an engine of your own in the place of the one that the config names.
        trainer: the same for finetuning.
        quiet: show no progress.
        keep_going: past an iteration that ruined agents, see `guard` in the config.

    Raises:
        ConfigError: a setting is wrong, or the folder holds a run with other settings.
        DataError: questions, a model or an adapter cannot be used.
        StageFailed: a stage could not finish, or an iteration ruined agents; finished work is kept.
    """
    config = parsed(settings, *overrides)
    if sampler is None and trainer is None:
        config_.check_loop(config)
    with opened(config, quiet=quiet) as (folder, progress):
        if sampler is None and status.newest(folder) == 0:
            societies.check(config)
            engines.check_templates(config)
        with engines.opened(config) if sampler is None else nullcontext(sampler) as engine:
            pipeline.run(folder, engine, trainer or engines.make_trainer(config), progress, keep_going=keep_going)
        report.write_metrics(folder)
        report.write_page(folder)
    return Run(folder)


def open(path: str | Path) -> "Run":  # maft.open("runs/x"), as gzip.open
    """Open a run folder for reading; an unfinished run will do.

    Raises:
        DataError: there is no run in the folder.
    """
    return Run(RunFolder.existing(Path(path)))


def parsed(settings: Settings, *overrides: str) -> RunConfig:
    """Return the config that settings stand for.

    Raises:
        ConfigError: a setting is wrong.
    """
    if isinstance(settings, RunConfig):
        if overrides:
            raise UserError(
                "overrides need a config file or a dictionary of settings. To change a RunConfig, use its model_copy."
            )
        return settings
    if isinstance(settings, Mapping):
        return config_.parse(dict(settings), overrides)
    return config_.load(Path(settings), overrides)


@contextmanager
def opened(config: RunConfig, *, quiet: bool) -> Iterator[tuple[RunFolder, Progress]]:
    """Open the folder of a run for work on it, with its manifest, trackers and progress.

    Raises:
        UserError: it belongs to a method that only a comparison carries out.
    """
    path, arm = config.runs_dir / config.name, ARMS.get(config.name)
    if arm and (arm.star or arm.teaches) and (path.resolve().parent.parent / "compare.json").exists():
        raise UserError(f"{path} is method {arm.name} of a comparison. Continue it with `maft compare`.")
    with RunFolder.open(config, mirrored) as folder:
        seals.check(folder)
        seals.seal(folder)
        folder.listeners.insert(0, lambda event: seals.seal(folder) if event["event"] in FINISHES else None)
        manifest.write(folder)
        with tracking.following(folder):
            yield folder, Progress(quiet=quiet)


class Records(Sequence[R], Generic[R]):
    """Records of a run, read one by one from their file at each iteration over them."""

    def __init__(self, source: Iterable[R], kind: type[R]) -> None:
        self._source, self._kind = source, kind

    def __iter__(self) -> Iterator[R]:
        """Yield the records in the order of the file."""
        return iter(self._source)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @overload
    def __getitem__(self, place: int) -> R: ...
    @overload
    def __getitem__(self, place: slice) -> list[R]: ...
    def __getitem__(self, place: int | slice) -> R | list[R]:
        """Return one record, or a list of them."""
        return list(self)[place]

    def rows(self) -> list[dict[str, Any]]:
        """Return the records as dictionaries of plain values."""
        return [record.model_dump(mode="json") for record in self]

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with a row for each record."""
        import pandas as pd

        return pd.DataFrame(self.rows(), columns=list(self._kind.model_fields))

    def to_dataset(self) -> Any:
        """Return a `datasets.Dataset` with a row for each record."""
        from datasets import Dataset

        return Dataset.from_list(self.rows())


class Run:
    """A run, finished or not."""

    def __init__(self, folder: RunFolder) -> None:
        """Use `maft.run` or `maft.open` instead."""
        self.folder = folder

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def config(self) -> RunConfig:
        """All settings."""
        return self.folder.config

    def results(self) -> Records[MethodResult]:
        """Return every method's accuracy, interval, calls and tokens, iteration by iteration; 0 is untrained."""
        return Records(report.results(self.folder), MethodResult)

    def questions(self, *, held_out: bool = False) -> Records[Problem]:
        """Return the training questions, or the held-out ones."""
        return self._records(self.folder.problems("eval" if held_out else "train"), Problem)

    def debates(self, iteration: int | None = None, *, held_out: bool = False) -> Records[Debate]:
        """Return the debates of an iteration on the training or the held-out questions; the newest if not given."""
        file = self.folder.held_out_debates if held_out else self.folder.debates
        return self._records(self._newest(file, iteration), Debate)

    def scores(self, method: str, iteration: int | None = None) -> Records[Score]:
        """Return a method's answer to each held-out question, such as of `maft` or `maft_majority@3`."""
        return self._records(self._newest(lambda n: self.folder.scores(n, method), iteration), Score)

    def votes(self, iteration: int | None = None) -> Records[Vote]:
        """Return the votes of an iteration on the training questions, with their pseudo-labels."""
        return self._records(self._newest(self.folder.votes, iteration), Vote)

    def examples(self, agent: str, iteration: int | None = None) -> Records[Example]:
        """Return what an agent, such as `critic_0`, was finetuned on in an iteration."""
        if agent not in learners(self.config):
            raise UserError(f"agent {agent!r} is not finetuned in this run. It has {', '.join(learners(self.config))}.")
        return self._records(self._newest(lambda n: self.folder.examples(n, agent), iteration), Example)

    def replay(self) -> list[Replayed]:
        """Return what other protocols and votes would have answered, and what critics could gain at most."""
        return replay(self.folder)

    def report(self) -> Path:
        """Write the page of the run, and return its path."""
        return report.write_page(self.folder)

    def society(self, iteration: int | None = None, *, sampler: Sampler | None = None) -> "LoadedSociety":
        """Return the society of an iteration, to be asked; the newest if not given, 0 for the untrained one."""
        return LoadedSociety(self, status.newest(self.folder) if iteration is None else iteration, sampler)

    def _newest(self, file: Callable[[int], Path], iteration: int | None) -> Path:
        numbers = range(self.config.num_iterations, -1, -1) if iteration is None else [iteration]
        return next((file(number) for number in numbers if file(number).exists()), file(numbers[0]))

    def _records(self, path: Path, kind: type[R]) -> Records[R]:
        if not path.exists():
            raise UserError(f"{path} does not exist: the run has not reached this iteration, or has no such one.")
        return Records(files.Records(path, kind), kind)


class Answer(NamedTuple):
    """What a society answers to one question."""

    text: str | None
    """The answer that won the vote; None if no agent's answer could be read."""
    agreement: float
    """Share of the agents that gave it."""
    vote: Vote
    debate: Debate


class LoadedSociety:
    """A society that answers questions by a debate and a vote, as it does on held-out questions."""

    def __init__(self, run: Run, iteration: int, sampler: Sampler | None = None) -> None:
        """Use `Run.society` instead. The model is loaded at the first question."""
        check_voting(run.config)
        if iteration and not societies.finished(run.folder, iteration):
            raise UserError(
                f"the agents of iteration {iteration} are not finetuned; the newest finetuned iteration is "
                f"{status.newest(run.folder)}."
            )
        self._run, self._iteration, self._sampler = run, iteration, sampler

    @classmethod
    def load(cls, path: str | Path, iteration: int | None = None) -> Self:
        """Load the society of a run folder; the newest iteration if not given."""
        opened_run = open(path)
        return cls(opened_run, status.newest(opened_run.folder) if iteration is None else iteration)

    def ask(self, question: str) -> Answer:
        """Debate a question and vote. The same question gets the same answer."""
        return self.ask_all([question])[0]

    def ask_all(self, questions: Sequence[str]) -> list[Answer]:
        """Debate several questions at the same time.

        Raises:
            UserError: a question is empty.
        """
        if not all(question.strip() for question in questions):
            raise UserError("a question is empty. Ask something.")
        folder = self._run.folder
        rules = pipeline.answer_rules(folder, self._iteration, societies.after(folder, self._iteration))
        problems = [Problem(id=_digest(question), question=question) for question in questions]
        self._sampler = self._sampler or engines.make_sampler(folder.config)
        debates = rollouts.play_all([play(problem, rules) for problem in problems], self._sampler)
        config, equality = folder.config, tasks.make(folder.config.task).equality
        choose = protocol_of(config.debate).ballots
        votes = [voting.vote(d, config.vote, config.seed, equality, config.vote.over, choose) for d in debates]
        return [Answer(v.label, v.agreement, v, d) for v, d in zip(votes, debates, strict=True)]

    def close(self) -> None:
        """Free the model."""
        if self._sampler is not None:
            self._sampler.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_voting(config: RunConfig) -> None:
    """Refuse to answer questions by votes that a judge would have to prepare.

    Raises:
        UserError: says what to do.
    """
    if config.task.equality == "judge":
        raise UserError(
            "task.equality = judge compares answers in runs only, so that no further question can be put to the vote. "
            "Make a run with task.equality=embedding."
        )


def _digest(question: str) -> str:
    return hashlib.blake2b(question.encode(), digest_size=6).hexdigest()
