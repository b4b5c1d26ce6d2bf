"""Differences between methods. That intervals hold the truth as often as they say is tested in test_measurement.py."""

from random import Random

import pytest

from maft.evaluation.paired import difference, holm


def drawn(rng: Random, n: int, accuracy: float, gap: float, num_seeds: int = 1) -> tuple[list[dict], list[dict]]:
    """Return answers of two methods to the same questions, of which some are hard for both."""
    hard = [rng.uniform(-0.2, 0.2) for _ in range(n)]
    mine, other = (
        [{f"{q}": float(rng.random() < accuracy + shift + hard[q]) for q in range(n)} for _ in range(num_seeds)]
        for shift in (gap, 0.0)
    )
    return mine, other


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
