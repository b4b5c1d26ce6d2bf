"""One debate as a transcript, with who learns from it and why."""

import json
import re
import shutil
from collections import Counter
from typing import get_args

import pytest
from click.testing import CliRunner
from helpers import boxed, debate, grade, problem, run, settings

from maft import files, seeds
from maft.cli.main import maft
from maft.cli.show import _STYLES
from maft.config import CurateConfig, VoteConfig
from maft.errors import DataError
from maft.method import vote as voting
from maft.method.curate import CurateCounts
from maft.records import Debate, Example, Problem, Reply, Request, Score, Vote
from maft.report import transcript
from maft.report.transcript import How, Told
from maft.runs.folder import RunFolder
from maft.samplers import Scripted

CLEAR_SCREEN = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"


def say(request: Request) -> str | Reply:
    rng = seeds.rng("say", request.seed)
    if rng.random() < 0.005:
        return Reply(text="", finish_reason="error", error=f"{CLEAR_SCREEN} broke")
    number = rng.choice([0, 0, 1, 2, None])
    return f"{CLEAR_SCREEN} no idea" if number is None else f"{CLEAR_SCREEN} so {boxed(number)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> RunFolder:
    """A finished run of two iterations with a hostile model; tests only read it, or copy it."""
    overrides = ("num_iterations=2", "task.num_train=40", "task.num_eval=12", "task.high=7", "engine.max_failures=1")
    return run(settings(tmp_path_factory.mktemp("runs"), *overrides, "debate.summarizer=self"), Scripted(say))


@pytest.fixture
def copy(folder, tmp_path) -> RunFolder:
    shutil.copytree(folder.path, tmp_path / "run")
    return RunFolder(tmp_path / "run", folder.config)


def train_debates(folder: RunFolder, number: int) -> list[Debate]:
    return files.read_records(folder.debates(number), Debate)


def shown(folder: RunFolder, *arguments: str) -> str:
    done = CliRunner().invoke(maft, ["show", str(folder.path), *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_without_an_id_the_questions_are_listed(folder):
    lines = shown(folder, "--stage", "eval").splitlines()
    first, *_ = files.read_records(folder.problems("eval"), Problem)
    assert len(lines) == 12 and lines[0] == f"eval   {first.id}  {first.question}"
    listed = json.loads(shown(folder, "--json"))
    assert len(listed) == 52 and shown(folder, listed[0]["id"])


def test_a_transcript_has_the_question_all_turns_and_the_vote(folder):
    first = next(held for held in train_debates(folder, 2) if held.error is None)
    text = shown(folder, first.problem_id)
    assert first.question in text and "training question, iteration 2, agents finetuned once" in text
    assert "never used in training" in text
    for turn in first.turns:
        assert re.search(rf"^{turn.call.agent}  .*(right|wrong)$", text, re.M)
    assert text.count("has read this summary by critic_") == 3
    assert "Round 1: each generator answers alone" in text and "has read a summary" in text
    assert "Pseudo-label:" in text


def test_kept_and_dropped_are_marked_as_the_examples_are(folder):
    for number in (1, 2):
        sets = folder.examples_summary(number).parent.glob("*.jsonl")
        made = {(e.agent, e.problem_id): e.kind for file in sets for e in files.read_records(file, Example)}
        for held in train_debates(folder, number):
            told = transcript.load(folder, held.problem_id, number)
            text = transcript.render(told)
            assert told.vote is not None
            assert len(told.fates) == (0 if told.vote.dropped else 6)
            assert ("Nobody learns from this debate:" in text) == (told.vote.dropped is not None)
            for fate in told.fates:
                assert fate.kind == made.get((fate.agent, held.problem_id))
                assert (f"+ {fate.agent:<12} learns from it ({fate.kind})" in text) == (fate.kind is not None)
                assert (f"- {fate.agent:<12} not used: {fate.why}" in text) == (fate.kind is None)


def test_reasons_are_those_that_were_counted(folder):
    found: Counter[tuple[str, str]] = Counter()
    for held in train_debates(folder, 1):
        for fate in transcript.load(folder, held.problem_id, 1).fates:
            found[fate.agent, fate.kind or fate.why] += 1
    counts = {a: CurateCounts.model_validate(c) for a, c in files.read_json(folder.examples_summary(1)).items()}
    assert sum(count.cut_for_mix for count in counts.values()), "the test shows nothing if nothing was cut"
    for agent, count in counts.items():
        assert found[agent, "its answer could not be read"] == count.unparsed
        assert found[agent, "its answer is not the label"] == count.disagrees
        assert (
            sum(n for (who, why), n in found.items() if who == agent and "left out to mix" in why) == count.cut_for_mix
        )
        for kind in ("first", "corrected", "kept"):
            assert found[agent, kind] == getattr(count, kind)


def test_agents_that_are_not_finetuned_have_no_fate(tmp_path):
    folder = run(settings(tmp_path, "task.num_train=40", "task.high=7", "train.critics=false"), Scripted(say))
    told = [transcript.load(folder, held.problem_id, 1) for held in train_debates(folder, 1)]
    agents = {fate.agent for one in told for fate in one.fates}
    assert agents == {f"generator_{n}" for n in range(folder.config.debate.num_agents)}


def test_what_was_left_out_for_the_limit_says_so(tmp_path):
    limits = ("society.one_model=true", "debate.num_rounds=1", "curate.max_examples=3")
    folder = run(settings(tmp_path, "task.num_train=40", "task.high=7", *limits), Scripted(say))
    fates = [fate for held in train_debates(folder, 1) for fate in transcript.load(folder, held.problem_id, 1).fates]
    (count,) = files.read_json(folder.examples_summary(1)).values()
    assert sum(fate.kind is not None for fate in fates) == 3
    assert sum(fate.why == "agrees, but was left out for curate.max_examples" for fate in fates) == count["over_limit"]
    assert count["over_limit"], "the test shows nothing if nothing was left out"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ((("1", "2", "3"), ("1", "2", "3")), "only 1 of 3 answers agree with the label"),
        (((None, None, "1"), (None, None, None)), "nobody's answer could be read"),
    ],
)
def test_a_question_that_is_not_used_says_why(answers, said):
    made = debate(*answers)
    vote = voting.vote(made, VoteConfig(), 0)
    text = transcript.render(
        Told("train", problem(), made, vote, (), grade, dropped=transcript.why_dropped(vote, CurateConfig()))
    )
    assert f"Nobody learns from this debate: {said}" in text


