"""Numbers: what is right, what it cost, and how sure we are."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import call, debate, grade, held_out, problem, run, scored, settings, voting_by

from maft import files, report, tasks
from maft.config import TaskConfig, VoteConfig
from maft.evaluation import reliability, series
from maft.evaluation.agents import agent_accuracies
from maft.evaluation.flow import by_round, flows
from maft.evaluation.labels import label_quality
from maft.evaluation.lenient import lenient
from maft.evaluation.methods import Scoring, agreeing_most, names, score_member, votes_at_budget
from maft.evaluation.metrics import summarize, wilson
from maft.evaluation.overlap import over_seeds, overlap
from maft.evaluation.overlap import sentence as overlap_in_words
from maft.evaluation.replay import replay
from maft.evaluation.retention import retention, sentence
from maft.method import vote as voting
from maft.records import Debate, Problem, Score, Vote
from maft.samplers import Scripted
from maft.sharing import traces


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [  # all but the last: Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_intervals_are_those_of_the_literature(right, n, low, high):
    assert wilson(right / n, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 10, 500])
def test_an_interval_holds_its_share_and_stays_within_0_and_1(n):
    for right in range(n + 1):
        low, high = wilson(right / n, n)
        assert 0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1
        assert low < high


def test_more_questions_make_a_narrower_interval():
    widths = [high - low for low, high in (wilson(0.7, n) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)


def scores(*held, gold: str | None = "2", iteration: int = 1, **how: str):
    problems = {d.problem_id: problem(d.problem_id, gold) for d in held}
    return scored(held, problems, iteration, len(held[0].round(1)), **how)


def test_one_debate_answers_for_three_methods():
    made = scores(debate(["2", "1", "1"], ["2", "2", None]))
    assert list(made) == list(names(1, 3))
    assert made["maft_single"][0].answers == ("2", "1", "1")
    assert made["maft_majority@3"][0].answers == ("1",)
    assert made["maft"][0].answers == ("2",)
    assert [made[m][0].accuracy for m in names(1, 3)] == [pytest.approx(1 / 3), 0, 1]


def test_each_method_costs_the_calls_it_needs():
    made = {m: summarize(s) for m, s in scores(debate(["2", "1", "1"], ["2", "2", None])).items()}
    assert [made[m].calls for m in names(1, 3)] == pytest.approx([1, 3, 6])
    assert [made[m].completion_tokens for m in names(1, 3)] == pytest.approx([4, 12, 24])
    assert [made[m].tokens for m in names(1, 3)] == pytest.approx([14, 42, 84])


def test_an_equal_answer_written_otherwise_is_right():
    assert scores(debate([r"\frac{4}{2}", "2.0", "$2$"]))["maft_single"][0].correct == (True, True, True)


@pytest.mark.parametrize("answers", [[None, None, None], [None, "2", None]])
def test_what_cannot_be_parsed_is_wrong_and_stays_in_the_denominator(answers):
    result = summarize(scores(debate(answers), debate(["2"] * 3, problem_id="b"))["maft_single"])
    found = sum(answer is not None for answer in answers)
    assert result.accuracy == pytest.approx((found / 3 + 1) / 2)
    assert result.unparsed == pytest.approx((3 - found) / 3) and result.n == 2


def test_without_gold_answers_nothing_is_right_and_nothing_is_wrong():
    result = summarize(scores(debate(["2", None, "1"]), gold=None)["maft"])
    assert (result.accuracy, result.ci_low, result.ci_high, result.n) == (None, None, None, 1)


def test_questions_without_gold_leave_the_accuracy_of_the_others_alone():
    held = [debate(["2"] * 3, problem_id="a"), debate(["1"] * 3, problem_id="b"), debate(["1"] * 3, problem_id="c")]
    problems = {name: Problem(id=name, question=name, gold=gold) for name, gold in zip("abc", "22 ", strict=True)}
    problems["c"] = Problem(id="c", question="c")
    result = summarize(scored(held, problems, 1)["maft"])
    assert result.accuracy == 0.5 and result.n == 3
    assert (result.ci_low, result.ci_high) == wilson(0.5, 2)


def test_a_tie_that_abstains_is_wrong_and_counted_as_a_tie():
    made = scores(debate(["1", "2"]), ties="abstain")
    assert made["maft"][0].answers == (None,) and made["maft"][0].correct == (False,)
    for method in ("maft", "maft_majority@2"):
        result = summarize(made[method])
        assert (result.tied, result.failed, result.unparsed, result.accuracy) == (1, 0, 0, 0)


def test_a_debate_that_failed_at_once_has_no_answer_and_cost_nothing():
    problems = {"7*8": problem()}
    made = scored([debate(error="generator_0, round 1: timeout")], problems, 0)
    assert [made[m][0].answers for m in names(0, 3)] == [(None,)] * 3
    assert [made[m][0].correct for m in names(0, 3)] == [(False,)] * 3
    assert [made[m][0].calls for m in names(0, 3)] == [0, 0, 0]
    results = [summarize(made[m]) for m in names(0, 3)]
    assert [(result.failed, result.unparsed) for result in results] == [(1, 0)] * 3


def quality(*held, gold=("2",) * 9):
    votes = [voting.vote(d, VoteConfig(), 0) for d in held]
    problems = {d.problem_id: problem(d.problem_id, g) for d, g in zip(held, gold, strict=False)}
    return label_quality(votes, problems, grade)


def test_labels_are_graded_where_they_are_used_and_where_they_are_not():
    made = quality(
        debate(["2", "2", "2"], problem_id="right"),
        debate(["1", "1", "2"], problem_id="wrong"),
        debate(["2", None, None], problem_id="right but alone"),
        debate([None, None, None], problem_id="silent"),
    )
    assert (made.num_problems, made.used, made.coverage) == (4, 2, 0.5)
    assert (made.accuracy, made.accuracy_all) == (0.5, 0.5)
    assert made.mean_agreement == pytest.approx((1 + 2 / 3 + 1 / 3 + 0) / 4)
    assert made.mean_margin == pytest.approx((1 + 1 / 3 + 1 / 3 + 0) / 4)
    assert made.unanimity == 1 / 4 and made.abstention == pytest.approx((0 + 0 + 2 / 3 + 1) / 4)
    assert made.dropped == {"low_agreement": 1, "no_answer": 1} and made.tied == 0


def test_labels_without_gold_answers_are_not_graded():
    made = quality(debate(["2", "2", "2"]), gold=(None,))
    assert (made.accuracy, made.accuracy_all, made.coverage) == (None, None, 1.0)


def test_when_no_label_is_used_there_is_no_accuracy_of_used_labels():
    made = quality(debate([None] * 3))
    assert (made.accuracy, made.accuracy_all) == (None, 0.0)


def test_a_vote_is_given_the_tokens_of_the_debate():
    held = debate(["2", "1", "1"], ["1", "1", "1"], samples=["2", "2", "2", "2", "1", "1"])
    made = scores(held)  # every call of these debates costs 14 tokens
    assert list(made) == ["maft_single", "maft_majority@3", "maft_majority@budget", "maft"]
    assert made["maft_majority@budget"][0].calls == made["maft"][0].calls == votes_at_budget([held], 6 * 14) == 6
    assert [made[m][0].accuracy for m in made] == [pytest.approx(5 / 9), 0, 1, 0]


def test_too_few_samples_are_all_counted():
    held = debate(["2", "1", "1"], ["1", "1", "1"], samples=["2"])
    assert scores(held)["maft_majority@budget"][0].calls == 4


@pytest.mark.parametrize(("over", "right", "calls"), [("last", 0, 6), ("first", 1, 6), ("all", 0, 9)])
def test_a_debate_may_be_decided_by_other_rounds(over, right, calls):
    held = debate(["2", "1", "1"], ["1", "1", "1"], samples=["2", "2", "2"])
    made = scores(held, over=over)["maft"][0]
    assert (made.accuracy, made.calls) == (right, calls)


def test_held_out_questions_may_have_more_samples_than_training_questions(tmp_path):
    folder = run(settings(tmp_path, "debate.num_eval_samples=4"))
    held_out = files.read_records(folder.evaluation(1) / "debates.jsonl", Debate)
    assert {len(debate.samples) for debate in held_out} == {9}
    assert {len(debate.samples) for debate in files.read_records(folder.debates(1), Debate)} == {0}
    assert "majority@budget" in {row["method"] for row in report.rows(folder)}


def test_flows_count_what_becomes_of_each_agents_answer():
    held = [
        debate(["2", "1", None], ["2", "2", "2"], problem_id="a"),
        debate(["2", "1", "1"], ["1", "1", None], problem_id="b"),
        debate(["2", "2", "2"], ["2", "2", "2"], problem_id="unknown"),
        debate(["2"] * 3, problem_id="one round"),
    ]
    problems = {d.problem_id: problem(d.problem_id, None if d.problem_id == "unknown" else "2") for d in held}
    found = flows(held, problems, 1, grade)
    assert [tuple(flow)[1:] for flow in found] == [(0, 2, 0, 1, 0), (1, 1, 1, 0, 1), (2, 1, 1, 0, 1)]


def test_levels_count_questions_and_right_winners_by_votes():
    held = [
        debate(["2", "2", "2"], problem_id="all"),
        debate(["1", "1", "2"], problem_id="two"),
        debate(["2", "2", "1"], problem_id="two, right"),
        debate([None, None, None], problem_id="silent"),
        debate(["1", "1", "1"], problem_id="not known"),
    ]
    votes = [voting.vote(d, VoteConfig(), 0) for d in held]
    problems = {d.problem_id: problem(d.problem_id, None if d.problem_id == "not known" else "2") for d in held}
    assert reliability.most_ballots(votes) == 3 and reliability.most_ballots([]) == 0
    assert reliability.levels(votes, problems, grade, 3) == (
        (3, 2, 1, 1),
        (2, 2, 2, 1),
        (1, 0, 0, 0),
        (0, 1, 1, 0),
    )


def test_single_agents_are_graded_in_the_first_round_and_in_the_last():
    held = [
        debate(["2", "2", "1"], ["2", "2", "2"], problem_id="a"),
        debate(["1", None, "2"], ["2", "1", "1"], problem_id="b"),
        debate(["2", "2", "2"], ["2", "2", "2"], problem_id="not known"),
        debate(error="generator_0, round 1: timeout", problem_id="failed"),
    ]
    problems = {d.problem_id: problem(d.problem_id, None if d.problem_id == "not known" else "2") for d in held}
    found = {(one.role, one.agent): one for one in agent_accuracies(held, problems, 1, 3, grade)}
    right = {key: one.accuracy * 3 for key, one in found.items()}
    assert right == pytest.approx(
        {
            ("generator", None): 1, ("generator", 0): 1, ("generator", 1): 1, ("generator", 2): 1,
            ("critic", None): 4 / 3, ("critic", 0): 2, ("critic", 1): 1, ("critic", 2): 1,
        }
    )  # fmt: skip
    assert all(one.n == 3 and one.low <= one.accuracy <= one.high for one in found.values())


def test_a_society_of_one_round_has_no_critics_and_without_gold_there_is_nothing():
    held = [debate(["2", "2"])]
    found = agent_accuracies(held, {"7*8": problem(gold="2")}, 0, 2, grade)
    assert {one.role for one in found} == {"generator"} and len(found) == 3
    assert agent_accuracies(held, {"7*8": problem(gold=None)}, 0, 2, grade) == []


def test_labels_of_training_questions_are_not_graded_where_a_judge_would_have_to_say(tmp_path):
    rows = [{"question": f"What is on picture {n}?", "answer": "a dog"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def say(request) -> str:
        pair = "Second answer:" in request.messages[-1].content
        return "no" if pair else "a dog" if "picture 1" in request.messages[0].content else "a cat"

    task = {"name": "text", "equality": "judge", "train_file": str(tmp_path / "rows.jsonl"), "num_train": 6}
    folder = run(settings(tmp_path, "task.split_seed=3", task=task), Scripted(say))
    assert {vote.label for vote in files.read_records(folder.votes(1), Vote)} == {"a dog", "a cat"}
    (line,) = series.of_labels(folder, 1)
    assert line["pseudo_label_accuracy"] is None and line["used"] == 6
    assert {trace.right[trace.vote.label] for trace in traces.of_run(folder, "train")} == {None}
    assert {one.side for one in replay(folder)} == {"eval"}


def test_one_generator_is_scored_by_its_own_answers_and_the_one_that_agrees_most_is_found():
    held = [
        debate(["2", "1", "2"], ["2"] * 3, samples=["2", None], problem_id="a"),
        debate(["1", "1", "2"], ["1"] * 3, problem_id="b"),
        debate(["2", "1", "2"], ["2"] * 3, problem_id="c"),
        debate(error="generator_0, round 1: timeout", problem_id="failed"),
    ]
    problems = {d.problem_id: problem(d.problem_id, "2") for d in held}
    how = Scoring(held_out(held, problems), 1, voting_by(3))
    of = [{score.problem_id: score for score in score_member(how, agent)} for agent in range(3)]
    assert [{name: score.accuracy for name, score in one.items()} for one in of] == [
        {"a": 1, "b": 0, "c": 1, "failed": 0},
        {"a": 0, "b": 0, "c": 0, "failed": 0},
        {"a": 1, "b": 1, "c": 1, "failed": 0},
    ]
    assert {score.method for score in of[1].values()} == {"generator_1"}
    assert of[1]["a"].answers == ("1", None) and of[1]["a"].correct == (False, False)
    assert [(of[1][name].calls, of[1][name].prompt_tokens) for name in ("a", "b", "failed")] == [
        (1, 10),
        (1, 10),
        (0, 0),
    ]
    assert agreeing_most(how.held, 3) == 0, "with the vote in all three, though generator 2 is right more often"


def test_what_each_round_changed_is_counted_over_agents_questions_and_seeds():
    held = [
        debate(["2", "1"], ["2", "2"], ["1", "2"], problem_id="a"),
        debate(["1", "1"], ["1", "2"], ["1", "2"], problem_id="b"),
        debate(["2", "2"], problem_id="ended at once"),
        debate(["2", "1"], ["1", "1"], ["1", "1"], problem_id="failed", error="critic_0, round 3: timeout"),
        debate(["2", "1"], ["1", "1"], ["1", "1"], problem_id="not known"),
    ]
    problems = {d.problem_id: problem(d.problem_id, None if d.problem_id == "not known" else "2") for d in held}
    second, third = by_round([held_out(held, problems)])
    assert (second.round, second.corrected, second.spoiled) == (2, pytest.approx(1 / 3), 0)
    assert (second.net.mean, second.net.n, second.net.num_seeds) == (pytest.approx(1 / 3), 3, 1)
    assert (third.round, third.corrected, third.spoiled) == (3, 0, pytest.approx(0.5 / 3))
    assert third.net.mean == pytest.approx(-0.5 / 3)
    other = [debate(["2", "2"], ["2", "2"], ["2", "1"], problem_id="a"), *held[1:]]
    second, third = by_round([held_out(held, problems), held_out(other, problems)])
    assert (second.corrected, second.net.mean) == (pytest.approx(1.5 / 6), pytest.approx(1.5 / 6))
    assert (third.spoiled, third.net.mean, third.net.num_seeds) == (pytest.approx(1 / 6), pytest.approx(-1 / 6), 2)
    assert by_round([held_out(held[2:3], problems)]) == [], "nobody spoke twice"


def test_a_reply_that_cannot_be_read_is_read_by_its_last_number_or_its_last_line():
    said = ["It is 7", "Hm, 3 then:\n\\frac{14}{2}", "7 or 8", "I give up"]
    held = debate(["7.0", "8", *[None] * len(said)], problem_id="a")
    turns = [
        turn
        if turn.answer is not None
        else turn.model_copy(update={"call": call(turn.call.prompt, said[turn.agent - 2])})
        for turn in held.turns
    ]
    debates = [
        held.model_copy(update={"turns": tuple(turns)}),
        debate(["7", "7"], problem_id="not known"),
        debate(error="generator_0, round 1: timeout", problem_id="failed"),
    ]
    problems = {d.problem_id: problem(d.problem_id, None if d.problem_id == "not known" else "7") for d in debates}
    task = tasks.make(TaskConfig(name="arithmetic"))
    assert lenient(held_out(debates, problems), problems, task) == {"a": 3 / 6, "failed": 0}


def test_other_tasks_are_compared_before_the_first_and_after_the_last_iteration(tmp_path):
    def other(seed: int, *rounds: dict[str, tuple[bool, ...]]) -> SimpleNamespace:
        def path(number: int, method: str) -> Path:
            return tmp_path / f"{seed}-{number}-{method}.jsonl"

        for number, method, right in zip((0, 2), ("base", "maft_single"), rounds, strict=True):
            costs = {"calls": 1.0, "prompt_tokens": 1.0, "completion_tokens": 1.0}
            scores = [
                Score(iteration=number, method=method, problem_id=q, answers=("1",) * len(of), correct=of, **costs)
                for q, of in right.items()
            ]
            files.write_records(path(number, method), scores)
        task = TaskConfig(name="arithmetic", high=12)
        config = SimpleNamespace(task=task, debate=SimpleNamespace(num_agents=2))
        return SimpleNamespace(config=config, evaluated=lambda number: number in (0, 2), scores=path)

    waiting = SimpleNamespace(evaluated=lambda number: number == 0)

    def runs(*others: SimpleNamespace, last: int = 2) -> list[SimpleNamespace]:
        return [SimpleNamespace(config=SimpleNamespace(num_iterations=last), others=[waiting, one]) for one in others]

    yes, half, no = (True, True), (True, False), (False, False)
    first = other(0, {"a": yes, "b": half, "c": no}, {"a": yes, "b": yes, "c": half})
    second = other(1, {"a": no, "b": half, "c": no}, {"a": half, "b": half, "c": half})
    (made,) = retention(runs(first, second))
    assert (made.task, made.iteration, made.n) == ("arithmetic (high=12)", 2, 3)
    assert (made.before, made.after) == (pytest.approx(2 / 6), pytest.approx(4 / 6))
    assert (made.difference.mean, made.difference.num_seeds) == (pytest.approx(2 / 6), 2)
    assert "33.3% before and 66.7% after iteration 2: +33.3 points" in sentence(made)
    assert retention(runs(first, second, last=3)) == [], "the last iteration is not evaluated"


def test_overlap_of_free_text_is_a_mean_over_answers_questions_and_seeds(tmp_path):
    files.write_records(tmp_path / "eval", [problem("a", "a dog"), problem("b", "big dog"), problem("c", None)])
    answers = {"a": ("The dog.", None), "b": ("red big dog",), "c": ("a dog",)}
    costs = {"calls": 1.0, "prompt_tokens": 1.0, "completion_tokens": 1.0}
    scores = [
        Score(iteration=2, method="maft", problem_id=name, answers=of, correct=None, **costs)
        for name, of in answers.items()
    ]

    def folder(task: str) -> SimpleNamespace:
        config = SimpleNamespace(task=SimpleNamespace(name=task))
        return SimpleNamespace(config=config, problems=lambda side: tmp_path / side)

    made = overlap(folder("text"), scores)
    assert (made.iteration, made.method, made.n) == (2, "maft", 2)
    assert (made.exact, made.f1) == (0.5 / 2, pytest.approx((0.5 + 0.8) / 2))
    assert made.chrf is None or 0.2 < made.chrf < 0.8
    said = [overlap_in_words(made.model_copy(update={"chrf": chrf})) for chrf in (None, 0.5)]
    assert all(line.startswith("maft, iteration 2: exact match 25.0%, token F1 65.0, ") for line in said)
    assert said[0].endswith(", sacrebleu is not installed (n = 2).") and said[1].endswith(", chrF 50.0 (n = 2).")
    assert overlap(folder("arithmetic"), scores) is None and overlap(folder("text"), scores[2:]) is None
    one, two = (
        made.model_copy(update={"exact": x, "f1": x + 0.1, "chrf": chrf}) for x, chrf in ((0, None), (0.5, 0.3))
    )
    both = over_seeds([one, two])
    assert (both.exact, both.f1, both.chrf, both.n) == (0.25, pytest.approx(0.35), 0.3, 2)
    assert over_seeds([one]).chrf is None
    assert over_seeds([one, None]) is None and over_seeds([]) is None
