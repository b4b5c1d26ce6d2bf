"""Differences between methods. That intervals hold the truth as often as they say is tested in test_measurement.py."""

from random import Random

import pytest

from maft.evaluation.metrics import wilson
from maft.evaluation.paired import accuracy_over, difference, holm


def drawn(rng: Random, n: int, accuracy: float, gap: float, num_seeds: int = 1) -> tuple[list[dict], list[dict]]:
    """Return answers of two methods to the same questions, of which some are hard for both."""
    hard = [rng.uniform(-0.2, 0.2) for _ in range(n)]
    mine, other = (
        [{f"{q}": float(rng.random() < accuracy + shift + hard[q]) for q in range(n)} for _ in range(num_seeds)]
        for shift in (gap, 0.0)
    )
    return mine, other


def by_question(*tenths: tuple[int, ...]) -> list[dict[str, float]]:
    """Return accuracies in tenths, a tuple for each seed."""
    return [{f"{q}": tenth / 10 for q, tenth in enumerate(of_seed)} for of_seed in tenths]


def test_one_seed_is_students_paired_test():
    found = difference(by_question((6, 5, 5)), by_question((5, 5, 5)))
    assert (found.mean, found.n, found.num_seeds) == (pytest.approx(0.1 / 3), 3, 1)
    error, quantile = 0.1 / 3, 4.302653  # two degrees of freedom
    assert (found.low, found.high) == pytest.approx((error * (1 - quantile), error * (1 + quantile)), abs=1e-5)
    assert found.p_value == pytest.approx(1 - 1 / 3**0.5, abs=1e-5)  # of t = 1
    assert found.detectable == pytest.approx(error * (quantile + 1.060660), abs=1e-5)
    assert found.verdict == "unclear"


def test_seeds_and_questions_are_a_crossed_draw():
    nothing = by_question((0, 0, 0), (0, 0, 0))
    ours = by_question((2, 1, 0), (4, 3, 2))
    found = difference(ours, nothing)
    variance = 0.01 * (2 * 1 + 3 * 2) / 6  # questions 3, 2, 1; seeds 1, 3; no interaction
    error, quantile = variance**0.5, 5.176232  # of 8^2 / (2^2 / 2 + 6^2 / 1) degrees of freedom
    assert (found.mean, found.n, found.num_seeds) == (pytest.approx(0.2), 3, 2)
    assert (found.low, found.high) == pytest.approx((0.2 - quantile * error, 0.2 + quantile * error), abs=1e-4)
    assert found.p_value == pytest.approx(0.248189, abs=1e-4)
    alike = difference(by_question((3, 1, 0), (2, 1, 1)), nothing)
    error = (0.01 * 2 * (13 / 12) / 6) ** 0.5  # the seeds have the same mean: questions alone are a draw
    assert (alike.low, alike.high) == pytest.approx((0.4 / 3 - 4.302653 * error, 0.4 / 3 + 4.302653 * error), abs=1e-4)
    over = accuracy_over(ours)
    assert (over.low, over.high) == pytest.approx(wilson(0.2, 0.2 * 0.8 / variance, quantile), abs=1e-4)
    assert over.mean == pytest.approx(0.2)


def test_bounds_of_a_difference_stay_within_one():
    found = difference(by_question((10, 0, 10)), by_question((0, 0, 0)))
    assert (found.high, found.detectable) == (1, 1) and -1 < found.low < 0 < found.mean
    back = difference(by_question((0, 0, 0)), by_question((10, 0, 10)))
    assert (back.low, back.high) == (-1, pytest.approx(-found.low))


def test_methods_that_never_differ_differ_by_nothing():
    same = [{"a": 1.0, "b": 0.0}]
    found = difference(same, same)
    assert (found.mean, found.p_value, found.n) == (0, 1, 2) and found.low == -found.high


def test_only_questions_that_all_have_answered_count():
    found = difference([{"a": 1.0, "b": 0.0}, {"a": 1.0}], [{"a": 0.0, "c": 1.0}, {"a": 0.5}])
    assert (found.n, found.num_seeds, found.mean) == (1, 2, 0.75)
    assert difference([{"a": 1.0}], [{"b": 1.0}]) is None


def test_a_difference_has_two_sides():
    rng = Random(1)
    mine, other = drawn(rng, 80, 0.6, 0.2)
    there, back = difference(mine, other), difference(other, mine)
    assert there.mean == -back.mean and there.p_value == pytest.approx(back.p_value, abs=0.01)
    assert there.low == pytest.approx(-back.high, abs=0.02)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_a_clear_difference_is_clear(num_seeds):
    mine, other = drawn(Random(2), 200, 0.5, 0.25, num_seeds)
    found = difference(mine, other)
    assert found.low > 0.1 and found.num_seeds == num_seeds
    assert found.p_value < (0.001 if num_seeds == 1 else 0.05)  # three seeds say little of how much seeds differ


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_where_nothing_differs_the_interval_still_has_a_width(num_seeds):
    same = [dict.fromkeys("abcdefghijkl", 1.0)] * num_seeds
    found = difference(same, same)
    assert found.mean == 0 and found.p_value == 1 and -0.3 < found.low < -0.2 and 0.2 < found.high < 0.3
    other = [dict.fromkeys("abcdefghijkl", 0.0)] * num_seeds
    best = difference(same, other)
    assert best.mean == best.high == 1 and 0.3 < best.low < 0.6 and 0 < best.p_value < 0.01


def test_holm_corrects_for_the_number_of_tests_and_keeps_their_order():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0} and holm({}) == {}


def test_a_detectable_difference_is_found_in_four_of_five_cases():
    rng = Random(3)
    detectable = difference(*drawn(rng, 200, 0.5, 0.1)).detectable
    assert detectable == pytest.approx(2.8 * (2 * 0.25 / 200) ** 0.5, rel=0.12)
    cases = [difference(*drawn(rng, 200, 0.5, detectable)) for _ in range(150)]
    assert 0.68 < sum(case.p_value < 0.05 for case in cases) / 150 < 0.92
    assert difference([{"a": 1.0}], [{"a": 0.0}]).detectable is None
