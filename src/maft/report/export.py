"""The numbers of a report as CSV and JSON, and its pictures as PNG and SVG."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maft import files
from maft.comparison import Comparison, Result
from maft.diversity import measure as diversity
from maft.errors import DataError
from maft.report import comparison_page, data, plots, replays, run_page
from maft.report.charts import Chart
from maft.report.gains import gains
from maft.runs.folder import RunFolder

Rows = Sequence[Mapping[str, Any]]


def export_run(folder: RunFolder, target: Path) -> list[Path]:
    """Write tables and pictures of a run, and return the files."""
    evaluations = data.evaluations(folder)
    replayed = replays.replays(evaluations, folder.config)
    tables: dict[str, Rows] = {
        "results": [{**row.model_dump(), "tokens": row.tokens} for row in data.results(folder)],
        "gains": [
            {"over": over, "n": gap.n, "won": won, "lost": lost}
            | {"difference": gap.mean, "low": gap.low, "high": gap.high}
            for over, gap, won, lost, _ in gains([folder])
        ],
        "agents": _rows(data.agents(evaluations, folder.config.debate.num_agents)),
        "flow": _rows(data.flows(evaluations)),
        "reliability": [
            {"iteration": iteration, **level._asdict()}
            for iteration, levels in data.levels(evaluations).items()
            for level in levels
        ],
        "replay": [
            {"iteration": one.iteration, "rule": rule.name, **rule.right.model_dump(), "tokens": rule.tokens}
            for one in replayed
            for rule in one.rules
        ],
        "labels": [quality.model_dump() for quality, _ in data.labels(folder)],
        "examples": [
            {"iteration": iteration, "agent": agent, **counts.model_dump()}
            for iteration, agents in data.examples(folder).items()
            for agent, counts in agents.items()
        ],
        "diversity": [measured.model_dump() for measured in diversity.measured(folder)],
        "costs": _rows(data.costs(folder)),
    }
    return _write(tables, run_page.all_charts(folder, evaluations, replayed), target)


def export_comparison(comparison: Comparison, results: Sequence[Result], target: Path) -> list[Path]:
    """Write tables and pictures of a comparison, and return the files."""
    parts = ("flows", "retention", "predictions")

    def rows_of(part: str) -> Rows:
        return [
            {"method": row.method, "iteration": row.iteration, **one.model_dump()}
            for row in results
            for one in getattr(row, part)
        ]

    whole = [row.model_dump(exclude={*parts, "curve"}) | {"parsed": 1 - row.unparsed / row.n} for row in results]
    tables: dict[str, Rows] = {"methods": whole} | {part: rows_of(part) for part in parts}
    return _write(tables, comparison_page.all_charts(comparison, results), target)


def _rows(tuples: Iterable[Any]) -> Rows:
    return [row._asdict() for row in tuples]


def _write(tables: Mapping[str, Rows], charts: Sequence[Chart], target: Path) -> list[Path]:
    if target.exists() and not target.is_dir():
        raise DataError(f"{target} is a file. Give --export the name of a folder; it is made if it does not exist.")
    target.mkdir(parents=True, exist_ok=True)
    curves = [
        {"chart": chart.name, "curve": curve.label, "unit": chart.unit, **point._asdict()}
        for chart in charts
        for curve in chart.curves
        for point in curve.points
    ]
    written = []
    for name, rows in {**tables, "curves": curves}.items():
        if rows:
            written += [target / f"{name}.csv", target / f"{name}.json"]
            files.write_text(written[-2], _csv([_flat(row) for row in rows]))
            files.write_json(written[-1], rows)
    return written + [file for chart in charts for file in plots.for_paper(chart, target)]


def _csv(rows: Rows) -> str:
    names = dict.fromkeys(name for row in rows for name in row)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without rows in it.

    >>> _flat({"a": 1, "b": {"c": 2, "d": None}})
    {'a': 1, 'b.c': 2, 'b.d': None}
    """
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": one for inner, one in value.items()}
        else:
            flat[name] = value
    return flat
