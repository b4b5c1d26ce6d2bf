"""Curves as SVG that takes its colours from the page, so that they are legible in the light and in the dark."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from maft.evaluation.metrics import MethodResult
from maft.report.data import Labels

INK = {  # what matplotlib draws with, and what the page puts in its place
    "#010101": "currentColor",
    "#020202": "var(--debate)",
    "#030303": "var(--majority)",
    "#040404": "var(--single)",
    "#050505": "var(--right)",
    "#060606": "var(--coverage)",
}
_TEXT, _DEBATE, _MAJORITY, _SINGLE, _RIGHT, _COVERAGE = INK


class Point(NamedTuple):
    """A share with its 95 % interval at an iteration."""

    iteration: int
    share: float
    low: float
    high: float


class Curve(NamedTuple):
    """Points that are joined by a line."""

    label: str
    color: str
    marker: str
    points: Sequence[Point]


def curve_of(method: str) -> str:
    """Return the curve that a method's results belong to.

    >>> [curve_of(method) for method in ("base", "maft_majority@3", "maft")]
    ['single', 'majority', 'debate']
    """
    if "majority" in method:
        return "majority"
    return "single" if method in ("base", "maft_single") else "debate"


def accuracy_curves(results: Sequence[MethodResult]) -> str | None:
    """Draw accuracy over iterations with 95 % intervals: debates, votes over first answers, single answers."""
    points: dict[str, list[Point]] = {"debate": [], "majority": [], "single": []}
    for result in results:
        if result.accuracy is not None and result.ci_low is not None and result.ci_high is not None:
            point = Point(result.iteration, result.accuracy, result.ci_low, result.ci_high)
            points[curve_of(result.method)].append(point)
    if not points["debate"]:
        return None
    curves = [
        Curve("debate", _DEBATE, "o", points["debate"]),
        Curve("majority", _MAJORITY, "s", points["majority"]),
        Curve("single answer", _SINGLE, "^", points["single"]),
    ]
    names = {p.iteration: str(p.iteration) if p.iteration else "0\nuntrained" for p in points["debate"]}
    return _draw("Accuracy on held-out questions over iterations", curves, names)


def label_curves(found: Sequence[Labels]) -> str | None:
    """Draw how often pseudo-labels were right, and on what share of the questions they were trained on."""
    accuracy = [
        Point(labels.quality.iteration, labels.quality.accuracy, *labels.accuracy_interval)
        for labels in found
        if labels.quality.accuracy is not None and labels.accuracy_interval is not None
    ]
    coverage = [Point(labels.quality.iteration, labels.quality.coverage, *labels.coverage_interval) for labels in found]
    if not coverage:
        return None
    curves = [
        Curve("right, of those trained on", _RIGHT, "o", accuracy),
        Curve("trained on, of all", _COVERAGE, "s", coverage),
    ]
    names = {labels.quality.iteration: str(labels.quality.iteration) for labels in found}
    return _draw("Pseudo-labels over iterations", [curve for curve in curves if curve.points], names)


def _draw(title: str, curves: Sequence[Curve], names: Mapping[int, str]) -> str:
    """Draw shares from 0 to 100 %; no point hides another's interval, for the curves stand a little apart."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and names inside the SVG come from a fixed salt: the same numbers give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "maft", "svg.fonttype": "none", "font.size": 9.5}):
        figure = Figure(figsize=(4.5, 3.1), layout="constrained")
        axes = figure.add_subplot()
        step = 0.035 * max(1, len(names) - 1)
        for place, curve in enumerate(curves):
            _add(axes, curve, step * (place - (len(curves) - 1) / 2))
        _dress(axes, names)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(out.getvalue(), title)


def _add(axes: Any, curve: Curve, shift: float) -> None:
    axes.errorbar(
        [point.iteration + shift for point in curve.points],
        [point.share for point in curve.points],
        [
            # At 0 and 100 % an end of the interval can be a rounding error on the wrong side of the point.
            [max(0.0, point.share - point.low) for point in curve.points],
            [max(0.0, point.high - point.share) for point in curve.points],
        ],
        color=curve.color,
        marker=curve.marker,
        markersize=5,
        lw=1.8,
        elinewidth=1.1,
        capsize=3,
        clip_on=False,
        label=curve.label,
    )


def _dress(axes: Any, names: Mapping[int, str]) -> None:
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20", "40", "60", "80", "100 %"])
    axes.set_xlim(min(names) - 0.3, max(names) + 0.3)
    axes.set_xticks(list(names), list(names.values()))
    axes.set_xlabel("iteration", color=_TEXT)
    axes.tick_params(colors=_TEXT, length=0, pad=6)
    axes.grid(axis="y", color=_TEXT, alpha=0.13, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=_TEXT, alpha=0.4)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.12, 1.02),
        ncols=3,
        frameon=False,
        labelcolor=_TEXT,
        columnspacing=1.2,
        handlelength=1.6,
        handletextpad=0.5,
    )


def _for_page(svg: str, title: str) -> str:
    """Make a file of SVG a part of a page: no addresses, no styles, no names that two pictures would share."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    for ink, color in INK.items():
        svg = svg.replace(ink, color)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
