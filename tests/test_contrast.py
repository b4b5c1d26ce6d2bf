"""Dissenting responses beside agreeing ones: who learns from which, each agent from its own."""

import pytest
from helpers import boxed, debate, run, settings

from maft import files, report
from maft.config import CurateConfig, RunConfig, TaskConfig, TrainConfig, VoteConfig
from maft.config.training import EXAMPLES, RoleTraining, Training
from maft.errors import ConfigError
from maft.evaluation.learned import of_run, warnings
from maft.method import vote as voting
from maft.method.contrast import class_weights, critic_contrasts, generator_contrasts, margin_weights
from maft.method.curate import CurateCounts, Curated, critic_examples, generator_examples
from maft.records import Example
from maft.samplers import Scripted
from maft.trainers import objectives

HOW = CurateConfig()


def voted(*debates):
    return debates, {d.problem_id: voting.vote(d, VoteConfig(label_from="all"), 0) for d in debates}


def last(example: Example) -> str:
    return example.messages[-1].content


def cut(held, agent: int):
    """Let an agent's last reply end at the limit."""
    turns = list(held.turns)
    place = max(n for n, turn in enumerate(turns) if turn.agent == agent)
    reply = turns[place].call.reply.model_copy(update={"finish_reason": "length"})
    turns[place] = turns[place].model_copy(update={"call": turns[place].call.model_copy(update={"reply": reply})})
    return held.model_copy(update={"turns": tuple(turns)})


def test_the_shapes_of_settings_are_those_of_the_objectives():
    assert {name: objectives.make(name).examples for name in objectives.OBJECTIVES} == EXAMPLES


def test_first_answers_are_judged_by_the_label_and_each_agent_has_its_own():
    debates, votes = voted(
        debate(["1", "2", None], ["1", "1", "1"], problem_id="a"),
        debate(["3", "3", "4"], ["3", "3", "3"], problem_id="b"),
    )
    of = [generator_contrasts(debates, votes, n, HOW, 0, "judged") for n in range(3)]
    assert [[(e.problem_id, e.wanted, e.kind) for e in made.examples] for made in of] == [
        [("a", True, "first"), ("b", True, "first")],
        [("a", False, "dissenting"), ("b", True, "first")],
        [("b", False, "dissenting")],
    ]
    assert [m.content for m in of[1].examples[0].messages] == ["ask 1 in 1", boxed("2")]
    assert of[2].counts == CurateCounts(examples=1, dissenting=1, unparsed=1)
    assert of[1].counts == CurateCounts(examples=2, first=1, dissenting=1)


def test_a_question_without_a_label_or_without_critics_leaves_the_others_alone():
    debates = (
        debate(["1", "2", "3"], ["1", "2", "3"], problem_id="no label"),
        debate(["1", "1", "1"], problem_id="one round"),
        debate(["1", "1", None], ["1", "1", None], problem_id="both"),
        debate(["1", "1", "1"], ["1", "1", "1"], problem_id="last"),
    )
    votes = {d.problem_id: voting.vote(d, VoteConfig(), 0) for d in debates}
    first = generator_contrasts(debates, votes, 0, HOW, 0, "judged")
    assert [e.problem_id for e in first.examples] == ["one round", "both", "last"]
    assert first.counts == CurateCounts(examples=3, first=3, low_agreement=1)
    assert critic_examples(debates, votes, 0, HOW, 0).counts == CurateCounts(examples=2, kept=2, low_agreement=1)
    for agent, examples, unparsed in ((0, 2, 0), (2, 1, 1)):
        made = critic_contrasts(debates, votes, agent, HOW, 0, "judged")
        assert [e.problem_id for e in made.examples] == ["both", "last"][-examples:]
        assert made.counts == CurateCounts(examples=examples, kept=examples, low_agreement=1, unparsed=unparsed)


def test_agreeing_answers_are_those_that_sft_learns():
    debates, votes = voted(
        *(debate([str(n % 2), "1", "1"], ["1", "1", None], samples=["1", "0"], problem_id=str(n)) for n in range(4))
    )
    how = CurateConfig(examples_per_question=2)
    for agent in range(3):
        wanted = [e for e in generator_contrasts(debates, votes, agent, how, 0, "judged").examples if e.wanted]
        plain = generator_examples(debates, votes, agent, how).examples
        assert [e.model_copy(update={"wanted": None}) for e in wanted] == list(plain)


def test_a_generator_pairs_its_own_answers_to_one_question():
    debates, votes = voted(
        debate(["1", "1", "2"], ["1", "1", "1"], samples=["2", "1", "1", "3", "1", "1"], problem_id="a"),
        debate(["4", "4", "5"], ["4", "4", "4"], samples=["4", "4", "5"], problem_id="b"),
    )
    for most, number in ((1, 1), (2, 1), (5, 1)):
        made = generator_contrasts(debates, votes, 0, CurateConfig(examples_per_question=most), 0, "pairs")
        assert len(made.examples) == number and made.counts.unpaired == 1
    (pair,) = made.examples
    assert (last(pair), pair.rejected, pair.wanted, pair.kind) == (boxed("1"), f"0: {boxed('2')}", None, "first")
    assert [m.content for m in pair.messages[:-1]] == ["ask 0 in 1"]
    assert generator_contrasts(debates, votes, 1, HOW, 0, "pairs").counts == CurateCounts(examples=0, unpaired=2)


