"""Bars of the page: what became of questions, answers and time, in proportion."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from maft.evaluation.flow import Flow
from maft.evaluation.reliability import Level
from maft.method.curate import CurateCounts
from maft.report.data import StageCost
from maft.report.page import duration

REASONS = {
    "first": "first answer is the label",
    "corrected": "corrected a wrong first answer",
    "kept": "kept a right first answer",
    "cut_for_mix": "agrees, left out for the mix",
    "over_limit": "agrees, left out for the limit",
    "cut": "agrees, cut at the token limit",
    "disagrees": "not the label",
    "unparsed": "could not be read",
    "low_agreement": "too little agreement",
    "no_answer": "no label",
    "tied": "a tie",
    "failed": "debate failed",
}
FLOW = {
    "stayed_right": "stayed right",
    "corrected": "wrong, then right",
    "spoiled": "right, then wrong",
    "stayed_wrong": "stayed wrong",
}
STAGES = ("debate", "finetune", "evaluate")


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


def reasons(counts: Iterable[Mapping[str, CurateCounts]]) -> dict[str, str]:
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
