"""The curves: which numbers they show, and how they are drawn."""

import re

import pytest

from maft.diversity.measures import Diversity
from maft.evaluation.agents import AgentAccuracy
from maft.evaluation.metrics import MethodResult, wilson
from maft.evaluation.reliability import Level
from maft.report import charts, data, plots
from maft.report.charts import Chart, Curve, Point


def result(iteration: int, method: str, accuracy: float | None = 0.9) -> MethodResult:
    low, high = (None, None) if accuracy is None else (accuracy - 0.1, accuracy + 0.1)
    return MethodResult(
        iteration=iteration, method=method, accuracy=accuracy, ci_low=low, ci_high=high, n=9, unparsed=0, calls=9,
        prompt_tokens=1, completion_tokens=1,
    )  # fmt: skip


def labels(chart: Chart | None) -> list[str]:
    return [curve.label for curve in chart.curves] if chart else []


def test_votes_of_two_sizes_are_two_curves():
    methods = ("maft", "maft_majority@3", "maft_majority@budget", "maft_single")
    untrained = ("debate", "majority@3", "majority@budget", "base")
    chart = charts.accuracy([*(result(0, m) for m in untrained), *(result(1, m) for m in methods)])
    assert labels(chart) == ["debate", "vote at the debate's tokens", "vote over first answers", "single answer"]
    assert all([point.x for point in curve.points] == [0, 1] for curve in chart.curves)


def test_where_accuracy_is_not_known_there_is_no_curve():
    assert charts.accuracy([result(0, "debate", None)]) is None
    assert charts.accuracy([]) is None and charts.agents([]) is None and charts.votes([]) is None
    assert charts.reliability({}) is None and charts.diversity([]) == [] and charts.labels([]) is None


def test_single_agents_are_there_to_choose_and_their_means_are_shown():
    found = [
        AgentAccuracy(0, role, agent, 9, 0.5, 0.2, 0.8) for role in ("generator", "critic") for agent in (None, 0, 1)
    ]
    chart = charts.agents(found)
    assert [curve.label for curve in chart.curves if curve.shown] == ["mean of the generators", "mean of the critics"]
    assert [c.label for c in chart.curves if not c.shown] == ["generator 0", "generator 1", "critic 0", "critic 1"]


def test_reliability_has_a_point_for_each_share_of_votes_that_occurs():
    chart = charts.reliability({0: (Level(3, 10, 10, 9), Level(2, 0, 0, 0), Level(1, 5, 4, 1), Level(0, 2, 2, 0))})
    (curve,) = chart.curves
    assert [(point.x, point.y, point.n) for point in curve.points] == [(1 / 3, 0.25, 4), (1.0, 0.9, 10)]
    assert (curve.points[1].low, curve.points[1].high) == wilson(0.9, 10)
    assert list(chart.ticks.values()) == ["1 of 3", "2 of 3", "3 of 3"] and chart.diagonal


def test_diversity_without_a_reading_of_the_model_has_shares_only():
    measured = Diversity(iteration=0, num_questions=20, disagreement=0.4, dissimilarity=0.2, embedder="trigrams")
    assert [chart.name for chart in charts.diversity([measured])] == ["diversity"]
    read = measured.model_copy(update={"iteration": 1, "num_read": 5, "likelihood": 1.5, "kl": 0.2, "kl_to_base": 0.3})
    shares, nats = charts.diversity([measured, read])
    assert [point.x for point in shares.curves[0].points] == [0, 1] and shares.curves[1].points[0].low is None
    assert nats.unit == "nats" and [len(curve.points) for curve in nats.curves] == [1, 1, 1]


def test_vote_curves_are_those_of_the_labels(finished_run):
    found = data.labels(finished_run)
    chart = charts.votes(found)
    for curve, name in zip(chart.curves, ("unanimity", "mean_margin", "abstention"), strict=True):
        assert [point.y for point in curve.points] == [getattr(one.quality, name) for one in found]
        assert all(point.low <= point.y <= point.high for point in curve.points)


def test_the_mean_of_the_generators_is_the_single_answer_of_the_table(finished_run):
    mean = charts.agents(data.agents(data.evaluations(finished_run), 3)).curves[0]
    single = [row.accuracy for row in data.results(finished_run) if row.method in ("base", "maft_single")]
    assert [point.y for point in mean.points] == pytest.approx(single)


CHART = Chart(
    "name",
    "A title",
    [Curve(f"c{n}", color, sign, [Point(0, 0.5, 0.4, 0.6), Point(1, 1.0, 0.9, 1.0)], shown=n < 2)
     for n, (color, sign) in enumerate(zip(charts.COLORS, charts.MARKERS, strict=False))],
    {0: "0", 1: "1"},
)  # fmt: skip


def test_pictures_span_nought_to_a_hundred_percent_and_follow_the_page_in_the_dark():
    svg = plots.for_page(CHART)
    assert ">0</text>" in svg and ">100 %</text>" in svg and 'aria-label="A title"' in svg
    assert "currentColor" in svg and all(f"var(--{curve.color})" in svg for curve in CHART.curves)
    assert not set(re.findall(r"#[0-9a-f]{6}", svg)), "a fixed colour is illegible on one of the two backgrounds"
    assert svg == plots.for_page.__wrapped__(CHART) == plots.for_page.__wrapped__(CHART)


def test_every_curve_is_in_the_page_and_those_that_are_not_shown_are_hidden():
    groups = re.findall(r'class="curve" data-curve="(\d)" style="--slot: (\d)"( hidden)?', plots.for_page(CHART))
    assert {int(number) for number, _, _ in groups} == set(range(len(CHART.curves)))
    assert {number for number, _, hidden in groups if not hidden} == {"0", "1"}
    assert {(number, slot) for number, slot, hidden in groups if not hidden} == {("0", "0"), ("1", "1")}


def test_pictures_for_papers_have_a_legend_of_what_they_show_and_are_repeatable(tmp_path):
    png, svg = plots.for_paper(CHART, tmp_path)
    text = svg.read_text()
    assert png.read_bytes().startswith(b"\x89PNG") and text.startswith("<?xml")
    assert ">c0</text>" in text and ">c1</text>" in text and ">c2</text>" not in text
    before = png.read_bytes(), svg.read_bytes()
    plots.for_paper(CHART, tmp_path)
    assert (png.read_bytes(), svg.read_bytes()) == before
