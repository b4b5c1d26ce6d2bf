"""Votes are counted once: whoever asks later which answers are the same reads the partition."""

import json
import random
import shutil

import pytest
from helpers import boxed, debate, grade, held_out, problem, run, run_files, scored, settings
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from test_report import hostile_guess

from maft import files, report
from maft.answers import EQUALITIES
from maft.config import CurateConfig, VoteConfig
from maft.evaluation.metrics import summarize
from maft.evaluation.votes import graded
from maft.evaluation.votes import held_out as read_held_out
from maft.library import LoadedSociety
from maft.library import open as open_run
from maft.method import vote as voting
from maft.method.curate import critic_examples, generator_examples
from maft.records import GradedVote, Problem, Score, Vote
from maft.report import data as report_data
from maft.report import debates as report_debates
from maft.report import transcript
from maft.runs.folder import RunFolder
from maft.samplers import Scripted

# y=2x is 2x, and 2x is z=2x, but y=2x is not z=2x: pairwise equality of mathematics is not transitive.
TEXTS = ["y=2x", "2x", "z=2x", "1/2", "0.5", "3", "Dog", "dog", "1 2", "2 1", "1, 2"]
ANSWERS = st.lists(st.none() | st.sampled_from(TEXTS), min_size=3, max_size=3)


@pytest.mark.parametrize("name", sorted(EQUALITIES))
@given(
    rounds=st.lists(ANSWERS, min_size=2, max_size=3), samples=ANSWERS, over=st.sampled_from(["last", "first", "all"])
)
@how(max_examples=60, deadline=None)
def test_no_ballot_of_the_winning_class_disagrees(name, rounds, samples, over):
    held = debate(*rounds, samples=samples)
    vote = voting.vote(held, VoteConfig(label_from=over, min_agreement="plurality"), 0, EQUALITIES[name]())
    classes = vote.classes(held)
    ballots = voting.ballots(held, over)
    winning = [turn for turn in ballots if turn.answer is not None and classes[turn.answer] == vote.winner]
    assert len(winning) == vote.votes and sum(votes for _, votes in vote.counts) + vote.abstained == len(ballots)
    if vote.label is None:
        assert not vote.counts and vote.dropped == "no_answer"
        return
    assert classes[vote.label] == vote.winner and {turn.answer for turn in winning} <= vote.agreeing(held)
    votes = {held.problem_id: vote}
    for agent in range(3):
        is_label = [classes[turn.answer] == vote.winner for turn in (held.round(1)[agent], held.round(-1)[agent])]
        critic = critic_examples([held], votes, agent, CurateConfig(), 0).counts
        assert (critic.kept, critic.corrected) == (is_label == [True, True], is_label == [False, True])
        generator = generator_examples([held], votes, agent, CurateConfig(examples_per_question=9)).counts
        assert generator.disagrees + generator.unparsed == (not generator.first)
        firsts = [turn.answer for turn in held.first_answers(agent)]
        assert bool(generator.first) == any(classes[answer] == vote.winner for answer in firsts)


@given(rounds=st.lists(ANSWERS, min_size=1, max_size=2), seed=st.integers(0, 99))
@how(max_examples=60, deadline=None)
def test_the_label_and_the_classes_do_not_depend_on_the_order_of_the_agents(rounds, seed):
    order = random.Random(seed).sample(range(3), 3)
    held, other = debate(*rounds), debate(*[[answers[n] for n in order] for answers in rounds])
    votes = [voting.vote(one, VoteConfig(), seed) for one in (held, other)]
    assert votes[0].label == votes[1].label and votes[0].counts == votes[1].counts
    assert votes[0].agreeing(held) == votes[1].agreeing(other)


def test_the_partition_has_a_class_for_each_turn_and_then_each_sample():
    held = debate(["1", "2", None], ["0.5", "1/2", "2"], samples=["1.0"])
    vote = voting.vote(held, VoteConfig(), 0)
    assert vote.partition == (0, 1, None, 2, 2, 1, 0)
    assert (vote.label, vote.winner, vote.votes) == ("0.5", 2, 2)


def test_the_tasks_equality_decides_who_agrees():
    held = debate(["Dog", "dog", "dog"])
    counts = {name: voting.vote(held, VoteConfig(), 0, EQUALITIES[name]()).votes for name in ("text", "exact")}
    assert counts == {"text": 3, "exact": 2}


def test_classes_are_graded_and_the_known_answer_is_not_part_of_the_vote():
    held = debate(["1/2", "2", None], ["0.5", "3", "3"])
    vote = voting.vote(held, VoteConfig(), 0)
    made = graded(vote, held, problem(gold="0.50"), grade, voting.representative)
    assert made.partition == (0, 1, None, 0, 2, 2) and made.grades == (True, False, False)
    assert made.verdicts(held) == {"1/2": True, "0.5": True, "2": False, "3": False, None: False}
    unknown = graded(vote, held, problem(gold=None), grade, voting.representative)
    assert unknown.grades is None and set(unknown.verdicts(held).values()) == {None}