def test_a_tie_is_said_to_be_one():
    made = debate(("1", "2", None), ("1", "2", None))
    text = transcript.render(Told("train", problem(gold="1"), made, voting.vote(made, VoteConfig(), 0), (), grade))
    assert "drawn among equals" in text and "no readable answer x 1" in text


def test_nothing_is_right_or_wrong_without_a_gold_answer():
    text = transcript.render(Told("train", problem(gold=None), debate("111", "111"), None, (), grade))
    assert "Gold answer: not known" in text and "right" not in text and "wrong" not in text


def test_a_failed_debate_shows_what_there_is(folder):
    votes = {number: files.read_records(folder.votes(number), Vote) for number in (1, 2)}
    number, vote = next((n, v) for n, found in votes.items() for v in found if v.dropped == "failed")
    text = shown(folder, vote.problem_id, "--iteration", str(number))
    assert "The debate failed: " in text and "Nobody learns from this debate: the debate failed." in text


def test_a_model_cannot_steer_the_terminal(folder):
    for held in train_debates(folder, 1)[:10]:
        text = shown(folder, held.problem_id)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
        assert "\\x1b[2J" in text and "\\u202e" in text


def test_questions_and_answers_cannot_either():
    hostile = problem(name=f"7{CLEAR_SCREEN}", gold=CLEAR_SCREEN).model_copy(update={"question": CLEAR_SCREEN})
    made = debate((CLEAR_SCREEN,) * 3, (CLEAR_SCREEN,) * 3, error=CLEAR_SCREEN)
    vote = Vote(
        iteration=1, problem_id="x", label=CLEAR_SCREEN, counts=((CLEAR_SCREEN, 3),), num_ballots=3, abstained=0,
        tied=False, dropped=None,
    )  # fmt: skip
    assert not re.search(r"[\x1b\x07\x9b\u202e]", transcript.render(Told("train", hostile, made, vote, (), grade)))


def test_the_last_iteration_is_shown_unless_another_is_asked_for(folder):
    name = train_debates(folder, 1)[0].problem_id
    assert "iteration 2, agents finetuned once" in shown(folder, name)
    assert "iteration 1, untrained agents" in shown(folder, name, "--iteration", "1")


def test_the_answer_to_a_held_out_question_is_the_one_that_was_scored(folder):
    for number, method in ((0, "debate"), (2, "maft")):
        for score in files.read_records(folder.evaluation(number) / f"{method}.jsonl", Score):
            told = transcript.load(folder, score.problem_id, number, "eval")
            assert told.vote is not None and told.vote.label == score.answers[0]
            text = transcript.render(told)
            assert "held-out question" in text and "learn" not in text
            if score.correct is not None:
                assert re.search(rf"^Answer: .*{'right' if score.correct[0] else 'wrong'}", text, re.M)


