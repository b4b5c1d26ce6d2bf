"""A seed is named by what it is for."""

from itertools import product
from random import Random

from maft import seeds


def test_a_seed_is_the_same_on_every_machine_and_in_every_release():
    assert seeds.seed(0, "train", 1, "7*8", 0, 1, "answer") == 7706835789614126075
    assert seeds.seed() == 4090036724241674979


def test_different_paths_have_different_seeds():
    paths = list(product((0, 1, 2), ("train", "eval"), (1, 2, 3), ("1+1", "1+2", "11"), range(5), range(3)))
    assert len({seeds.seed(*path) for path in paths}) == len(paths)


def test_the_parts_of_a_path_cannot_run_together():
    paths = [("a", "b"), ("ab",), ("a", "", "b"), (1, 2), (12,), ("1", 2), (1, "2"), ("a,b",), ('a", "b',)]
    assert len({seeds.seed(*path) for path in paths}) == len(paths)


def test_seeds_fit_every_engine():
    assert all(0 <= seeds.seed(n) < 2**63 for n in range(2000))


def test_bits_of_seeds_are_even():
    drawn = [seeds.seed("even", n) for n in range(4000)]
    for bit in (0, 1, 31, 32, 62):
        assert 1800 < sum(seed >> bit & 1 for seed in drawn) < 2200


def test_a_generator_is_private_and_leaves_the_global_one_alone():
    import random

    before = random.getstate()
    first, second = seeds.rng("x"), seeds.rng("x")
    assert isinstance(first, Random) and first is not second
    assert [first.random() for _ in range(5)] == [second.random() for _ in range(5)]
    assert random.getstate() == before
