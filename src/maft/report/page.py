"""report.html: one page that needs nothing but itself."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maft import config as config_
from maft import store, transcript
from maft.config import RunConfig, TaskConfig
from maft.curate import CurateCounts
from maft.evaluation.flow import Flow
from maft.evaluation.metrics import MethodResult
from maft.report import data, gains, plots, reading
from maft.report.data import Level, StageCost
from maft.store import RunFolder


class Part(NamedTuple):
    """A piece of a bar."""

    style: str
    """Its classes in the page, which give it a colour."""
    words: str
    """What it stands for."""
    size: float
    text: str
    """What is written on it."""
    percent: int = 100
    """How strong the colour is."""


class Bar(NamedTuple):
    """A bar, in proportion to others beside it."""

    label: str
    parts: tuple[Part, ...]
    note: str
    """What is written beside it."""
    share: float = 1.0
    """Its length, as a share of the longest."""


METHODS = {
    "base": "one answer of one untrained agent",
    "majority": "vote over the first answers of untrained agents",
    "debate": "all rounds, untrained agents, vote",
    "maft_single": "one answer of one finetuned generator",
    "maft_majority": "vote over the first answers of finetuned generators",
    "maft": "all rounds, finetuned agents, vote",
}

REASONS = {
    "first": "first answer is the label",
    "corrected": "corrected a wrong first answer",
    "kept": "kept a right first answer",
    "cut_for_mix": "agrees, left out for the mix",
    "over_limit": "agrees, left out for the limit",
    "disagrees": "not the label",
    "unparsed": "could not be read",
    "low_agreement": "too little agreement",
    "no_answer": "no label",
    "failed": "debate failed",
}
FLOW = {
    "stayed_right": "stayed right",
    "corrected": "wrong, then right",
    "spoiled": "right, then wrong",
    "stayed_wrong": "stayed wrong",
}
STAGES = ("debate", "finetune", "evaluate")


def write_page(folder: RunFolder) -> Path:
    """Write report.html and return its path; what an unfinished run does not have yet is left out."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("maft.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "safe_text": transcript.safe,
        "percent": percent,
        "points": points,
        "number": lambda value: f"{value:,.0f}",
        "duration": duration,
    }
    path = folder.path / "report.html"
    store.write_text(path, environment.get_template("page.html.j2").render(_content(folder)))
    return path


def _content(folder: RunFolder) -> dict[str, Any]:
    found, labels = data.results(folder), data.labels(folder)
    examples, costs = data.examples(folder), data.costs(folder)
    manifest = folder.path / "manifest.json"
    last = max((result.iteration for result in found), default=0)
    return {
        "config": folder.config,
        "owed": data.owed(folder),
        "methods": METHODS,
        "last": last,
        "ours": next((result for result in found if result.iteration == last > 0 and result.method == "maft"), None),
        "gains": gains.gains(folder),
        "results": _by_iteration(found),
        "accuracy_svg": plots.accuracy_curves(found),
        "labels": labels,
        "label_svg": plots.label_curves(labels),
        "agreement": [level_bar(f"Iteration {found.quality.iteration}", found.levels) for found in labels],
        "examples": {number: list(map(example_bar, agents, agents.values())) for number, agents in examples.items()},
        "counts": examples,
        "reasons": _reasons(examples.values()),
        "level_part": level_part,
        "flows": [(flow, flow_bar(flow)) for flow in data.flows(folder)],
        "flow_words": FLOW,
        "who": transcript.who,
        "costs": costs,
        "cost_bars": cost_bars(costs),
        "stages": STAGES,
        "held_out": reading.held_out(folder),
        "training": reading.training(folder),
        "split": data.split(folder),
        "changed": changed_settings(folder.config),
        "manifest": store.read_json(manifest) if manifest.exists() else None,
    }


def _by_iteration(found: Sequence[MethodResult]) -> dict[int, list[MethodResult]]:
    grouped: dict[int, list[MethodResult]] = {}
    for result in found:
        grouped.setdefault(result.iteration, []).append(result)
    return grouped


