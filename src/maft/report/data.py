"""The numbers of a run, read off its folder."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from maft import files, tasks
from maft.config import RunConfig
from maft.evaluation.labels import LabelQuality, label_quality
from maft.evaluation.metrics import MethodResult, wilson
from maft.evaluation.over_iterations import accuracy_interval
from maft.evaluation.reliability import Level, levels, most_ballots
from maft.files import Records
from maft.method import learners
from maft.method.curate import CurateCounts
from maft.records import Problem, Vote
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.tasks.base import Grade, normalised


class Labels(NamedTuple):
    """The pseudo-labels of one iteration."""

    quality: LabelQuality
    accuracy_interval: tuple[float, float] | None
    """95 % interval of `quality.accuracy`."""
    coverage_interval: tuple[float, float]
    levels: tuple[Level, ...]
    """By agreement, from all agents down to no label."""


class StageCost(NamedTuple):
    """What a stage of an iteration took, over all starts of the run."""

    iteration: int
    stage: Literal["debate", "finetune", "evaluate"]
    seconds: float
    calls: int
    prompt_tokens: int
    generated_tokens: int
    trained_tokens: int


class Questions(NamedTuple):
    """One side of the split."""

    num: int
    with_gold: int


class Split(NamedTuple):
    """How the questions were split, and how many are on both sides: that must be none."""

    train: Questions
    eval: Questions
    shared_texts: int


def stand_ins(config: RunConfig) -> str:
    """Say what was run instead of a model and a trainer; empty if both were real."""
    parts = []
    if config.engine.sampler == "scripted":
        parts.append("No model was run: the replies are random guesses from a script (engine.sampler = scripted).")
    if config.engine.trainer == "null":
        parts.append("Nothing was trained (engine.trainer = null).")
    return " ".join([*parts, "These numbers say nothing about the method."] if parts else [])


def results(folder: RunFolder) -> list[MethodResult]:
    """Return the result of every method that has been evaluated, iteration by iteration."""
    return [
        MethodResult.model_validate(row)
        for number in range(folder.config.num_iterations + 1)
        if (summary := folder.results(number)).exists()
        for row in files.read_json(summary)
    ]


def notes(found: Sequence[MethodResult]) -> list[str]:
    """Say how many held-out questions have no answer for another reason than that none could be read."""
    failed = {result.iteration: result for result in found if result.failed}
    return [
        *(f"Iteration {n}: {r.failed} of {r.n} debates failed, which counts as wrong." for n, r in failed.items()),
        *(
            f"Iteration {r.iteration}, {r.method}: {r.tied} of {r.n} votes are tied, which counts as wrong (vote.ties)."
            for r in found
            if r.tied
        ),
    ]


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the rows of `maft report --json`."""
    names = ("iteration", "method", "accuracy", "ci_low", "ci_high", "n", "unparsed", "calls", "tokens")
    return [{name: getattr(result, name) for name in names} for result in results(folder)]


def labels(folder: RunFolder) -> list[Labels]:
    """Return how good the pseudo-labels of each finished vote were."""
    if not folder.problems("train").exists():
        return []
    problems = {problem.id: problem for problem in files.read_records(folder.problems("train"), Problem)}
    grade = cache(tasks.make(folder.config.task).grade)
    numbers = range(1, folder.config.num_iterations + 1)
    found = [Records(folder.votes(n), Vote) for n in numbers if folder.votes(n).exists()]
    most = max(map(most_ballots, found), default=0)
    return [_labels(list(votes), problems, grade, most) for votes in found]


def _labels(votes: Sequence[Vote], problems: Mapping[str, Problem], grade: Grade, most: int) -> Labels:
    quality = label_quality(votes, problems, grade)
    return Labels(
        quality=quality,
        accuracy_interval=accuracy_interval(quality, votes, problems, grade),
        coverage_interval=wilson(quality.coverage, quality.num_problems),
        levels=levels(votes, problems, grade, most),
    )


def examples(folder: RunFolder) -> dict[int, dict[str, CurateCounts]]:
    """Return what became of each agent's responses, by iteration and agent."""
    return {
        number: {agent: CurateCounts.model_validate(counts) for agent, counts in files.read_json(summary).items()}
        for number in range(1, folder.config.num_iterations + 1)
        if (summary := folder.examples_summary(number)).exists()
    }


def costs(folder: RunFolder) -> list[StageCost]:
    """Return time, calls and tokens of each stage of each iteration, as events.jsonl has them."""
    totals: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for event in folder.events():
        if event["event"] in ("debated", "trained"):
            stage = {"train": "debate", "eval": "evaluate"}.get(event.get("stage", ""), "finetune")
            numbers = {name: value for name, value in event.items() if isinstance(value, int | float)}
            totals[event["iteration"], stage].update(numbers)
    order: tuple[Literal["debate", "finetune", "evaluate"], ...] = ("debate", "finetune", "evaluate")
    return [
        StageCost(
            iteration,
            stage,
            totals[iteration, stage]["seconds"],
            totals[iteration, stage]["calls"],
            totals[iteration, stage]["prompt_tokens"],
            totals[iteration, stage]["completion_tokens"],
            totals[iteration, stage]["tokens"],
        )
        for iteration in range(folder.config.num_iterations + 1)
        for stage in order
        if (iteration, stage) in totals
    ]


def split(folder: RunFolder) -> Split | None:
    """Count the questions of both sides and those on both; None before they are written."""
    sides = {side: folder.problems(side) for side in ("train", "eval")}
    if not all(file.exists() for file in sides.values()):
        return None
    train, held_out = (files.read_records(file, Problem) for file in sides.values())
    return Split(
        Questions(len(train), sum(problem.gold is not None for problem in train)),
        Questions(len(held_out), sum(problem.gold is not None for problem in held_out)),
        len({normalised(problem.question) for problem in train} & {normalised(p.question) for p in held_out}),
    )


def owed(folder: RunFolder) -> str | None:
    """Say what an unfinished run has to do next, or None when it is finished."""
    if not folder.problems("eval").exists():
        return "the questions"
    sides = {side: files.num_lines(folder.problems(side)) for side in ("train", "eval")}
    for number in range(folder.config.num_iterations + 1):
        found = _owed_of_iteration(folder, number, sides)
        if found is not None:
            return f"iteration {number}, {found}" if number else f"the untrained society, {found}"
    return None


def _owed_of_iteration(folder: RunFolder, number: int, sides: Mapping[str, int]) -> str | None:
    if number > 0:
        if not folder.votes(number).exists():
            return f"debate ({files.num_lines(folder.debates(number))} of {sides['train']} questions done)"
        if not folder.examples_summary(number).exists():
            return "choice of examples"
        all_agents, missing = learners(folder.config), societies.missing(folder, number)
        if missing:
            return f"finetuning ({len(all_agents) - len(missing)} of {len(all_agents)} agents done)"
    if not folder.evaluated(number):
        done = files.num_lines(folder.held_out_debates(number))
        return f"evaluation ({done} of {sides['eval']} questions done)"
    return None
