"""Curves as SVG that takes its text colour from the page, so that they are legible in the light and in the dark."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from maft.evaluation.labels import LabelQuality
from maft.evaluation.metrics import MethodResult

COLORS = {"debate": "#d1495b", "majority": "#2f8f9d", "single": "#8d7bc4", "labels": "#c98a1b", "coverage": "#6b8f4e"}
_INK = "#010203"  # stands for the page's text colour until the SVG is written


def curve_of(method: str) -> str:
    """Return the curve that a method's results belong to.

    >>> [curve_of(method) for method in ("base", "maft_majority@3", "maft")]
    ['single', 'majority', 'debate']
    """
    if "majority" in method:
        return "majority"
    return "single" if method in ("base", "maft_single") else "debate"


def accuracy_curves(results: Sequence[MethodResult]) -> str:
    """Draw accuracy over iterations with 95 % intervals, one curve each for single answers, votes and debates."""
    curves: dict[str, list[MethodResult]] = {"debate": [], "majority": [], "single": []}
    for result in results:
        if result.accuracy is not None:
            curves[curve_of(result.method)].append(result)
    figure, axes = _axes("accuracy on held-out questions")
    for shift, (name, points) in zip((0.0, 0.03, -0.03), curves.items(), strict=True):
        if points:
            x = [point.iteration + shift for point in points]
            y = [point.accuracy or 0.0 for point in points]
            low = [(point.accuracy or 0.0) - (point.ci_low or 0.0) for point in points]
            high = [(point.ci_high or 0.0) - (point.accuracy or 0.0) for point in points]
            label = {"debate": "debate (all rounds)", "majority": "vote over first answers", "single": "single answer"}
            axes.errorbar(x, y, [low, high], color=COLORS[name], marker="o", capsize=4, lw=2, label=label[name])
    return _finish(figure, axes, sorted({result.iteration for result in results}))


def label_curves(qualities: Sequence[LabelQuality]) -> str:
    """Draw how often pseudo-labels were right, and on what share of the questions they were trained on."""
    figure, axes = _axes("share")
    x = [quality.iteration for quality in qualities]
    lines: Mapping[str, tuple[str, list[float | None]]] = {
        "labels": ("right, of those trained on", [quality.accuracy for quality in qualities]),
        "coverage": ("trained on, of all questions", [quality.coverage for quality in qualities]),
    }
    for name, (label, y) in lines.items():
        if None not in y:
            axes.plot(x, y, color=COLORS[name], marker="o", lw=2, label=label)
    return _finish(figure, axes, x)


def _axes(title: str) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(ylim=(0, 1), xlabel="iteration", ylabel=title)
    axes.grid(axis="y", color=_INK, alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _finish(figure: Any, axes: Any, ticks: Sequence[int]) -> str:
    import matplotlib

    axes.set_xticks(list(ticks))
    axes.set_xlim(min(ticks, default=0) - 0.25, max(ticks, default=1) + 0.25)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.legend(loc="lower right", frameon=False, labelcolor=_INK)
    out = io.StringIO()
    # Names inside the SVG come from a fixed salt and text stays text: the same numbers give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "maft", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")
