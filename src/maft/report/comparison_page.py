"""report.html of a comparison."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from maft import comparison as comparison_
from maft.comparison import ARMS, Comparison, Result, preregister
from maft.evaluation.paired import Difference
from maft.report import charts, data, page, replays
from maft.report.charts import Chart
from maft.runs import status

UNTRAINED = {
    "base": "one answer of the untrained model",
    "majority": "vote over first answers, untrained",
    "majority@budget": "vote at the tokens of the debate, untrained",
    "debate": "all rounds, untrained",
}
PARTS = {
    "_single": "its generators, one answer each",
    "_majority@budget": "vote over its first answers, at equal tokens",
    "_majority": "vote over its first answers",
    "_best_member": "the generator that agrees most with the votes, one answer",
    "_debate": "as every agent of a debate",
}


class Line(NamedTuple):
    """A row of the table as the page shows it."""

    row: Result
    what: str
    """In a few words."""
    is_part: bool
    """Whether it is shown only if asked for."""


def write_page(comparison: Comparison, results: Sequence[Result]) -> Path:
    """Write report.html of a comparison, finished or not, from its rows, and return its path."""
    return page.write(comparison.path / "report.html", "comparison.html.j2", _content(comparison, results))


def all_charts(comparison: Comparison, results: Sequence[Result]) -> list[Chart]:
    """Return accuracy over iterations and against tokens, and pass@k with the vote of any k."""
    curves, n = comparison_.over_iterations(comparison, results), comparison.config.debate.num_agents
    own, at_budget = comparison.reference, [f"{name}_majority@budget" for name in ("single_agent_ft", "majority_ft")]
    of_reference = [own, f"{own}_majority@{n}", f"{own}_single", "single_agent_ft", f"{own}_majority@budget"]
    shown = [*of_reference, "single_agent_ft_debate", *at_budget[1:]]
    drawn = [charts.methods(curves, shown), charts.budget(curves, [*shown, *at_budget[:1]]), replays.room(results)]
    return [chart for chart in drawn if chart is not None]


def _content(comparison: Comparison, results: Sequence[Result]) -> dict[str, Any]:
    last = max((row.iteration for row in results), default=0)
    gaps = [row.difference for row in results if row.difference is not None]
    against = results[0].against if results else comparison.against
    lines = [_line(row, comparison.reference) for row in results]
    return {
        "config": comparison.config,
        "models": page.models(comparison.config),
        "stand_ins": data.stand_ins(comparison.config),
        "comparison": comparison,
        "found": results,
        "last": last,
        "has_overlap": any(row.overlap for row in results),
        "lines": {number: list(of) for number, of in groupby(lines, lambda line: line.row.iteration)},
        "reach": max([0.01, *(max(abs(gap.low), abs(gap.high)) for gap in gaps)]),
        "against": against,
        "ours": next((row for row in results if row.iteration == last > 0 and row.method == against), None),
        "cards": _cards(comparison, {row.method: row for row in results if row.iteration == last}),
        "charts": defaultdict(lambda: None, {chart.name: chart for chart in all_charts(comparison, results)}),
        "unfinished": _unfinished(comparison),
        "weak": comparison_.weak_rivals(comparison),
        "registered": preregister.registered(comparison),
        "remarks": preregister.remarks(comparison),
        "outcomes": [one for row in results for one in row.predictions],
        "flows": [row for row in results if row.flows and row.method in {"debate", *ARMS}],
        "formats": [row for row in results if row.accuracy_lenient is not None and row.accuracy is not None],
        "retained": [(row.method, one) for row in results for one in row.retention],
        "changed": _changed(comparison),
    }


def _changed(comparison: Comparison) -> dict[str, str]:
    """Return the settings that are not the default, and those of an adopted reference where they are others."""
    changed = page.changed_settings(comparison.config)
    for key, (own, of_others) in comparison.own_settings.items():
        changed[key] = f"{changed.get(key, of_others)} ({comparison.reference}: {own})"
    return changed


def _line(row: Result, reference: str) -> Line:
    if row.iteration == 0:
        return Line(row, UNTRAINED.get(row.method, UNTRAINED["majority"]), False)
    if row.method in ARMS:
        return Line(row, ARMS[row.method].what, False)
    main = (
        "single_agent_ft_debate",
        *(f"{name}_majority@budget" for name in ("single_agent_ft", "majority_ft", "distil")),
    )
    is_main = row.method in main or row.method.startswith(tuple(f"{reference}{part}" for part in PARTS))
    return Line(row, next(words for part, words in PARTS.items() if part in row.method), not is_main)


def _cards(comparison: Comparison, rows: Mapping[str, Result]) -> list[tuple[str, Difference]]:
    """Return by how much the reference beats what a society must beat to be worth its price, as far as compared."""
    own = comparison.reference
    others = {
        f"a vote of {own}'s first answers at the same tokens": f"{own}_majority@budget",
        "a vote of one model finetuned on debates, at the same tokens": "single_agent_ft_majority@budget",
        "a vote of one model finetuned on its own votes, at the same tokens": "majority_ft_majority@budget",
        "a vote of the one model that was taught by the society, at the same tokens": "distil_majority@budget",
        "one model finetuned on debates, alone": "single_agent_ft",
        "one model finetuned on debates, debating with itself": "single_agent_ft_debate",
    }
    gaps = [(over, rows[name].difference) for over, name in others.items() if name in rows]
    return [
        (over, gap.model_copy(update={"mean": -gap.mean, "low": -gap.high, "high": -gap.low}))
        for over, gap in gaps
        if gap is not None
    ]


def _unfinished(comparison: Comparison) -> list[str]:
    """Return the methods that are not finished for every seed."""

    def finished(name: str, seed: int) -> bool:
        return comparison.begun(ARMS[name], seed) and status.complete(comparison.folder(ARMS[name], seed))

    return [name for name in comparison.methods if not all(finished(name, seed) for seed in comparison.seeds)]
