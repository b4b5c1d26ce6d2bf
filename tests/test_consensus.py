"""The vote, as a table and as properties."""

from collections import Counter
from itertools import permutations
from random import Random

import pytest
from helpers import debate

from maft import seeds
from maft.config import CurateConfig, VoteConfig
from maft.method.curate import critic_examples, generator_examples
from maft.method.vote import tally, vote


@pytest.mark.parametrize(
    ("answers", "winner", "counts", "abstained", "tied"),
    [
        (["1", "1", "2"], "1", (("1", 2), ("2", 1)), 0, False),
        (["1/2", "0.5", "3"], "0.5", (("0.5", 2), ("3", 1)), 0, False),
        ([None, "3", None], "3", (("3", 1),), 2, False),
        ([None, None], None, (), 2, False),
        ([], None, (), 0, False),
        (["7"], "7", (("7", 1),), 0, False),
        (["1,000", "1000", r"\$1000", "999"], "1000", (("1000", 3), ("999", 1)), 0, False),
    ],
)
def test_votes_are_counted_by_classes_of_equal_answers(answers, winner, counts, abstained, tied):
    assert tally(answers, Random(0)) == (winner, counts, abstained, tied)


@pytest.mark.parametrize(
    "answers", [["1", "2", "2", None], ["1", "1.0", "2", "4/2"], ["a", "b", "c", "b"], ["0.5", r"\frac12", "1", None]]
)
def test_the_order_of_the_answers_does_not_matter(answers):
    results = {tally(order, Random(5)) for order in permutations(answers)}
    assert len(results) == 1


def test_ties_fall_evenly_over_many_questions():
    drawn = Counter(tally(["10", "9", "100"], seeds.rng("tie", n)).winner for n in range(3000))
    assert set(drawn) == {"9", "10", "100"}
    assert all(900 < count < 1100 for count in drawn.values())


def test_only_the_classes_with_the_most_votes_are_drawn_from():
    drawn = {tally(["1", "1", "2", "2", "3"], Random(n)).winner for n in range(50)}
    assert drawn == {"1", "2"}


def test_the_winner_stands_first_in_the_counts():
    for n in range(20):
        result = tally(["1", "2", "3", "3", "2"], Random(n))
        assert result.tied and result.counts[0] == (result.winner, 2)


def test_a_tie_can_be_no_answer():
    assert tally(["1", "2"], Random(0), ties="abstain").winner is None
    assert tally(["1", "2", "2"], Random(0), ties="abstain").winner == "2"
    assert vote(debate(["1", "2"]), VoteConfig(ties="abstain", min_agreement="plurality"), 0).dropped == "tied"


def test_a_tie_that_abstains_has_no_agreement_and_is_counted_as_a_tie():
    held = debate(["1", "2"], ["1", "2"])
    tied = vote(held, VoteConfig(ties="abstain"), 0)
    assert (tied.label, tied.winner, tied.votes, tied.agreement, tied.tied) == (None, None, 0, 0.0, True)
    assert tied.counts == (("1", 1), ("2", 1))
    votes = {held.problem_id: tied}
    for n in (0, 1):
        assert generator_examples([held], votes, n).counts.model_dump(exclude_defaults=True) == {
            "examples": 0,
            "tied": 1,
        }
        critic = critic_examples([held], votes, n, CurateConfig(), 0)
        assert critic.counts.model_dump(exclude_defaults=True) == {"examples": 0, "tied": 1}


@pytest.mark.parametrize("num_agents", range(1, 8))
@pytest.mark.parametrize("votes", range(1, 8))
def test_a_majority_is_more_than_half_of_all_agents(num_agents, votes):
    if votes <= num_agents:
        answers = ["1"] * votes + [None] * (num_agents - votes)
        kept = vote(debate(answers), VoteConfig(), 0).dropped is None
        assert kept == (votes > num_agents / 2)


@pytest.mark.parametrize("num_agents", [*range(1, 21), 100])
def test_exactly_the_share_that_is_asked_for_is_enough(num_agents):
    for votes in range(1, num_agents + 1):
        share = round(votes / num_agents, 2)  # as one writes it: 0.55 for 11 of 20
        answers = ["1"] * votes + [None] * (num_agents - votes)
        if share == votes / num_agents:
            assert vote(debate(answers), VoteConfig(min_agreement=share), 0).dropped is None
        elif share < 0.98:
            more = VoteConfig(min_agreement=share + 0.02)
            assert vote(debate(answers), more, 0).dropped == "low_agreement"


def test_plurality_takes_any_winner():
    how = VoteConfig(min_agreement="plurality")
    assert vote(debate(["1", None, None, None]), how, 0).dropped is None
    assert vote(debate(["1", "2", "3", "4"]), how, 0).dropped is None
    assert vote(debate([None] * 4), how, 0).dropped == "no_answer"


def test_a_failed_debate_has_no_label_even_if_somebody_answered():
    failed = vote(debate(["1", "1", "1"], error="critic_0, round 2: timeout"), VoteConfig(), 0)
    assert (failed.label, failed.dropped, failed.counts, failed.agreement) == (None, "failed", (), 0)
    assert vote(debate(error="generator_0, round 1: timeout"), VoteConfig(), 0).num_ballots == 0


def test_a_tie_is_drawn_anew_for_each_question_and_iteration_but_not_for_each_look():
    def label(problem_id: str, iteration: int, run_seed: int) -> str | None:
        held = debate(["1", "2"], problem_id=problem_id, iteration=iteration)
        return vote(held, VoteConfig(), run_seed).label

    looks = {(q, i, s): label(q, i, s) for q in "abcdefgh" for i in (1, 2) for s in (0, 1)}
    assert all(label(*key) == drawn for key, drawn in looks.items())
    for place in range(3):
        varied = {}
        for key, drawn in looks.items():
            varied.setdefault(key[:place] + key[place + 1 :], set()).add(drawn)
        assert {"1", "2"} in varied.values()


SPLIT = debate(["1", "1", "2"], ["2", "2", "2"], samples=["1", "1", "3"])


@pytest.mark.parametrize(
    ("label_from", "label", "votes", "num_ballots"),
    [("last", "2", 3, 3), ("first", "1", 4, 6), ("all", "1", 4, 9), (("first", "last"), "1", 4, 6)],
)
def test_the_label_may_come_from_other_rounds(label_from, label, votes, num_ballots):
    settings = VoteConfig(label_from=label_from, min_agreement="plurality", ties="abstain")
    found = vote(SPLIT, settings, 0)
    if label_from == "all":  # four each
        assert found.tied and found.label is None
    else:
        assert (found.label, found.counts[0][1]) == (label, votes)
    assert found.num_ballots == num_ballots


def test_more_than_half_is_of_all_answers_that_were_counted():
    assert vote(SPLIT, VoteConfig(label_from="first"), 0).dropped is None
    assert vote(SPLIT, VoteConfig(label_from="all"), 0).dropped == "low_agreement"


@pytest.mark.parametrize(("iteration", "label"), [(1, "1"), (2, "2"), (3, "2")])
def test_each_iteration_may_have_its_own_source_of_labels(iteration, label):
    held = SPLIT.model_copy(update={"iteration": iteration})
    assert vote(held, VoteConfig(label_from=("first", "last")), 0).label == label
