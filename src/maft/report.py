"""A run folder as a table, as rows for other programs, and as a page."""

from pathlib import Path
from typing import Any

from maft import store
from maft.evaluation.metrics import MethodResult
from maft.store import RunFolder


def results(folder: RunFolder) -> list[MethodResult]:
    """Return the result of every method that has been evaluated, iteration by iteration."""
    return [
        MethodResult.model_validate(row)
        for number in range(folder.config.num_iterations + 1)
        if (summary := folder.evaluation(number) / "summary.json").exists()
        for row in store.read_json(summary)
    ]


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the rows of `maft report --json`."""
    return [
        {
            "iteration": result.iteration,
            "method": result.method,
            "accuracy": result.accuracy,
            "ci_low": result.ci_low,
            "ci_high": result.ci_high,
            "n": result.n,
            "unparsed": result.unparsed,
            "calls": result.calls,
            "tokens": result.tokens,
        }
        for result in results(folder)
    ]


def write_page(folder: RunFolder) -> Path:
    """Write report.html and return its path."""
    raise AssertionError
