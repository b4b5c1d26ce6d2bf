"""The numbers of a run, read from its folder once for tables, pages and exported files."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from maft import files
from maft.config import RunConfig
from maft.evaluation import flow, reliability, votes
from maft.evaluation.agents import AgentAccuracy, agent_accuracies
from maft.evaluation.flow import Flow
from maft.evaluation.labels import LabelQuality, label_quality
from maft.evaluation.methods import HeldOut
from maft.evaluation.metrics import MethodResult
from maft.evaluation.reliability import Level
from maft.evaluation.retention import label
from maft.files import Records
from maft.method.curate import CurateCounts
from maft.records import Problem, Vote
from maft.runs.folder import RunFolder, stage_of
from maft.tasks.base import normalised

STAGES = ("debate", "finetune", "evaluate")


class Evaluation(NamedTuple):
    """One society on the held-out questions."""

    iteration: int
    problems: Mapping[str, Problem]
    held: HeldOut


class Labels(NamedTuple):
    """The pseudo-labels of one iteration."""

    quality: LabelQuality
    levels: tuple[Level, ...]
    """By agreement, from all agents down to no label."""


class StageCost(NamedTuple):
    """What a stage of an iteration took, over all starts of the run."""

    iteration: int
    stage: str
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
    """How the questions were split, and how many are on both sides (none, in a sound run)."""

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
    summaries = (folder.results(number) for number in range(folder.config.num_iterations + 1))
    return [MethodResult.model_validate(row) for file in summaries if file.exists() for row in files.read_json(file)]


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the rows of `maft report --json`; those of `eval.also` name their task."""
    names = ("iteration", "method", "accuracy", "ci_low", "ci_high", "n", "unparsed", "calls", "tokens")

    def of(run: RunFolder, **more: str) -> list[dict[str, Any]]:
        return [{name: getattr(result, name) for name in names} | more for result in results(run)]

    others = [row for other in folder.others for row in of(other, task=label(other.config.task))]
    return of(folder) + [row for row in others if row["method"] in ("base", "maft_single")]


def notes(shown: Sequence[MethodResult]) -> list[str]:
    """Say how many held-out questions have no answer although every reply could be read."""
    failed = {result.iteration: result for result in shown if result.failed}
    return [
        *(f"Iteration {n}: {r.failed} of {r.n} debates failed, which counts as wrong." for n, r in failed.items()),
        *(
            f"Iteration {r.iteration}, {r.method}: {r.tied} of {r.n} votes are tied, which counts as wrong (vote.ties)."
            for r in shown
            if r.tied
        ),
    ]


def evaluations(folder: RunFolder) -> list[Evaluation]:
    """Return every finished evaluation, the untrained society's first."""
    done = [number for number in range(folder.config.num_iterations + 1) if folder.evaluated(number)]
    problems = votes.problems(folder, "eval") if done else {}
    return [Evaluation(number, problems, votes.held_out(folder, number)) for number in done]


def agents(done: Sequence[Evaluation], num_agents: int) -> list[AgentAccuracy]:
    """Return how often single generators and single critics are right, iteration by iteration."""
    return [
        agent
        for number, problems, held in done
        for agent in agent_accuracies(held.debates, problems, number, num_agents, held.grade)
    ]


def flows(done: Sequence[Evaluation]) -> list[Flow]:
    """Return what became of each agent's first answers, iteration by iteration."""
    return [one for number, problems, held in done for one in flow.flows(held.debates, problems, number, held.grade)]


def levels(done: Sequence[Evaluation]) -> dict[int, tuple[Level, ...]]:
    """Return how often the debates' answers are right by their votes, for each iteration."""
    top = max((reliability.most_ballots(held.votes.values()) for _, _, held in done), default=0)
    return {n: reliability.levels(held.votes.values(), problems, held.grade, top) for n, problems, held in done}


def labels(folder: RunFolder) -> list[Labels]:
    """Return how good the pseudo-labels of each finished vote were."""
    paths = (folder.votes(number) for number in range(1, folder.config.num_iterations + 1))
    counted = [files.read_records(path, Vote) for path in paths if path.exists()]
    problems, grade = votes.problems(folder, "train") if counted else {}, votes.train_grade(folder.config)
    top = max(map(reliability.most_ballots, counted), default=0)
    return [Labels(label_quality(of, problems, grade), reliability.levels(of, problems, grade, top)) for of in counted]


def examples(folder: RunFolder) -> dict[int, dict[str, CurateCounts]]:
    """Return what became of each agent's responses, by iteration and agent."""
    return {
        number: {agent: CurateCounts.model_validate(counts) for agent, counts in files.read_json(summary).items()}
        for number in range(1, folder.config.num_iterations + 1)
        if (summary := folder.examples_summary(number)).exists()
    }


def costs(folder: RunFolder) -> list[StageCost]:
    """Return time, calls and tokens of each stage of each iteration, from events.jsonl."""
    names = ("seconds", "calls", "prompt_tokens", "completion_tokens", "tokens")
    totals: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for event in folder.events():
        if event["event"] in ("debated", "trained"):
            totals[event["iteration"], stage_of(event)].update({name: event.get(name, 0) for name in names})
    order = sorted(totals, key=lambda key: (key[0], STAGES.index(key[1])))
    return [StageCost(*key, *(totals[key][name] for name in names)) for key in order]


def split(folder: RunFolder) -> Split | None:
    """Count the questions of both sides and those on both; None before they are written."""
    if not folder.problems("eval").exists():
        return None
    train, held_out = (list(Records(folder.problems(side), Problem)) for side in ("train", "eval"))
    return Split(
        Questions(len(train), sum(problem.gold is not None for problem in train)),
        Questions(len(held_out), sum(problem.gold is not None for problem in held_out)),
        len({normalised(problem.question) for problem in train} & {normalised(p.question) for p in held_out}),
    )
