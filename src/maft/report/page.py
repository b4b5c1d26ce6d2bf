"""report.html: one page that needs nothing but itself."""

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from maft import store, transcript
from maft.answers import equivalent
from maft.evaluation.methods import names
from maft.evaluation.metrics import MethodResult
from maft.records import Debate, Problem
from maft.report import plots
from maft.report.data import interval, label_qualities, results
from maft.store import RunFolder

MAX_TRANSCRIPT = 6_000
"""Characters of a transcript that the page shows."""


class Read(NamedTuple):
    """A debate worth reading."""

    why: str
    title: str
    text: str


def write_page(folder: RunFolder) -> Path:
    """Write report.html and return its path; what an unfinished run does not have yet is left out."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("maft.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    found, qualities = results(folder), label_qualities(folder)
    manifest = folder.path / "manifest.json"
    page = environment.get_template("page.html.j2").render(
        name=folder.config.name,
        config=folder.config,
        finished=(folder.evaluation(folder.config.num_iterations) / "summary.json").exists(),
        headline=headline(found),
        results=found,
        interval=interval,
        accuracy_svg=plots.accuracy_curves(found) if found else None,
        qualities=qualities,
        label_svg=plots.label_curves(qualities) if qualities else None,
        examples=examples(folder),
        stages=stages(folder),
        reads=reads(folder),
        manifest=store.read_json(manifest) if manifest.exists() else None,
    )
    path = folder.path / "report.html"
    store.write_text(path, page)
    return path


def headline(found: list[MethodResult]) -> str | None:
    """Say in one sentence what the run gained, or None while it has not finetuned and evaluated anything."""
    by_name = {(result.iteration, result.method): result for result in found}
    last = max((result.iteration for result in found), default=0)
    before, after = by_name.get((0, "debate")), by_name.get((last, "maft"))
    if last == 0 or before is None or after is None or before.accuracy is None or after.accuracy is None:
        return None
    majority = next(result for result in found if result.iteration == 0 and plots.curve_of(result.method) == "majority")
    return (
        f"After {last} iteration{'s' if last > 1 else ''} the debate of the finetuned agents answers "
        f"{interval(after)} % of {after.n} held-out questions right. The untrained debate answered "
        f"{interval(before)} %, the untrained majority vote {interval(majority)} %."
    )


def examples(folder: RunFolder) -> list[tuple[int, str, dict[str, int]]]:
    """Return (iteration, agent, counts of kept and dropped responses)."""
    return [
        (number, agent, counts)
        for number in range(1, folder.config.num_iterations + 1)
        if folder.examples_summary(number).exists()
        for agent, counts in store.read_json(folder.examples_summary(number)).items()
    ]


def stages(folder: RunFolder) -> list[dict[str, Any]]:
    """Return seconds, calls and tokens of each stage of each iteration, over all starts of the run."""
    totals: dict[tuple[int, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in folder.events():
        if event["event"] in ("debated", "trained"):
            stage = {"train": "debate", "eval": "evaluate"}.get(event.get("stage", ""), "finetune")
            total = totals[event["iteration"], stage]
            total["seconds"] += event["seconds"]
            total["calls"] += event.get("calls", 0)
            total["tokens"] += (
                event.get("tokens", 0) + event.get("prompt_tokens", 0) + event.get("completion_tokens", 0)
            )
    order = ["debate", "finetune", "evaluate"]
    return [
        {"iteration": iteration, "stage": stage, **total}
        for (iteration, stage), total in sorted(totals.items(), key=lambda item: (item[0][0], order.index(item[0][1])))
    ]


def reads(folder: RunFolder) -> list[Read]:
    """Return a few debates to read: held-out ones of the last evaluation, and a training debate with its outcome."""
    found: list[Read] = []
    if not folder.problems("eval").exists():
        return found
    problems = {problem.id: problem for problem in store.read_records(folder.problems("eval"), Problem)}
    for number in range(folder.config.num_iterations, -1, -1):
        path = folder.evaluation(number) / "debates.jsonl"
        if (folder.evaluation(number) / "summary.json").exists():
            method = names(number, folder.config.debate.num_agents)[2]
            found += _held_out(store.read_records(path, Debate), problems, method)
            break
    if folder.votes(1).exists():
        debate = store.read_records(folder.debates(1), Debate)[0]
        text = transcript.find(folder, debate.problem_id, 1, "train")
        found.append(Read("a training debate, and who learns from it", debate.question, text[:MAX_TRANSCRIPT]))
    return found


def _held_out(debates: list[Debate], problems: dict[str, Problem], method: str) -> list[Read]:
    """Pick the first debate of each kind that is worth reading."""
    found: dict[str, Read] = {}
    for debate in debates:
        problem = problems[debate.problem_id]
        why = _kind(debate, problem.gold)
        if why is not None and why not in found:
            text = transcript.render(debate, problem, None, {})
            found[why] = Read(f"{method}: {why}", debate.question, text[:MAX_TRANSCRIPT])
    return list(found.values())


def _kind(debate: Debate, gold: str | None) -> str | None:
    if gold is None or debate.error is not None:
        return None if debate.error is None else "failed"
    right = [
        sum(turn.answer is not None and equivalent(turn.answer, gold) for turn in debate.round(number))
        for number in (1, -1)
    ]
    half = len(debate.round(1)) / 2
    if any(turn.answer is None for turn in debate.round(-1)):
        return "an answer could not be read"
    if right[0] < half < right[1]:
        return "corrected by the critics"
    if right[1] < half < right[0]:
        return "spoiled by the critics"
    if len({turn.answer for turn in debate.round(-1)}) == len(debate.round(-1)) > 1:
        return "split to the end"
    return "right from the start" if right[0] == right[1] == len(debate.round(1)) else None
