"""Who learns from what: exact counts, every variant."""

from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from helpers import debate, run, settings

from maft.answers.meaning import Embedded
from maft.config import CurateConfig, VoteConfig
from maft.errors import ConfigError
from maft.method import curate
from maft.method import vote as voting
from maft.method.contrast import generator_contrasts
from maft.method.curate import Curated, critic_examples, generator_examples, mix
from maft.records import Example

KINDS = {"corrected": ("2", "1"), "kept": ("1", "1"), "spoilt": ("1", "2"), "unparsed": ("1", None)}


def critic(num_corrected: int, num_kept: int, *, seed: int = 0, **settings: object) -> Curated:
    """Curate critic 0 of this many dialogues of each kind."""
    held = [
        debate([first, "1", "1"], [last, "1", "1"], problem_id=f"{kind} {n}")
        for kind, number in (("corrected", num_corrected), ("kept", num_kept), ("spoilt", 2), ("unparsed", 3))
        for n in range(number)
        for first, last in (KINDS[kind],)
    ]
    votes = {d.problem_id: voting.vote(d, VoteConfig(), 0) for d in held}
    return critic_examples(held, votes, 0, CurateConfig(**settings), seed)


def test_sampled_tokens_come_with_the_examples_where_they_were_kept():
    held = debate(["1", "1", "1"], ["1", "1", "1"])
    turns = []
    for turn in held.turns:
        sampled = {"token_ids": (turn.round, turn.agent), "logprobs": (-float(turn.round), -0.5)}
        reply = turn.call.reply.model_copy(update=sampled)
        turns.append(turn.model_copy(update={"call": turn.call.model_copy(update={"reply": reply})}))
    kept = held.model_copy(update={"turns": tuple(turns)})
    votes = {held.problem_id: voting.vote(held, VoteConfig(), 0)}
    (example,) = critic_examples([kept], votes, 1, CurateConfig(), 0).examples
    assert (example.token_ids, example.logprobs) == (((1, 1), (2, 1)), (-2.0, -0.5))
    (example,) = generator_examples([kept], votes, 1).examples
    assert (example.token_ids, example.logprobs) == (((1, 1),), (-1.0, -0.5))
    assert generator_examples([held], votes, 1).examples[0].token_ids is None


@pytest.mark.parametrize(
    ("there", "w", "short_side", "used"),
    [
        ((4, 12), 0.5, "cut", (4, 4)),
        ((12, 4), 0.5, "cut", (4, 4)),
        ((4, 12), 0.25, "cut", (4, 12)),
        ((4, 12), 0.2, "cut", (3, 12)),
        ((4, 12), 0.75, "cut", (4, 1)),
        ((12, 4), 0.75, "cut", (12, 4)),
        ((1, 100), 0.5, "cut", (1, 1)),
        ((1, 1), 0.01, "cut", (1, 1)),
        ((4, 12), 0.5, "repeat", (12, 12)),
        ((12, 4), 0.5, "repeat", (12, 12)),
        ((4, 12), 0.25, "repeat", (4, 12)),
        ((5, 10), 2 / 3, "repeat", (20, 10)),
        ((4, 12), 0.5, "use_all", (4, 12)),
        ((4, 12), 1.0, "cut", (4, 0)),
        ((4, 12), 0.0, "cut", (0, 12)),
        ((4, 12), 1.0, "repeat", (4, 0)),
    ],
)
def test_the_mix_has_exactly_the_share_asked_for(there, w, short_side, used):
    made = critic(*there, critic_mix=w, short_side=short_side)
    counts = made.counts
    assert (counts.corrected, counts.kept) == used
    assert counts.examples == len(made.examples) == sum(used)
    distinct = len({example.problem_id for example in made.examples})
    assert counts.cut_for_mix == sum(there) - distinct
    assert counts.repeated_for_mix == sum(used) - distinct