def _reasons(counts: Iterable[Mapping[str, CurateCounts]]) -> dict[str, str]:
    """Return the reasons that occur at all, with their wording."""
    found = [count for by_agent in counts for count in by_agent.values()]
    return {name: text for name, text in REASONS.items() if any(getattr(count, name) for count in found)}


def level_bar(label: str, levels: Sequence[Level]) -> Bar:
    """Return the votes of an iteration as a bar, from full agreement down to no label."""
    num_ballots, total = max(level.votes for level in levels), sum(level.questions for level in levels)
    parts = (level_part(level.votes, num_ballots, level.questions, total) for level in levels if level.questions)
    return Bar(label, tuple(parts), f"of {total}")


def level_part(votes: int, num_ballots: int, questions: int = 0, total: int = 1) -> Part:
    """Return the piece of a bar for questions on which so many answers agree."""
    text = _number(questions, total)
    if votes == 0:
        return Part("no_answer", "no label", questions, text)
    percent = 15 + 85 * votes // num_ballots
    return Part(
        f"level{' strong' if percent >= 60 else ''}", f"{votes} of {num_ballots} agree", questions, text, percent
    )


def _number(size: int, total: int) -> str:
    """Return a number where there is room for it."""
    return str(size) if size >= 0.06 * total else ""


def flow_bar(flow: Flow) -> Bar:
    """Return what became of an agent's first answers as a bar."""
    sizes = {name: int(getattr(flow, name)) for name in FLOW}
    total = sum(sizes.values())
    parts = (Part(name, FLOW[name], size, _number(size, total)) for name, size in sizes.items() if size)
    return Bar(f"agent {flow.agent}", tuple(parts), f"{flow.corrected - flow.spoiled:+d}")


def example_bar(agent: str, counts: CurateCounts) -> Bar:
    """Return what became of an agent's responses as a bar: what it learns from first, then the rest by reason."""
    values = {name: int(getattr(counts, name)) for name in REASONS}
    total = sum(values.values())
    parts = (Part(name, REASONS[name], size, _number(size, total)) for name, size in values.items() if size)
    return Bar(agent.replace("_", " "), tuple(parts), f"{counts.examples} examples")


def cost_bars(costs: Sequence[StageCost]) -> list[Bar]:
    """Return the time of each iteration as a bar, all on one scale."""
    seconds = {cost.iteration: 0.0 for cost in costs}
    for cost in costs:
        seconds[cost.iteration] += cost.seconds
    longest = max(seconds.values(), default=0.0) or 1.0
    return [
        Bar(
            f"Iteration {number}" if number else "Untrained",
            tuple(
                Part(cost.stage, f"{cost.stage} {duration(cost.seconds)}", cost.seconds, "")
                for cost in costs
                if cost.iteration == number and cost.seconds
            ),
            duration(total),
            total / longest,
        )
        for number, total in seconds.items()
    ]


def changed_settings(config: RunConfig) -> dict[str, str]:
    """Return the settings that are not the default, by dotted key, as they are written in a config."""
    default = RunConfig(task=TaskConfig(name=config.task.name))
    changed = {key: value for key, (_, value) in config_.differences(default, config).items()}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in changed.items()}


def percent(share: float | None) -> str:
    """Return a share in percent with one digit; nothing for None.

    >>> percent(0.7291), percent(None)
    ('72.9', '')
    """
    return "" if share is None else f"{100 * share:.1f}"


def points(difference: float) -> str:
    """Return a difference of shares in points, with its sign.

    >>> points(0.383), points(-0.02), points(0.0001)
    ('+38.3', '−2.0', '0.0')
    """
    text = f"{100 * abs(difference):.1f}"
    return text if text == "0.0" else f"{'+' if difference > 0 else '−'}{text}"


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> duration(0.4), duration(75), duration(8000)
    ('0.4 s', '1 min 15 s', '2 h 13 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
