"""The vote, as a table and as properties."""

from collections import Counter
from itertools import permutations
from math import exp
from random import Random

import pytest
from helpers import boxed, debate, run, settings

from maft import files, report, seeds
from maft.config import CurateConfig, VoteConfig
from maft.errors import ConfigError, DataError, UserError
from maft.method.curate import critic_examples, generator_examples
from maft.method.vote import tally, vote
from maft.records import Debate, Reply, Vote
from maft.report import transcript
from maft.samplers import Scripted
from maft.samplers.scripted import guess


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
    assert tally(answers, Random(0))[:4] == (winner, counts, abstained, tied)


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


# Weights


def weighted(*ballots: tuple[str | None, float | None]):
    """Return a debate of one round: for each agent its answer and the mean log-probability of its reply."""
    held = debate([answer for answer, _ in ballots])
    turns = [
        turn.model_copy(
            update={
                "call": turn.call.model_copy(
                    update={"reply": turn.call.reply.model_copy(
                        update={"logprobs": None if mean is None else (mean - 0.5, mean + 0.5)})}
                )
            }
        )
        for turn, (_, mean) in zip(held.turns, ballots, strict=True)
    ]  # fmt: skip
    return held.model_copy(update={"turns": tuple(turns)})


BY_LIKELIHOOD = VoteConfig(weight="likelihood", min_agreement="plurality")


def test_ballots_weigh_as_likely_as_their_replies():
    held = weighted(("7", -2.0), ("7.0", -2.0), ("8", -0.1))
    assert vote(held, VoteConfig(), 0).label == "7"
    by_weight = vote(held, BY_LIKELIHOOD, 0)
    assert (by_weight.label, by_weight.counts, by_weight.votes) == ("8", (("8", 1), ("7", 2)), 1)
    assert by_weight.weights == pytest.approx((exp(-0.1), 2 * exp(-2)))
    assert (by_weight.margin, by_weight.tied, by_weight.agreement) == (0, False, 1 / 3)
    assert vote(held, VoteConfig(weight="likelihood"), 0).dropped == "low_agreement", "shares are of ballots"
    assert "weights" not in vote(held, VoteConfig(), 0).to_json()
    for order in permutations((("7", -2.0), ("7.0", -2.0), ("8", -0.1), (None, None))):
        assert vote(weighted(*order), BY_LIKELIHOOD, 0).label == "8"


def test_equal_weights_tie_as_equal_votes_do():
    tied = vote(weighted(("7", -1.0), ("8", -1.0)), BY_LIKELIHOOD, 0)
    assert tied.tied and tied.label in ("7", "8")


def test_a_likelihood_that_is_missing_is_an_error_and_no_equal_weight():
    with pytest.raises(DataError, match="log-probabilities of agent_1's reply on 7\\*8 are not known"):
        vote(weighted(("7", -1.0), ("8", None)), BY_LIKELIHOOD, 0)


def test_weights_need_log_probabilities_from_the_start(tmp_path):
    with pytest.raises(ConfigError, match=r"debate\.keep_tokens"):
        settings(tmp_path, "vote.weight=likelihood")
    asked = settings(tmp_path, "vote.weight=likelihood", "debate.keep_tokens=true")
    silent = Scripted(guess)
    with pytest.raises(UserError, match=r"engine\.sampler = scripted gave a reply without log-probabilities"):
        run(asked, silent)
    assert len(silent.history) == 1


def test_a_run_whose_votes_are_weighted(tmp_path):
    def say(request):
        answer = request.seed % 3
        return Reply(
            text=boxed(answer), finish_reason="stop", token_ids=(1,), logprobs=(-0.1 if answer == 2 else -5.0,)
        )

    asked = ("vote.weight=likelihood", "debate.keep_tokens=true", "debate.summarizer=none", "num_iterations=1")
    folder = run(settings(tmp_path, *asked), Scripted(say))
    votes = files.read_records(folder.votes(1), Vote)
    debates = files.read_records(folder.debates(1), Debate)
    assert all(
        (v.label == "2") == any(turn.answer == "2" for turn in d.round(-1)) for v, d in zip(votes, debates, strict=True)
    )
    told = next(transcript.render(transcript.load(folder, v.problem_id, 1)) for v in votes if v.label == "2")
    assert "(weight 0.905)" in told or "(weight 1." in told
    assert report.write_page(folder).exists()