@pytest.mark.parametrize("short_side", ["cut", "repeat", "use_all"])
@pytest.mark.parametrize("w", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("there", [(0, 7), (7, 0), (0, 1), (1, 0)])
def test_an_empty_side_never_empties_the_set(there, w, short_side):
    made = critic(*there, critic_mix=w, short_side=short_side)
    assert (made.counts.corrected, made.counts.kept) == there
    assert made.counts.cut_for_mix == made.counts.repeated_for_mix == 0


@pytest.mark.parametrize("short_side", ["cut", "repeat", "use_all"])
def test_both_sides_are_in_the_mix_whatever_their_sizes(short_side):
    sizes = (1, 2, 9, 29)
    for num_corrected, num_kept, w in product(sizes, sizes, (0.05, 0.5, 0.9)):
        counts = critic(num_corrected, num_kept, critic_mix=w, short_side=short_side).counts
        assert counts.corrected and counts.kept
        if short_side == "cut":
            assert counts.corrected <= num_corrected and counts.kept <= num_kept
        if short_side == "repeat":
            assert counts.cut_for_mix == 0


def test_a_repeated_example_is_used_again_only_after_all_others():
    made = critic(5, 12, short_side="repeat")
    times = Counter(e.problem_id for e in made.examples if e.kind == "corrected")
    assert sorted(times.values()) == [2, 2, 2, 3, 3]


def test_what_is_cut_is_drawn_by_the_seed():
    def kept(seed: int) -> set[str]:
        return {e.problem_id for e in critic(3, 30, seed=seed).examples if e.kind == "kept"}

    assert kept(0) == kept(0) != kept(1)
    assert len(set().union(*(kept(seed) for seed in range(60)))) == 30


def test_examples_stay_in_the_order_of_the_questions():
    made = critic(6, 9)
    numbers = [(e.kind, int(e.problem_id.split()[1])) for e in made.examples]
    assert numbers == sorted(numbers)


def test_every_response_is_an_example_or_is_counted_by_its_reason():
    counts = critic(4, 12).counts.model_dump(exclude_defaults=True)
    assert counts.pop("examples") == 8
    assert counts == {"corrected": 4, "kept": 4, "cut_for_mix": 8, "disagrees": 2, "unparsed": 3}
    assert sum(counts.values()) == 4 + 12 + 2 + 3


def test_a_first_answer_that_could_not_be_parsed_was_not_right():
    held = [debate([None, "1", "1"], ["1", "1", "1"])]
    votes = {"7*8": voting.vote(held[0], VoteConfig(), 0)}
    assert critic_examples(held, votes, 0, CurateConfig(), 0).counts.corrected == 1
    assert generator_examples(held, votes, 0).counts.unparsed == 1


def test_one_round_gives_generators_their_examples():
    held = [debate(["1", "1", "2"])]
    votes = {"7*8": voting.vote(held[0], VoteConfig(), 0)}
    assert [generator_examples(held, votes, n).counts.examples for n in range(3)] == [1, 1, 0]


def test_three_rounds_are_judged_by_the_first_and_the_last():
    held = [debate(["1", "1", "1"], ["2", "1", "1"], ["1", "1", "1"])]
    votes = {"7*8": voting.vote(held[0], VoteConfig(), 0)}
    (example,) = critic_examples(held, votes, 0, CurateConfig(), 0).examples
    assert example.kind == "kept" and len(example.messages) == 6


def test_no_examples_mix_to_none():
    assert mix([], CurateConfig(), 0) == ()


def test_mixing_all_changes_nothing():
    found = [Example(iteration=1, problem_id=str(n), agent="critic_0", kind="kept", messages=()) for n in range(5)]
    assert mix(found, CurateConfig(), 0) == tuple(found)


@pytest.mark.parametrize(("most", "used"), [(1, 1), (2, 2), (5, 2)])
def test_a_generator_learns_from_several_agreeing_answers_to_one_question(most, used):
    held = [debate(["1", "1", "2"], ["1", "1", "1"], samples=["1", "2", "1"])]
    votes = {d.problem_id: voting.vote(d, VoteConfig(), 0) for d in held}
    made = generator_examples(held, votes, 0, CurateConfig(examples_per_question=most))
    assert made.counts.examples == made.counts.first == used
    assert len({example.messages for example in made.examples}) == used
    late = generator_examples(held, votes, 2, CurateConfig(examples_per_question=most))
    assert [e.messages[-1].content for e in late.examples] == ["2: It is \\boxed{1}."]


def test_the_most_distinct_of_several_first_answers_is_learned():
    held = debate(["56"] * 2, ["56"] * 2)
    first, other = held.round(1)
    say = lambda turn, text: turn.model_copy(  # noqa: E731
        update={"call": turn.call.model_copy(update={"reply": turn.call.reply.model_copy(update={"text": text})})}
    )
    held = held.model_copy(
        update={
            "turns": (say(first, "seven eights are 56"), say(other, "seven eights are 56 of course"), *held.round(2)),
            "samples": (say(first, "40 and 16 make 56"),),
        }
    )
    votes = {held.problem_id: voting.vote(held, VoteConfig(label_from="first"), 0)}
    for choose, learned in (("first", "seven eights are 56"), ("distinct", "40 and 16 make 56")):
        (made,) = generator_examples([held], votes, 0, CurateConfig(choose=choose)).examples
        assert made.messages[-1].content == learned
    with pytest.raises(ConfigError, match="curate.choose = distinct chooses among several first answers"):
        settings(Path("runs"), "curate.choose=distinct")
    with pytest.raises(ConfigError, match="examples_per_question = 2 has no effect: debate.num_samples is 1"):
        settings(Path("runs"), "curate.examples_per_question=2")
    settings(Path("runs"), "curate.examples_per_question=2", "debate.num_samples=2")


def test_distinct_is_the_share_of_words_and_pairs_of_words_that_no_other_agent_has():
    held = debate(["56"] * 2)
    near, far = (
        held.turns[0].call.reply.model_copy(update={"text": text})
        for text in ("It is 57.", "Well, it is known that seven times eight \\boxed{56}. It is what it is.")
    )
    how = CurateConfig(choose="distinct", examples_per_question=2)
    assert curate.choose([near, far], held, 0, how) == [far, near], "more words in common, but a smaller share"
    apart = [near.model_copy(update={"text": text}) for text in ("It \\boxed{56}. is", "It is \\boxed{56}.")]
    assert curate.choose(apart[::-1], held, 0, how) == apart, "the same words in another order"
    alone = debate(["56"])
    assert curate.choose([near, far], alone, 0, how) == [near, far], "nobody else answered"


def test_the_same_words_are_learned_once():
    held = [debate(["1", "1", "1"], ["1", "1", "1"])]
    twice = held[0].model_copy(update={"samples": held[0].round(1)})
    votes = {twice.problem_id: voting.vote(twice, VoteConfig(), 0)}
    assert generator_examples([twice], votes, 0, CurateConfig(examples_per_question=2)).counts.examples == 1


def test_examples_are_drawn_by_the_margin_of_their_vote():
    held = [
        debate(answers, answers, problem_id=f"{n}")
        for n, answers in enumerate([["1", "1", "1"]] * 30 + [["1", "1", "2"]] * 30)
    ]
    votes = {d.problem_id: voting.vote(d, VoteConfig(), 0) for d in held}
    made = generator_examples(held, votes, 0, CurateConfig(weight_by="margin"), run_seed=1).examples
    assert len(made) == 60
    copies = Counter(example.problem_id for example in made)
    sure, close = (sum(copies[str(n)] for n in places) for places in (range(30), range(30, 60)))
    assert (sure, close) == (45, 15)  # margins 3 and 1
    assert {copies[str(n)] for n in range(30)} == {1, 2} and {copies[str(n)] for n in range(30, 60)} == {0, 1}
    assert made == generator_examples(held, votes, 0, CurateConfig(weight_by="margin"), run_seed=1).examples
    critics = critic_examples(held, votes, 0, CurateConfig(weight_by="margin"), 1)
    assert critics.counts.kept == critics.counts.examples == 60


def test_votes_without_a_margin_weigh_nothing():
    held = [debate(["1", "2"], ["1", "2"])]
    votes = {d.problem_id: voting.vote(d, VoteConfig(min_agreement="plurality"), 0) for d in held}
    plain, weighed = (
        [generator_examples(held, votes, n, CurateConfig(weight_by=by)).counts.examples for n in (0, 1)]
        for by in ("none", "margin")
    )
    assert plain == weighed and sum(plain) == 1


def cut(held, *places: tuple[int, int]):
    """Return a debate in which the replies of these rounds and agents ended at the limit of tokens."""

    def ended(turn):
        reply = turn.call.reply.model_copy(update={"finish_reason": "length"})
        return turn.model_copy(update={"call": turn.call.model_copy(update={"reply": reply})})

    turns = tuple(ended(turn) if (turn.round, turn.agent) in places else turn for turn in held.turns)
    return held.model_copy(update={"turns": turns})


def test_a_reply_that_was_cut_is_never_learned_and_is_counted():
    held = cut(debate(["1", "2", "1"], ["1", "1", "1"]), (1, 0), (1, 1), (2, 2))
    votes = {held.problem_id: voting.vote(held, VoteConfig(), 0)}
    assert votes[held.problem_id].counts == (("1", 3),)
    generators = [generator_examples([held], votes, n).counts for n in range(3)]
    assert [(c.first, c.cut, c.disagrees) for c in generators] == [(0, 1, 0), (0, 0, 1), (1, 0, 0)]
    for turns, expected in (("last", [(1, 0), (1, 0), (0, 1)]), ("all", [(0, 1), (0, 1), (0, 1)])):
        critics = [critic_examples([held], votes, n, CurateConfig(), 0, turns).counts for n in range(3)]
        assert [(c.examples, c.cut) for c in critics] == expected


def test_a_reply_that_was_cut_votes_unless_it_is_told_not_to():
    held = cut(debate(["1", "1", "1"], ["1", "1", "2"]), (2, 0), (2, 1))
    assert voting.vote(held, VoteConfig(), 0).label == "1"
    vote = voting.vote(held, VoteConfig(count_cut=False, min_agreement="plurality"), 0)
    assert (vote.label, vote.counts, vote.abstained, vote.num_ballots) == ("2", (("2", 1),), 2, 3)


def test_a_reply_that_was_cut_names_no_class_where_it_does_not_vote():
    equality = Embedded(lambda texts: [[float(text.count(letter)) for letter in "abcd"] for text in texts], 0.8)
    held = cut(debate(["aaaab", "aab", "ab"]), (1, 1))
    assert voting.vote(held, VoteConfig(), 0, equality).label == "aab"
    assert voting.vote(held, VoteConfig(count_cut=False, min_agreement="plurality"), 0, equality).label == "ab"


# Gain


def test_a_first_answer_gains_what_the_others_come_to_after_reading_it():
    won = debate(["7", "1", "2"], ["7", "7", "7"])
    lost = debate(["7", "7", "7"], ["7", "1", "7"])
    silent = won.model_copy(update={"turns": tuple(t for t in won.turns if (t.round, t.agent) != (2, 1))})

    def gains(held) -> list[float]:
        made = voting.vote(held, VoteConfig(min_agreement="plurality", label_from="all"), 0)
        assert made.label == "7"
        return [curate.gain(held, made, agent) for agent in range(3)]

    assert gains(won) == [1.0, 0.5, 0.5] and gains(lost) == [-0.5, 0.0, -0.5]
    assert gains(silent) == [0.5, 0.5, 0.0], "who is not asked again keeps its answer"
    assert curate.gain(debate(["7"]), voting.vote(debate(["7"]), VoteConfig(), 0), 0) == 0


def test_answers_that_win_over_others_are_learned_more_often():
    held = [debate(["7", "1", "2"], ["7"] * 3, problem_id=f"won{n}") for n in range(20)]
    held += [debate(["7"] * 3, ["7", "7", "1"], problem_id=f"lost{n}") for n in range(20)]
    votes = {one.problem_id: voting.vote(one, VoteConfig(), 0) for one in held}
    how = CurateConfig(weight_by="gain")
    learned = Counter(e.problem_id[:-1].rstrip("1") for e in generator_examples(held, votes, 0, how, 1).examples)
    assert learned == {"won": 32, "lost": 8}, "worth 2 and 0.5"
    assert len(critic_examples(held, votes, 0, how, 1).examples) == 40, "nobody reads the last answers"
    plain = critic_examples(held, votes, 0, CurateConfig(), 1).examples
    assert critic_examples(held, votes, 0, how, 1).examples == plain
    assert len(generator_examples(held[-1:], votes, 0, how, 1).examples) == 1, "there is nothing else to draw"


def test_wrong_answers_that_win_over_others_are_unlearned_more_often():
    kinds = {"won": (["7", "7", "2"], ["7"] * 3), "misled": (["1", "7", "7"], ["1", "1", "7"])}
    kinds["harmless"] = (["1", "7", "7"], ["1", "7", "7"])
    held = [debate(*rounds, problem_id=f"{kind} {n}") for kind, rounds in kinds.items() for n in range(16)]
    votes = {one.problem_id: voting.vote(one, VoteConfig(label_from="first"), 0) for one in held}
    made = generator_contrasts(held, votes, 0, CurateConfig(weight_by="gain"), 1, "judged").examples
    learned = Counter((e.problem_id.split()[0], e.wanted) for e in made)
    assert learned == {("won", True): 18, ("misled", False): 18, ("harmless", False): 12}, "worth 1.5, 1.5 and 1"


def test_a_gain_needs_a_next_round(tmp_path):
    for alone in ("debate.num_rounds=1", "debate.protocol=vote"):
        with pytest.raises(ConfigError, match=r"curate\.weight_by = gain needs a round after"):
            settings(tmp_path, "curate.weight_by=gain", alone)
    folder = run(
        settings(tmp_path, "curate.weight_by=gain", "debate.summarizer=none", "task.num_train=20", "task.high=5")
    )
    assert folder.evaluated(1)


def test_controls_have_other_labels_on_the_same_questions():
    held = [debate(["1", "1", "2"], problem_id=f"q{n}") for n in range(40)]
    held += [debate(["1", "2", None], problem_id="low"), debate(["7", "7", "7"], problem_id="all")]
    of = {
        label: {d.problem_id: voting.vote(d, VoteConfig(label=label), 0) for d in held}
        for label in ("majority", "random", "least_frequent")
    }
    assert len({tuple(vote.dropped for vote in votes.values()) for votes in of.values()}) == 1
    assert of["majority"]["q0"].label == "1" and {votes["all"].label for votes in of.values()} == {"7"}
    assert {of["least_frequent"][f"q{n}"].label for n in range(40)} == {"2"}
    assert {of["random"][f"q{n}"].label for n in range(40)} == {"1", "2"}
    fewest = of["least_frequent"]["q0"]
    assert (fewest.counts, fewest.votes, fewest.margin, fewest.agreeing(held[0])) == ((("2", 1), ("1", 2)), 1, 0, {"2"})
    taught = [generator_examples(held, of["least_frequent"], n).counts for n in range(3)]
    assert [one.examples for one in taught] == [1, 1, 41] and taught[0].disagrees == 40


def test_the_answer_of_a_debate_is_the_majoritys_in_a_control_too():
    held = debate(["1", "1", "2"])
    assert voting.vote(held, VoteConfig(label="least_frequent"), 0, over="last").label == "1"


def test_controls_without_labels_learn_whatever_was_answered():
    held = [
        debate(["1", "1", "2"], ["1", "2", "3"], problem_id="low"),
        debate(["1", None, "2"], [None, "1", "1"], problem_id="q"),
        debate(["1"], problem_id="failed", error="failed"),
    ]
    votes = {d.problem_id: voting.vote(d, VoteConfig(), 0) for d in held}

    def used(make, agent, keep):
        made = make(held, votes, agent, CurateConfig(keep=keep), 0)
        assert made.counts.failed == 1
        return [example.problem_id for example in made.examples], made.counts.unparsed

    assert [used(generator_examples, n, "all") for n in range(3)] == [(["low", "q"], 0)] * 3
    assert [used(generator_examples, n, "readable") for n in range(3)] == [
        (["low", "q"], 0),
        (["low"], 1),
        (["low", "q"], 0),
    ]
    assert used(critic_examples, 0, "all") == (["low", "q"], 0)
    assert used(critic_examples, 0, "readable") == (["low"], 1)
    assert used(critic_examples, 0, "agreeing") == ([], 1)


def test_controls_without_labels_cannot_learn_from_dissenting_responses(tmp_path):
    with pytest.raises(ConfigError, match="curate.keep = all has none"):
        settings(tmp_path, "curate.keep=all", "train.objective=kto")
