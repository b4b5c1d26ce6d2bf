"""Charts as SVG in the colours of the page, legible in the light and in the dark; as PNG and SVG for papers."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maft.report.charts import Chart, Curve

PAPER = {
    "ink": "#1b2026",
    "blue": "#1f5fa8",
    "orange": "#b4641c",
    "grey": "#77828d",
    "green": "#2c7a4d",
    "purple": "#7556a3",
    "red": "#b23a30",
    "teal": "#1f7487",
    "rose": "#b5447f",
}
"""Colours on white; the page has its own, under the same names."""
PAGE = {name: f"#{number:02x}{number:02x}{number:02x}" for number, name in enumerate(PAPER, 1)}
"""Placeholders that matplotlib draws with, replaced by the colours of the page."""

APART = 4.5
"""Distance of neighbouring curves in points, so that none hides another's interval."""


def for_page(chart: Chart) -> str:
    """Return a chart as SVG within a page.

    All curves are drawn, each in groups of the class `curve`; those that are not shown are hidden, and the page can
    show them. The page also moves them apart, by `--slot` and `--slots`.
    """
    out = io.StringIO()
    figure = _draw(chart, PAGE, chart.curves, apart=False)
    with _style():
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _within_page(out.getvalue(), chart)


def for_paper(chart: Chart, folder: Path) -> list[Path]:
    """Write a chart as PNG and SVG, with a legend, and return the files; curves that are not shown are left out."""
    figure = _draw(chart, PAPER, [curve for curve in chart.curves if curve.shown], apart=True)
    figure.axes[0].legend(
        loc="lower left", bbox_to_anchor=(-0.12, 1.02), ncols=2, frameon=False, handlelength=1.6, fontsize=8
    )
    return save(figure, folder / chart.name)


def save(figure: Any, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG; the same figure gives the same bytes."""
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    with _style():
        figure.savefig(files[0], dpi=300, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None, "Creator": None})
    return files


def _style() -> Any:
    import matplotlib

    # Text stays text, and names inside the SVG come from a fixed salt: the same numbers give the same bytes.
    return matplotlib.rc_context({"svg.hashsalt": "maft", "svg.fonttype": "none", "font.size": 9.5})


def _draw(chart: Chart, paint: Mapping[str, str], curves: Sequence[Curve], *, apart: bool) -> Any:
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(4.5, 2.9), layout="constrained")
        axes = figure.add_subplot()
        _dress(axes, chart, paint["ink"])
        width = max(chart.ticks) - min(chart.ticks) or 1.0
        for place, curve in enumerate(curves):
            shift = APART / 250 * width * (place - (len(curves) - 1) / 2) if apart and chart.apart else 0.0
            _add(axes, curve, place, paint[curve.color], shift)
    return figure


def _add(axes: Any, curve: Curve, place: int, color: str, shift: float) -> None:
    points = curve.points
    # At 0 and 100 % an end of the interval can be a rounding error on the wrong side of the point.
    below = [0.0 if point.low is None else max(0.0, point.y - point.low) for point in points]
    above = [0.0 if point.high is None else max(0.0, point.high - point.y) for point in points]
    has_interval = any(point.low is not None for point in points)
    line, caps, bars = axes.errorbar(
        [point.x + shift for point in points],
        [point.y for point in points],
        [below, above] if has_interval else None,
        color=color,
        marker=curve.marker,
        linestyle="--" if curve.dashed else "-",
        markersize=5,
        lw=1.8,
        elinewidth=1.1,
        capsize=2.5,
        clip_on=False,
        label=curve.label,
    )
    for artist in (line, *caps, *bars):
        artist.set_gid(f"curve-{place}")


def _dress(axes: Any, chart: Chart, ink: str) -> None:
    low, high = min(chart.ticks), max(chart.ticks)
    room = 0.12 * (high - low) or 0.3
    axes.set_xlim(low - room, high + room)
    places = _few(sorted(chart.ticks))
    axes.set_xticks(places, [chart.ticks[place] for place in places])
    axes.set_xlabel(chart.x_label, color=ink)
    if chart.unit == "share":
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20", "40", "60", "80", "100 %"])
    else:
        top = max(point.y for curve in chart.curves for point in curve.points)
        axes.set_ylim(0, 1.08 * top or 1)
        axes.set_ylabel(chart.unit, color=ink)
    if chart.diagonal:
        axes.plot([low, high], [low, high], color=ink, alpha=0.35, lw=1, linestyle=":")
    axes.tick_params(colors=ink, length=0, pad=6)
    axes.grid(axis="y", color=ink, alpha=0.13, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=ink, alpha=0.4)


def _within_page(svg: str, chart: Chart) -> str:
    """Make an SVG file part of a page: no addresses, no styles, no ids that two pictures would share."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r' id="curve-(\d+)"', lambda match: _group(chart, int(match[1])), svg)
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    for name, color in PAGE.items():
        svg = svg.replace(color, "currentColor" if name == "ink" else f"var(--{name})")
    slots = max(1, sum(curve.shown for curve in chart.curves)) if chart.apart else 1
    return svg.replace("<svg", f'<svg role="img" aria-label="{chart.title}" style="--slots: {slots}"', 1)


def _group(chart: Chart, place: int) -> str:
    slot = sum(curve.shown for curve in chart.curves[:place]) if chart.apart else 0
    hidden = "" if chart.curves[place].shown else " hidden"
    return f' class="curve" data-curve="{place}" style="--slot: {slot}"{hidden}'


def _few(places: Sequence[float]) -> list[float]:
    """Return at most seven of the places, evenly spread, the last one included.

    >>> _few([1, 2, 3]), _few(range(1, 16))
    ([1, 2, 3], [3, 6, 9, 12, 15])
    """
    step = -(-len(places) // 7)
    return list(places[(len(places) - 1) % step :: step])
