"""report.html of a run."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from maft import files
from maft.diversity import measure as diversity
from maft.diversity.measures import collapsed
from maft.evaluation.learned import of_run, warnings
from maft.evaluation.metrics import MethodResult
from maft.evaluation.overlap import overlaps
from maft.evaluation.replay import Replayed, verdict
from maft.report import charts, data, debates, page, replays
from maft.report.charts import Chart
from maft.report.data import Evaluation
from maft.report.gains import gains
from maft.runs import status
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
REASONS = {
    "first": "first answer is the label",
    "corrected": "corrected a wrong first answer",
    "kept": "kept a right first answer",
    "dissenting": "not the label, learned as unwanted",
    "cut_for_mix": "agrees, left out for the mix",
    "over_limit": "agrees, left out for the limit",
    "not_drawn": "agrees, on a question of other agents",
    "cut": "agrees, cut at the token limit",
    "disagrees": "not the label",
    "unpaired": "no pair",
    "unparsed": "could not be read",
    "low_agreement": "too little agreement",
    "no_answer": "no label",
    "tied": "a tie",
    "failed": "debate failed",
}
"""What became of a response: what is learned first, then the rest by reason."""
FLOW = {
    "stayed_right": "stayed right",
    "corrected": "wrong, then right",
    "spoiled": "right, then wrong",
    "stayed_wrong": "stayed wrong",
}


def write_page(folder: RunFolder) -> Path:
    """Write report.html and return its path; what an unfinished run does not have yet is left out."""
    return page.write(folder.page, "run.html.j2", _content(folder))


def all_charts(folder: RunFolder, evaluations: Sequence[Evaluation], replayed: Sequence[Replayed]) -> list[Chart]:
    """Return the pictures of a run that have data."""
    labels = data.labels(folder)
    drawn = [
        charts.accuracy(data.results(folder)),
        charts.agents(data.agents(evaluations, folder.config.debate.num_agents)),
        replays.chart(replayed),
        charts.reliability(data.levels(evaluations)),
        charts.labels(labels),
        charts.votes(labels),
        *charts.diversity(diversity.measured(folder)),
    ]
    return [chart for chart in drawn if chart is not None]


def _content(folder: RunFolder) -> dict[str, Any]:
    config, results, labels = folder.config, data.results(folder), data.labels(folder)
    evaluations, examples, measured = data.evaluations(folder), data.examples(folder), diversity.measured(folder)
    replayed = replays.replays(evaluations, config)
    last = max((result.iteration for result in results), default=0)
    best = _best(results, last, config.debate.num_agents)
    by_vote = best is not None and best.method != "maft"
    costs = data.costs(folder)
    spent = {n: {cost.stage: cost.seconds for cost in of} for n, of in groupby(costs, lambda cost: cost.iteration)}
    top = labels[0].levels[0].votes if labels else 0
    counts = [count for by_agent in examples.values() for count in by_agent.values()]
    return {
        "config": config,
        "models": page.models(config),
        "stand_ins": data.stand_ins(config),
        "next_step": status.next_step(folder),
        "warnings": warnings(of_run(folder)),
        "methods": METHODS,
        "last": last,
        "ours": best,
        "by_vote": by_vote,
        "best_gains": gains([folder], vote=by_vote),
        "gains": gains([folder]),
        "results": {number: list(of) for number, of in groupby(results, lambda result: result.iteration)},
        "notes": data.notes(results),
        "charts": defaultdict(lambda: None, {chart.name: chart for chart in all_charts(folder, evaluations, replayed)}),
        "replayed": replayed,
        "verdict": verdict,
        "labels": labels,
        "agreement": {n: f"{n} of {top} agree" if n else "no label" for n in range(top + 1)},
        "questions_by_votes": [{level.votes: level.questions for level in of.levels} for of in labels],
        "examples": examples,
        "reasons": {name: text for name, text in REASONS.items() if any(getattr(count, name) for count in counts)},
        "flows": data.flows(evaluations),
        "flow_words": FLOW,
        "measured": measured,
        "overlaps": overlaps(folder),
        "collapsed": collapsed(measured),
        "costs": costs,
        "spent": spent,
        "longest": max((sum(of.values()) for of in spent.values()), default=0.0) or 1.0,
        "stage_words": {name: name for name in data.STAGES},
        "debates": debates.pack(folder, evaluations),
        "split": data.split(folder),
        "changed": page.changed_settings(config),
        "manifest": files.read_json(folder.manifest) if folder.manifest.exists() else None,
    }


def _best(results: Sequence[MethodResult], last: int, num_agents: int) -> MethodResult | None:
    """Return the better of debate and vote after the last iteration, the debate where they are equal."""
    names = ("maft", f"maft_majority@{num_agents}")
    ours = [r for r in results if r.iteration == last > 0 and r.method in names and r.accuracy is not None]
    return max(ours, key=lambda result: (result.accuracy, result.method == "maft"), default=None)