def test_an_unknown_question_names_its_neighbours_and_how_many_there_are(folder):
    name = train_debates(folder, 1)[0].problem_id
    with pytest.raises(DataError, match=rf"'{re.escape(name)}'.*40 training and 12 held-out") as raised:
        transcript.load(folder, f"{name}\x1b")
    assert "\x1b" not in str(raised.value)
    with pytest.raises(DataError, match="has no question 'zzz'. Some of its ids: "):
        transcript.load(folder, "zzz")


def test_the_wrong_stage_or_iteration_is_explained(folder):
    name = train_debates(folder, 1)[0].problem_id
    with pytest.raises(DataError, match="is a training question. Leave --stage out, or give --stage train"):
        transcript.load(folder, name, stage="eval")
    with pytest.raises(DataError, match="not been debated in iteration 7. The run has iterations 1 to 2"):
        transcript.load(folder, name, 7)


def test_a_run_without_questions_says_so(tmp_path):
    with RunFolder.open(settings(tmp_path)) as folder, pytest.raises(DataError, match="has no questions yet"):
        transcript.load(folder, "1+1")


def test_a_debate_can_be_read_while_its_stage_goes_on(copy):
    last = train_debates(copy, 2)[-1]
    copy.votes(2).unlink()
    path = copy.debates(2)
    path.write_bytes(path.read_bytes()[:-20])
    assert transcript.load(copy, last.problem_id).debate.iteration == 1, "a torn line counts as absent"
    other = train_debates(copy, 1)[0].problem_id
    text = shown(copy, other)
    assert "iteration 2" in text and "The votes are counted when all debates of this stage are done." in text


def test_a_debate_that_was_held_again_is_shown_as_it_went_the_second_time(copy):
    first = train_debates(copy, 2)[0]
    copy.votes(2).unlink()
    files.append_records(copy.debates(2), [first.model_copy(update={"question": "the second time"})])
    assert transcript.load(copy, first.problem_id).debate.question == "the second time"


def test_a_broken_line_is_named(copy):
    with copy.debates(2).open("a", encoding="utf-8") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match=r"debates.jsonl, line 41, is not a Debate"):
        transcript.load(copy, train_debates(copy, 1)[0].problem_id)


def test_examples_that_are_not_made_yet_are_not_called_dropped(copy):
    used = next(vote for vote in files.read_records(copy.votes(2), Vote) if vote.dropped is None)
    copy.examples_summary(2).unlink()
    assert "The examples of this iteration are not made yet." in shown(copy, used.problem_id)


def test_colours_are_for_terminals_only(folder):
    told = transcript.load(folder, train_debates(folder, 1)[0].problem_id)
    assert "\x1b" not in shown(folder, told.problem.id)
    painted = transcript.render(told, lambda text, how: f"<{how}>{text}</>")
    assert "<title>generator_0</>" in painted
    assert set(_STYLES) == set(get_args(How))


def test_help_has_examples():
    assert "Examples:" in CliRunner().invoke(maft, ["show", "--help"]).stdout


def test_a_debate_is_json_on_request(folder, call):
    question = files.read_records(folder.problems("train"), problem().__class__)[0].id
    code, out, _ = call("show", str(folder.path), question, "--json")
    told = json.loads(out)
    assert code == 0 and (told["stage"], told["debate"]["problem_id"]) == ("train", question)
    assert told["vote"]["problem_id"] == question


def test_an_id_may_be_of_a_training_and_of_a_held_out_question(tmp_path):
    for name in ("train", "eval"):
        rows = [{"id": n, "question": f"{name} {n}?", "answer": n} for n in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sides = {f"{name}_file": str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")}
    ran = run(settings(tmp_path, "engine.max_failures=1", task={"name": "dataset", **sides}), Scripted(say))
    assert transcript.load(ran, "2", stage="train").problem.question == "train 2?"
    assert transcript.load(ran, "2", stage="eval").problem.question == "eval 2?"
    assert transcript.load(ran, "2").stage == "train" and transcript.load(ran, "2", iteration=0).stage == "eval"


@pytest.mark.parametrize("more", ["curate.keep=all", "train.generator.objective=kto"])
def test_every_example_is_shown_whatever_it_is_learned_for(tmp_path, more):
    config = settings(
        tmp_path, "task.num_train=40", "task.high=7", "debate.num_samples=3", "engine.max_failures=1", more
    )
    folder = run(config, Scripted(say))
    sets = folder.examples_summary(1).parent.glob("*.jsonl")
    made = {(e.agent, e.problem_id, e.kind) for file in sets for e in files.read_records(file, Example)}
    told = [transcript.load(folder, held.problem_id, 1) for held in train_debates(folder, 1)]
    assert {(f.agent, one.problem.id, f.kind) for one in told for f in one.fates if f.kind} == made
    for one in told:
        used = any(problem_id == one.problem.id for _, problem_id, _ in made)
        assert used == ("learns from it" in transcript.render(one))