def test_a_critic_pairs_its_last_answer_with_an_earlier_one_of_its_own():
    debates, votes = voted(
        debate(["2", "1", "1"], ["1", "1", "1"], problem_id="corrected"),
        debate(["1", "1", "1"], ["2", "1", "1"], problem_id="spoiled"),
        debate(["1", "1", "1"], ["1", "1", "1"], problem_id="kept"),
        debate(["2", "1", "1"], ["3", "1", "1"], problem_id="missed"),
        debate(["2", "1", "1"], [None, "1", "1"], problem_id="unparsed"),
        cut(debate(["2", "1", "1"], ["1", "1", "1"], problem_id="cut"), 0),
    )
    made = critic_contrasts(debates, votes, 0, HOW, 0, "pairs")
    assert [(e.problem_id, e.kind, last(e), e.rejected) for e in made.examples] == [
        ("corrected", "corrected", boxed("1"), boxed("2")),
        ("spoiled", "dissenting", boxed("1"), boxed("2")),
    ]
    assert [m.content for m in made.examples[0].messages[:-1]] == ["ask 0 in 1", boxed("2"), "ask 0 in 2"]
    assert made.counts == CurateCounts(examples=2, corrected=1, dissenting=1, unpaired=2, unparsed=1, cut=1)


def test_a_critic_is_judged_by_its_last_answer_and_agreeing_dialogues_are_mixed():
    debates, votes = voted(
        *(debate(["2", "1", "1"], ["1", "1", "1"], problem_id=f"corrected {n}") for n in range(2)),
        *(debate(["1", "1", "1"], ["1", "1", "1"], problem_id=f"kept {n}") for n in range(5)),
        *(debate([first, "1", "1"], ["2", "1", "1"], problem_id=f"dissenting {first}") for first in ("1", "3")),
        debate(["1", "1", "1"], [None, "1", "1"], problem_id="unparsed"),
    )
    made = critic_contrasts(debates, votes, 0, HOW, 0, "judged")
    counts = CurateCounts(examples=6, corrected=2, kept=2, dissenting=2, cut_for_mix=3, unparsed=1)
    assert made.counts == counts
    assert [e.wanted for e in made.examples] == [True] * 4 + [False] * 2
    assert all(last(e) == boxed("1" if e.wanted else "2") for e in made.examples)


def test_advantages_are_over_an_agents_own_answers_to_one_question():
    debates, votes = voted(
        debate(["1", "1", "2"], ["1", "1", "1"], samples=["1", "1", "1", "3", "1", None], problem_id="a"),
        debate(["4", "5", "4"], ["4", "4", "4"], samples=["4", "4", "4", "4", "4", "4"], problem_id="b"),
    )
    made = generator_contrasts(debates, votes, 0, HOW, 0, "advantages")
    assert [(e.problem_id, e.kind) for e in made.examples] == [("a", "first"), ("a", "first"), ("a", "dissenting")]
    assert [e.weight for e in made.examples] == pytest.approx([0.577, 0.577, -1.154], abs=1e-3)
    assert made.counts == CurateCounts(examples=3, first=2, dissenting=1, unpaired=1)
    third = generator_contrasts(debates, votes, 2, HOW, 0, "advantages")
    assert [e.weight > 0 for e in third.examples] == [False, True, False], "an answer that cannot be read has no reward"


def judged(*wanted: bool) -> list[Example]:
    debates, votes = voted(*(debate(["1", "1", "2"], ["1", "1", "1"], problem_id=str(n)) for n in range(len(wanted))))
    made = [
        generator_contrasts(debates, votes, 0 if w else 2, HOW, 0, "judged").examples[n] for n, w in enumerate(wanted)
    ]
    assert [e.wanted for e in made] == list(wanted)
    return made


@pytest.mark.parametrize(
    ("wanted", "settings", "weights"),
    [
        ((True, True, True, False), {}, [2 / 3] * 3 + [2.0]),
        ((True, True), {}, [1.0, 1.0]),
        ((False, False), {}, [1.0, 1.0]),
        ((True, False, False), {"desirable_weight": 3.0}, [3.0, 0.75, 0.75]),
        ((True, False), {"desirable_weight": 0.5, "undesirable_weight": 0.2}, [0.5, 0.2]),
    ],
)
def test_both_classes_weigh_the_same_unless_weights_are_given(wanted, settings, weights):
    made = class_weights(judged(*wanted), Training(**settings))
    assert [e.weight for e in made] == pytest.approx(weights)


def test_examples_that_are_not_judged_keep_their_weight():
    debates, votes = voted(debate(["1", "1", "2"], ["1", "1", "1"]))
    examples = generator_examples(debates, votes, 0).examples
    assert class_weights(examples, Training(desirable_weight=3.0)) == examples


