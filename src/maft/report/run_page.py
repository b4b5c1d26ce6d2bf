"""report.html of a run."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maft import files
from maft.diversity import measure as diversity
from maft.diversity.measures import collapsed
from maft.evaluation.learned import of_run, warnings
from maft.evaluation.metrics import MethodResult
from maft.report import bars, charts, data, debates, gains, held_out, page
from maft.report.charts import Chart
from maft.report.held_out import Evaluation
from maft.runs.folder import RunFolder

METHODS = {
    "base": "one answer of one untrained agent",
    "majority": "vote over the first answers of untrained agents",
    "majority@budget": "vote over as many first answers as cost the tokens of the debate",
    "debate": "all rounds, untrained agents, vote",
    "maft_single": "one answer of one finetuned generator",
    "maft_majority": "vote over the first answers of finetuned generators",
    "maft_majority@budget": "vote over as many first answers as cost the tokens of the debate",
    "maft": "all rounds, finetuned agents, vote",
}


def write_page(folder: RunFolder) -> Path:
    """Write report.html and return its path; what an unfinished run does not have yet is left out."""
    return page.write(folder.page, "run.html.j2", _content(folder))


def all_charts(folder: RunFolder, evaluations: Sequence[Evaluation]) -> list[Chart]:
    """Return every picture of a run for which there is something to draw."""
    labels = data.labels(folder)
    drawn = [
        charts.accuracy(data.results(folder)),
        charts.agents(held_out.agents(evaluations)),
        charts.reliability(held_out.levels(evaluations)),
        charts.labels(labels),
        charts.votes(labels),
        *charts.diversity(diversity.measured(folder)),
    ]
    return [chart for chart in drawn if chart is not None]


def _content(folder: RunFolder) -> dict[str, Any]:
    found, labels, evaluations = data.results(folder), data.labels(folder), held_out.evaluations(folder)
    examples, costs = data.examples(folder), data.costs(folder)
    measured = diversity.measured(folder)
    manifest = folder.manifest
    last = max((result.iteration for result in found), default=0)
    best = _best(found, last, folder.config.debate.num_agents)
    by_vote = best is not None and best.method != "maft"
    return {
        "config": folder.config,
        "models": page.models(folder.config),
        "stand_ins": data.stand_ins(folder.config),
        "owed": data.owed(folder),
        "warnings": warnings(of_run(folder)),
        "methods": METHODS,
        "last": last,
        "ours": best,
        "by_vote": by_vote,
        "best_gains": gains.gains(folder, vote=by_vote),
        "gains": gains.gains(folder),
        "results": _by_iteration(found),
        "notes": data.notes(found),
        "charts": defaultdict(lambda: None, {chart.name: chart for chart in all_charts(folder, evaluations)}),
        "labels": labels,
        "agreement": [bars.level_bar(f"Iteration {one.quality.iteration}", one.levels) for one in labels],
        "examples": {number: list(map(bars.example_bar, of, of.values())) for number, of in examples.items()},
        "counts": examples,
        "reasons": bars.reasons(examples.values()),
        "level_part": bars.level_part,
        "flows": [(flow, bars.flow_bar(flow)) for flow in held_out.flows(evaluations)],
        "flow_words": bars.FLOW,
        "measured": measured,
        "collapsed": collapsed(measured),
        "costs": costs,
        "cost_bars": bars.cost_bars(costs),
        "stages": bars.STAGES,
        "debates": debates.pack(folder, evaluations),
        "split": data.split(folder),
        "changed": page.changed_settings(folder.config),
        "manifest": files.read_json(manifest) if manifest.exists() else None,
    }


def _best(found: Sequence[MethodResult], last: int, num_agents: int) -> MethodResult | None:
    """Return the better of debate and vote after the last iteration, the debate where they are equal."""
    names = ("maft", f"maft_majority@{num_agents}")
    ours = [one for one in found if one.iteration == last > 0 and one.method in names and one.accuracy is not None]
    return max(ours, key=lambda one: (one.accuracy, one.method == "maft"), default=None)


def _by_iteration(found: Sequence[MethodResult]) -> dict[int, list[MethodResult]]:
    grouped: dict[int, list[MethodResult]] = {}
    for result in found:
        grouped.setdefault(result.iteration, []).append(result)
    return grouped
