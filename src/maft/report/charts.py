"""The curves of pages and papers, as numbers; `plots` draws them."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import log10
from typing import Literal, NamedTuple

from maft.comparison import ARMS, Result
from maft.diversity.measures import Diversity
from maft.evaluation.agents import AgentAccuracy
from maft.evaluation.metrics import MethodResult, wilson
from maft.evaluation.reliability import Level
from maft.report.data import Labels

COLORS = ("blue", "orange", "grey", "green", "purple", "red", "teal", "rose")
MARKERS: Mapping[str, str] = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
"""What a point is drawn with, and the same as a character."""


class Point(NamedTuple):
    """A value, with its 95 % interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    """Questions, where they differ from point to point."""


MOST_OFFERED = 16
"""Curves of agents above a picture; where there are more, single agents are in a list to open."""


class Curve(NamedTuple):
    """Points that are joined by a line."""

    label: str
    color: str
    marker: str
    points: Sequence[Point]
    shown: bool = True
    """Whether it is drawn without being asked for."""
    offered: bool = True
    """Whether it can be chosen without opening the list of all."""
    dashed: bool = False

    @property
    def sign(self) -> str:
        """Return its marker as a character."""
        return MARKERS[self.marker]


class Chart(NamedTuple):
    """A picture of curves."""

    name: str
    """Of its files, and in the page."""
    title: str
    curves: Sequence[Curve]
    ticks: Mapping[float, str]
    """Values on the horizontal axis, and what is written below them; where they are many, below some."""
    x_label: str = "iteration"
    unit: Literal["share", "nats"] = "share"
    diagonal: bool = False
    """Whether a line shows where y is x."""
    apart: bool = True
    """Whether curves may be drawn a little to the side, so that none hides another's intervals. Otherwise the axis is
    logarithmic, and x the decimal logarithm."""


def _over_iterations(
    name: str, title: str, curves: Sequence[Curve], unit: Literal["share", "nats"] = "share"
) -> Chart | None:
    """Return the curves that have points over iterations; None if there are none."""
    drawn = [curve for curve in curves if curve.points]
    numbers = sorted({int(point.x) for curve in drawn for point in curve.points})
    ticks: dict[float, str] = {number: str(number) if number else "0\nuntrained" for number in numbers}
    return Chart(name, title, drawn, ticks, unit=unit) if drawn else None


def accuracy(results: Sequence[MethodResult]) -> Chart | None:
    """Return accuracy over iterations of debates, votes and single answers; None where it is not known."""
    points: dict[str, list[Point]] = defaultdict(list)
    for result in results:
        if result.accuracy is not None:
            point = Point(result.iteration, result.accuracy, result.ci_low, result.ci_high)
            points[curve_of(result.method)].append(point)
    looks = {
        "debate": ("blue", "o"),
        "vote at the debate's tokens": ("purple", "D"),
        "vote over first answers": ("orange", "s"),
        "single answer": ("grey", "^"),
    }
    curves = [Curve(label, *look, points[label]) for label, look in looks.items()]
    return _over_iterations("accuracy", "Accuracy on held-out questions over iterations", curves)


def curve_of(method: str) -> str:
    """Return the curve that a method's results belong to.

    >>> [curve_of(method) for method in ("base", "maft_majority@3", "majority@budget", "maft")]
    ['single answer', 'vote over first answers', "vote at the debate's tokens", 'debate']
    """
    if "majority@budget" in method:
        return "vote at the debate's tokens"
    if "majority" in method:
        return "vote over first answers"
    return "single answer" if method in ("base", "maft_single") else "debate"


def agents(accuracies: Sequence[AgentAccuracy]) -> Chart | None:
    """Return the accuracy of single generators and critics over iterations, their means shown first."""
    points: dict[tuple[str, int | None], list[Point]] = defaultdict(list)
    for one in accuracies:
        points[one.role, one.agent].append(Point(one.iteration, one.accuracy, one.low, one.high))
    means, signs = {"generator": ("orange", "s"), "critic": ("blue", "o")}, list(MARKERS)
    curves = []
    for role, agent in sorted(points, key=lambda key: (key[1] is not None, key[0] != "generator")):
        of_agent = points[role, agent]
        if agent is None:
            curves.append(Curve(f"mean of the {role}s", *means[role], of_agent))
        else:
            look, offered = (means[role][0], signs[agent % len(signs)]), len(points) <= MOST_OFFERED
            curves.append(Curve(f"{role} {agent}", *look, of_agent, shown=False, offered=offered, dashed=True))
    return _over_iterations("agents", "Accuracy of single generators and critics over iterations", curves)


def labels(by_iteration: Sequence[Labels]) -> Chart | None:
    """Return how often pseudo-labels are right, and on what share of the questions agents are trained."""
    qualities = [of.quality for of in by_iteration]
    right = [Point(q.iteration, q.accuracy, q.ci_low, q.ci_high) for q in qualities if q.accuracy is not None]
    used = [_share(q.iteration, q.coverage, q.num_problems) for q in qualities]
    curves = [
        Curve("right, of those trained on", "green", "o", right),
        Curve("trained on, of all", "purple", "s", [point._replace(n=None) for point in used]),
    ]
    return _over_iterations("labels", "Pseudo-labels over iterations", curves)