def test_margins_are_weights_and_a_tie_is_left_out_and_counted():
    debates = (
        debate(["1", "1", "1"], ["1", "1", "1"], problem_id="3:0"),
        debate(["1", "1", "2"], ["1", "1", "2"], problem_id="2:1"),
        debate(["1", "2", None], ["1", "1", "1"], problem_id="1:1"),
    )
    how = VoteConfig(label_from="first", min_agreement="plurality")
    votes = {d.problem_id: voting.vote(d, how, 0) for d in debates}
    plain = Curated(
        *generator_examples(debates, votes, next(n for n in (0, 1) if debates[2].turns[n].answer == votes["1:1"].label))
    )
    made = margin_weights(plain, votes)
    assert [(e.problem_id, e.weight) for e in made.examples] == [("3:0", 1.0), ("2:1", pytest.approx(1 / 3))]
    assert made.counts == CurateCounts(examples=2, first=2, tied=1)


def config(**changes: object) -> RunConfig:
    return RunConfig(task=TaskConfig(name="arithmetic"), **changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train": TrainConfig(objective="dpo")}, r"generator, iteration 1.*debate\.num_samples"),
        ({"train": TrainConfig(objective=("sft", "dpo")), "num_iterations": 2}, "generator, iteration 2"),
        ({"train": TrainConfig(generator=RoleTraining(objective="grpo"))}, r"debate\.num_samples"),
        ({"train": TrainConfig(critic=RoleTraining(objective="grpo"))}, "a critic has one answer to a prompt"),
        (
            {"train": TrainConfig(critic=RoleTraining(objective="kto")), "vote": VoteConfig(min_agreement=1.0)},
            r"critic.*vote\.min_agreement",
        ),
        (
            {
                "train": TrainConfig(generator=RoleTraining(objective="kto")),
                "vote": VoteConfig(min_agreement=1.0, label_from="first"),
            },
            "generator",
        ),
    ],
)
def test_an_objective_that_can_have_no_examples_is_refused_at_the_start(changes, match):
    with pytest.raises((ValueError, ConfigError), match=match):
        config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": TrainConfig(objective="kto")},
        {"train": TrainConfig(generator=RoleTraining(objective="kto"), critic=RoleTraining(objective="dpo"))},
        {"train": TrainConfig(critic=RoleTraining(objective="dpo")), "vote": VoteConfig(min_agreement=1.0)},
        {"train": TrainConfig(objective=("sft", "dpo"))},
    ],
)
def test_an_objective_that_can_have_examples_is_accepted(changes):
    assert config(**changes)


def test_settings_of_other_objectives_are_no_part_of_the_identity():
    from maft import config as config_

    plain = config()
    assert config_.digest(plain) == config_.digest(config(train=TrainConfig(beta=0.5, undesirable_weight=2.0)))
    assert config_.digest(plain) == config_.digest(config(train=TrainConfig(critic=RoleTraining(beta=0.5))))
    kto = [config(train=TrainConfig(objective="kto", beta=beta)) for beta in (0.1, 0.5)]
    assert len({config_.digest(each) for each in (plain, *kto)}) == 3
    weights = [config(train=TrainConfig(critic=RoleTraining(objective="dpo"), desirable_weight=w)) for w in (None, 2.0)]
    assert config_.digest(weights[0]) == config_.digest(weights[1])


def test_a_run_makes_examples_of_each_shape_and_tells_of_them(tmp_path, call):
    folder = run(
        settings(
            tmp_path,
            *("num_iterations=2", "task.num_train=20", "vote.min_agreement=plurality", "vote.label_from=all"),
            *("train.generator.objective=[kto, weighted]", "train.critic.objective=[sft, dpo]"),
        )
    )

    def learned(iteration: int, role: str) -> list[Example]:
        return [e for n in range(3) for e in files.read_records(folder.examples(iteration, f"{role}_{n}"), Example)]

    assert {e.wanted for e in learned(1, "generator")} == {True, False}
    assert {(e.wanted, e.rejected) for e in learned(1, "critic")} == {(None, None)}
    assert all(0 < e.weight <= 1 for e in learned(2, "generator"))
    pairs = learned(2, "critic")
    assert pairs and {e.kind for e in pairs} <= {"corrected", "dissenting"} and all(e.rejected for e in pairs)
    content = files.read_json(folder.manifest)
    assert content["objectives"]["generator, iteration 1"] == "kto"
    assert "not the label, learned as unwanted" in report.write_page(folder).read_text()
    unwanted = next(e for e in learned(1, "generator") if not e.wanted)
    code, out, err = call("show", str(folder.path), unwanted.problem_id)
    assert code == 0 and "becomes less likely" in out, err


def test_an_agent_with_one_class_of_responses_only_is_named(tmp_path):
    folder = run(settings(tmp_path, "train.objective=kto"), Scripted(lambda request: "\\boxed{9}"))
    (iteration,) = of_run(folder)
    assert len(iteration.one_sided) == 6
    assert any("generator_0" in line and "one class" in line for line in warnings([iteration]))