def test_answers_that_tie_are_drawn_alike_by_every_vote_on_a_question():
    held = [debate(["1", "2", "3"], ["3", "1", "2"], problem_id=f"q{n}") for n in range(20)]
    problems = {one.problem_id: problem(one.problem_id, "2") for one in held}
    made = scored(held, problems, 1)
    first, last = ([score.answers for score in made[name]] for name in ("maft_majority@3", "maft"))
    assert first == last == [(held_out(held, problems).votes[one.problem_id].label,) for one in held]
    assert {answers[0] for answers in first} == {"1", "2", "3"}
    assert [voting.vote(one, VoteConfig(min_agreement="plurality"), 0).label for one in held] == [a for (a,) in last]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    size = ("task.num_train=24", "task.num_eval=16", "task.high=9", "vote.min_agreement=plurality")
    return run(settings(tmp_path_factory.mktemp("runs"), *size), Scripted(hostile_guess))


def test_held_out_votes_are_kept_and_are_what_was_scored(folder):
    kept = files.read_records(folder.held_out_votes(1), GradedVote)
    made = {score.problem_id: score for score in read_scores(folder, "maft")}
    assert len(kept) == len(made) == 16
    assert all((vote.label,) == made[vote.problem_id].answers for vote in kept)
    assert all(vote.dropped is None and vote.grades is not None for vote in kept)
    held = read_held_out(folder, 1)
    for one in held.debates:
        question = problem(one.problem_id, next(p.gold for p in questions(folder) if p.id == one.problem_id))
        for turn in one.all_turns:
            assert held.verdicts[one.problem_id][turn.answer] == grade(question, turn.answer)


def test_a_folder_of_an_older_maft_is_read_as_it_was_scored(folder, tmp_path):
    """Schema 1: votes without a partition, and none on held-out questions."""
    old = tmp_path / "old"
    shutil.copytree(folder.path, old)
    for file in old.rglob("votes.jsonl"):
        if file.parent.name == "eval":
            file.unlink()
            continue
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            del row["partition"], row["winner"]
            row["schema_version"] = 1
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    older = RunFolder.existing(old)
    assert files.read_records(older.votes(1), Vote)[0].partition is None
    for number in (0, 1):
        assert read_held_out(older, number).verdicts == read_held_out(folder, number).verdicts
        mine, theirs = (read_held_out(one, number).votes for one in (folder, older))
        named = [{v.problem_id: (v.label, v.winner) for v in votes.values()} for votes in (mine, theirs)]
        assert named[0] == named[1] and any(winner is not None for _, winner in named[0].values())
    assert report.write_page(older).read_text() and report.rows(older) == report.rows(folder)
    pages = [[s.debates for s in report_debates._training(one)] for one in (folder, older)]
    assert [[d.first for d in of] for of in pages[0]] == [[d.first for d in of] for of in pages[1]]
    fates = [[d.fates for d in of] for of in pages[0]]
    assert fates == [[d.fates for d in of] for of in pages[1]] and any(map(any, fates))


def test_what_corrected_and_spoiled_mean_of_training_debates_is_the_draw_of_the_run(folder):
    (trained,) = report_debates._training(folder)
    ties = 0
    for shown in trained.debates:
        if shown.debate.error is None:
            by_first = voting.vote(shown.debate, VoteConfig(label_from="first"), folder.config.seed)
            assert shown.first == by_first.label
            ties += by_first.tied
    assert ties, "the test shows nothing without ties"


def test_a_transcript_marks_what_the_vote_has_grouped(folder):
    (trained,) = report_debates._training(folder)
    for shown in trained.debates[:5]:
        told = transcript.load(folder, shown.debate.problem_id, 1)
        assert told.vote == shown.vote
    name, vote = next(iter(read_held_out(folder, 1).votes.items()))
    assert transcript.load(folder, name, 1).vote == vote


def test_the_protocol_says_who_votes():
    held = debate(["1", "1", "2"], ["3", "3", "2"])
    vote = voting.vote(held, VoteConfig(), 0, choose=lambda debate, which: debate.round(-1)[2:])
    assert (vote.label, vote.num_ballots, vote.votes) == ("2", 1, 1)
    assert vote.partition == (0, 0, 1, 2, 2, 1)


def test_failed_debates_and_ties_are_said_under_the_table(tmp_path):
    held = [debate(["1"] * 3, problem_id="a"), debate(["1"] * 3, problem_id="b", error="critic_0: timeout")]
    made = scored(held, {name: problem(name, "1") for name in "ab"}, 1)
    found = [summarize(scores) for scores in made.values()]
    assert report_data.notes(found) == ["Iteration 1: 1 of 2 debates failed, which counts as wrong."]
    tied = run(settings(tmp_path, "vote.ties=abstain", "task.high=9", "task.num_eval=16"), Scripted(hostile_guess))
    last = next(r for r in report_data.results(tied) if (r.iteration, r.method) == (1, "maft"))
    assert last.tied and f"Iteration 1, maft: {last.tied} of 16 votes are tied" in report.table(tied)


def test_a_loaded_society_votes_by_the_tasks_equality(tmp_path):
    folder = run(settings(tmp_path, "task.equality=exact", "debate.summarizer=none"))
    spellings = iter(["7", "7.0", "7.00"] * 2)
    society = LoadedSociety(open_run(folder.path), 1, Scripted(lambda _: boxed(next(spellings))))
    assert len(society.ask("What is 3 + 4?").vote.counts) == 3


def test_a_second_start_changes_no_file(folder):
    before = run_files(folder.path)
    run(folder.config, Scripted(hostile_guess))
    assert run_files(folder.path) == before


def questions(folder):
    return files.read_records(folder.problems("eval"), Problem)


def read_scores(folder, method):
    return files.read_records(folder.scores(1, method), Score)