def votes(by_iteration: Sequence[Labels]) -> Chart | None:
    """Return how close the votes on training questions are.

    Every value is the mean of one share per question, so that Wilson's interval is never too narrow.
    """
    looks = {
        "unanimity": ("all agree", "blue", "o"),
        "mean_margin": ("margin of the winner", "orange", "s"),
        "abstention": ("could not be read", "red", "v"),
    }
    curves = [
        Curve(*look, [_share(of.iteration, getattr(of, name), of.num_problems) for of, _ in by_iteration])
        for name, look in looks.items()
    ]
    return _over_iterations("votes", "Votes on training questions over iterations", curves)


def reliability(levels: Mapping[int, Sequence[Level]]) -> Chart | None:
    """Return how often held-out answers are right by their share of the votes, for each iteration."""
    top = max((level.votes for of_iteration in levels.values() for level in of_iteration), default=0)
    curves = []
    for place, (iteration, of_iteration) in enumerate(levels.items()):
        points = [
            _share(level.votes / top, level.right / level.graded, level.graded)
            for level in reversed(of_iteration)
            if level.votes and level.graded
        ]
        if points:
            label = f"iteration {iteration}" if iteration else "untrained"
            look = ("grey", "^") if iteration == 0 else _look(place - 1)
            curves.append(Curve(label, *look, points, shown=iteration in (min(levels), max(levels))))
    ticks = {votes / top: f"{votes} of {top}" for votes in range(1, top + 1)}
    title = "How often the answer of a held-out debate is right, by its votes"
    return Chart("reliability", title, curves, ticks, "votes for the answer", diagonal=True) if curves else None


def diversity(measured: Sequence[Diversity]) -> list[Chart]:
    """Return the measures of `maft diversity`: those that are shares, and those in nats."""
    disagreement = [_share(one.iteration, one.disagreement, one.num_questions) for one in measured if one.num_questions]
    shares = [
        Curve("disagreement", "blue", "o", disagreement),
        Curve("dissimilarity", "orange", "s", [Point(one.iteration, one.dissimilarity) for one in measured]),
    ]
    measures = {"likelihood": "likelihood", "kl": "KL between agents", "kl_to_base": "KL to the base"}
    nats = []
    for place, (name, label) in enumerate(measures.items()):
        values = [Point(one.iteration, y) for one in measured if (y := getattr(one, name)) is not None]
        nats.append(Curve(label, *_look(place), values))
    drawn = [
        _over_iterations("diversity", "Disagreement and dissimilarity of the agents over iterations", shares),
        _over_iterations("diversity_nats", "Likelihood and KL of the agents over iterations", nats, "nats"),
    ]
    return [chart for chart in drawn if chart is not None]


def methods(by_method: Mapping[str, Sequence[Result]], shown: Sequence[str]) -> Chart | None:
    """Return the accuracy of compared methods over iterations, those that are shown first."""
    curves = _of_methods(by_method, shown, lambda row: row.iteration)
    return _over_iterations("methods", "Accuracy of the methods on held-out questions over iterations", curves)


def budget(by_method: Mapping[str, Sequence[Result]], shown: Sequence[str]) -> Chart | None:
    """Return the accuracy of compared methods after the last iteration against the tokens that an answer takes."""
    last = max((rows[-1].iteration for rows in by_method.values()), default=0)
    rows = {name: [of[-1]] for name, of in by_method.items() if of[-1].iteration == last}
    curves = _of_methods(rows, shown, lambda row: log10(max(1.0, row.tokens / row.n)))
    if not curves:
        return None
    reach = [point.x for curve in curves for point in curve.points]
    sizes = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    low = max(size for size in sizes if log10(size) <= min(reach))
    high = next((size for size in sizes if log10(size) >= max(reach)), sizes[-1])
    ticks = {log10(size): f"{size:,}" for size in sizes if low <= size <= max(high, 2 * low)}
    title = f"Accuracy of the methods after iteration {last} against tokens per question"
    return Chart("budget", title, curves, ticks, "prompt and generated tokens per question", apart=False)


def _of_methods(
    by_method: Mapping[str, Sequence[Result]], shown: Sequence[str], x: Callable[[Result], float]
) -> list[Curve]:
    first = [name for name in shown if name in by_method]
    names = [*first, *(name for name in by_method if name not in first)]
    curves = []
    for place, name in enumerate(names):
        rows = [(row, row.accuracy) for row in by_method[name] if row.accuracy is not None]
        points = [Point(x(row), accuracy, row.ci_low, row.ci_high) for row, accuracy in rows]
        offered = name in first or name in ARMS
        curve = Curve(name, *_look(place), points, name in first, offered, dashed=place >= len(COLORS))
        curves += [curve] if points else []
    return curves


def _look(place: int) -> tuple[str, str]:
    return COLORS[place % len(COLORS)], list(MARKERS)[place % len(MARKERS)]


def _share(x: float, y: float, n: int) -> Point:
    return Point(x, y, *wilson(y, n), n)
