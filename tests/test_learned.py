"""A run in which there was nothing to learn from says so, everywhere, and makes no new agents."""

import json

import pytest
from helpers import run, settings

from maft import report
from maft.evaluation.learned import Learned, of_run, warnings
from maft.pipeline import tracking
from maft.records import Reply
from maft.runs import societies
from maft.samplers import Scripted
from maft.sharing import agents

CUT = Reply(text="I think that", finish_reason="length", prompt_tokens=3, completion_tokens=8)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """A run of two iterations whose replies are all cut before an answer."""
    return run(settings(tmp_path_factory.mktemp("runs"), "num_iterations=2"), Scripted(lambda _: CUT))


def test_agents_without_examples_are_no_new_agents(nothing):
    assert not list(nothing.path.rglob("agents/*"))
    assert societies.after(nothing, 2) == societies.untrained(nothing.config)
    assert societies.finished(nothing, 2) and societies.missing(nothing, 1) == []
    with pytest.raises(ValueError, match="critic_0 was never finetuned: it had no examples in 2 iterations"):
        agents.choose(nothing, "critic_0", None)


def test_what_was_learned_is_counted(nothing):
    first, second = of_run(nothing)
    assert (first.questions, first.used, first.dropped) == (10, 0, {"no_answer": 10})
    assert first.cut == first.replies == 90 and first.share_cut == 1.0 and len(first.without_examples) == 6
    assert second.iteration == 2


def test_it_is_said_in_the_table_the_page_and_the_metrics(nothing, call, monkeypatch):
    said = warnings(of_run(nothing))
    assert len(said) == 4 and "maft show" in said[0] and "max_new_tokens" in said[1]
    table = report.table(nothing)
    assert all(line in table for line in said)
    assert "nothing was learned" in report.write_page(nothing).read_text()
    report.write_metrics(nothing)
    lines = [json.loads(line) for line in nothing.metrics.read_text().splitlines()]
    labels = [line for line in lines if line["kind"] == "pseudo_labels"]
    assert [(line["replies_cut"], line["without_examples"]) for line in labels] == [(1.0, 6)] * 2
    assert tracking.named(labels[0])["pseudo_labels/without_examples"] == 6


def test_some_agents_may_learn_while_others_keep_their_weights(tmp_path):
    """Generator 1 alone never agrees with the others."""
    folder = run(
        settings(tmp_path, "num_iterations=2"),
        Scripted(lambda request: "\\boxed{9}" if request.agent.name != "generator_1" else "\\boxed{8}"),
    )
    assert not folder.agent(1, "generator_1").exists() and folder.agent(1, "generator_0").exists()
    after = {agent.name: agent.adapter for agent in societies.after(folder, 2).agents}
    assert after["generator_1"] is None and after["generator_0"] == str(folder.agent(2, "generator_0").resolve())
    assert of_run(folder)[0].without_examples == ("generator_1",)
    assert "generator_1 had no examples" in report.table(folder)


def test_learning_without_labels_is_no_lack_of_labels(tmp_path):
    folder = run(
        settings(tmp_path, "curate.keep=readable", "vote.min_agreement=1"), Scripted(lambda r: f"\\boxed{{{r.seed}}}")
    )
    assert of_run(folder)[0].used == 0 and not of_run(folder)[0].without_examples and warnings(of_run(folder)) == []


def test_a_good_run_is_not_warned_of(tmp_path):
    good = Learned(
        part="iteration 1",
        labels=True,
        iteration=1,
        questions=10,
        used=9,
        dropped={"low_agreement": 1},
        replies=90,
        cut=3,
        without_examples=(),
    )
    assert warnings([good]) == []
    old = good.model_copy(update={"cut": None})
    assert old.share_cut is None and warnings([old]) == []
