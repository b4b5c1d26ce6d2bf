"""Numbers that are followed over iterations: single agents, votes and labels, the untrained society included."""

import json

import pytest
from helpers import debate, grade, held_out, problem, run, settings

from maft import files, report
from maft.config import VoteConfig
from maft.evaluation import series as metrics
from maft.evaluation.labels import LabelQuality
from maft.evaluation.series import held_out_votes, label_line
from maft.records import Debate


def votes(*held, **how):
    return held_out_votes(held_out(held, **how), VoteConfig(**how), 0)


def line(*held, gold: str | None = "2"):
    problems = {d.problem_id: problem(d.problem_id, gold) for d in held}
    return label_line("held_out_votes", votes(*held), problems, grade)


def test_held_out_questions_are_voted_on_as_the_next_labels_will_be():
    before = debate(["1"] * 3, ["2"] * 3, iteration=0), debate(["1"] * 3, ["2"] * 3, iteration=1)
    found = votes(*before, label_from=("first", "last"))
    assert [(vote.iteration, vote.label) for vote in found] == [(0, "1"), (1, "2")]


def test_held_out_questions_have_the_labels_of_a_control():
    few = votes(debate(["1", "1", "2"], ["1", "1", "2"]), label="least_frequent")
    assert [vote.label for vote in few] == ["2"]


def test_further_answers_to_held_out_questions_do_not_vote_where_training_debates_have_fewer():
    held = held_out([debate(["1", "1", "2"], samples=["2"] * 6)])
    labels = [held_out_votes(held, VoteConfig(label_from="first"), 0, num_samples=n)[0].label for n in (0, 3, None)]
    assert labels == ["1", "2", "2"]


def test_a_line_has_the_quality_of_the_votes():
    found = line(
        debate(["2"] * 4, problem_id="all"),
        debate(["2", "2", "2", "1"], problem_id="three to one"),
        debate(["1", "1", "1", None], problem_id="wrong"),
        debate(["2", "1", None, None], problem_id="split"),
    )
    assert (found["pseudo_label_accuracy"], found["coverage"]) == (pytest.approx(2 / 3), 0.75)
    assert found["pseudo_label_accuracy_all"] in (2 / 4, 3 / 4), "the tie has a label, too"
    assert found["mean_margin"] == pytest.approx((4 + 2 + 3 + 0) / 16)
    assert (found["unanimity"], found["abstention"]) == (0.25, 3 / 16)
    assert found["ci_low"] < 2 / 3 < found["ci_high"]


def test_without_gold_answers_votes_are_counted_and_not_graded():
    found = line(debate(["2"] * 3), gold=None)
    assert (found["pseudo_label_accuracy"], found["ci_low"], found["coverage"]) == (None, None, 1)


def test_a_run_has_a_line_for_every_society_agent_and_vote(finished_run):
    found = metrics.lines(finished_run)
    of = {kind: [one for one in found if one["kind"] == kind] for kind in dict.fromkeys(one["kind"] for one in found)}
    assert [one["iteration"] for one in of["held_out_votes"]] == [0, 1, 2]
    assert [one["iteration"] for one in of["pseudo_labels"]] == [1, 2]
    names = ["generators", *(f"generator_{n}" for n in range(3)), "critics", *(f"critic_{n}" for n in range(3))]
    assert [(one["iteration"], one["agent"]) for one in of["agent"]] == [(n, name) for n in range(3) for name in names]
    for row in report.rows(finished_run):
        (same,) = [o for o in of["method"] if (o["iteration"], o["method"]) == (row["iteration"], row["method"])]
        assert {name: same[name] for name in row} == row
    for one in of["pseudo_labels"] + of["held_out_votes"]:
        assert set(LabelQuality.model_fields) - {"accuracy", "accuracy_all"} <= set(one)


def test_the_mean_generator_is_the_single_answer_and_roles_are_the_mean_of_their_agents(finished_run):
    found = metrics.lines(finished_run)
    single = {one["iteration"]: one["accuracy"] for one in found if one.get("method") in ("base", "maft_single")}
    for number in range(3):
        of = {one["agent"]: one["accuracy"] for one in found if one["kind"] == "agent" and one["iteration"] == number}
        assert of["generators"] == pytest.approx(single[number])
        for role in ("generator", "critic"):
            assert of[f"{role}s"] == pytest.approx(sum(of[f"{role}_{n}"] for n in range(3)) / 3)


def test_a_run_that_goes_on_has_the_lines_of_what_is_there(tmp_path):
    folder = run(settings(tmp_path))
    (folder.evaluation(1) / "summary.json").unlink()
    kinds = {(one["kind"], one["iteration"]) for one in metrics.lines(folder)}
    assert kinds == {("method", 0), ("agent", 0), ("held_out_votes", 0), ("pseudo_labels", 1)}
    metrics.write(folder)
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == len(metrics.lines(folder))


def test_debates_of_one_round_have_no_critics(tmp_path):
    folder = run(settings(tmp_path, "debate.num_rounds=1"))
    agents = {one["agent"] for one in metrics.lines(folder) if one["kind"] == "agent"}
    assert agents == {"generators", "generator_0", "generator_1", "generator_2"}


def test_lines_can_be_read_back_as_what_they_are(finished_run):
    read = [json.loads(json.dumps(one)) for one in metrics.lines(finished_run)]
    assert read == metrics.lines(finished_run)
    held_out = files.read_records(finished_run.evaluation(0) / "debates.jsonl", Debate)
    assert all(debate.iteration == 0 for debate in held_out)
