"""What critics are shown and what agents learn from, by construction: contexts, questions apart, temperatures."""

from collections import Counter

import pytest
from helpers import boxed, play, problem, rules, run, settings

from maft import config as config_
from maft import files, seeds
from maft.answers import EQUALITIES
from maft.errors import ConfigError
from maft.method.debate import largest
from maft.pipeline import run as pipeline
from maft.records import Debate, Example, Request, Vote
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.samplers.scripted import guess


def context(question: str, share: float, say=guess, stage: str = "train", num_samples: int = 4) -> Debate:
    how = rules(3, 2, summarizer="none", stage=stage)
    changed = {"num_samples": num_samples, "wrong_majorities": share}
    how = how._replace(debate=how.debate.model_copy(update=changed))
    return play(how, say, problem(question))[0]


def majority_is_wrong(debate: Debate) -> bool | None:
    """Say whether most debated answers differ from the vote over all first answers; None where that is a tie."""
    every = debate.first_answers()
    numbers = EQUALITIES["mathematics"]().classes([turn.answer for turn in every])
    label = largest(numbers)
    wrong = sum(number != label for number in numbers[: len(debate.round(1))])
    return None if label is None else 2 * wrong > 3


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_debates_begins_with_a_wrong_majority(share):
    found = [majority_is_wrong(context(f"{n}+1", share)) for n in range(150)]
    known = [wrong for wrong in found if wrong is not None]
    assert len(known) > 90
    assert sum(known) / len(known) == pytest.approx(share, abs=0.12)


def test_a_context_is_made_of_the_same_answers_of_the_same_agents():
    for n in range(20):
        plain, chosen = context(f"{n}+1", 0.0, stage="eval"), context(f"{n}+1", 1.0)
        assert len(chosen.round(1)) == 3 and len(chosen.samples) == 9
        assert [turn.agent for turn in chosen.round(1)] == [0, 1, 2]
        again = context(f"{n}+1", 1.0)
        assert again == chosen
        seeds_of = [
            sorted(turn.call.seed for turn in one.first_answers() if turn.agent == 1) for one in (chosen, again)
        ]
        assert seeds_of[0] == seeds_of[1] and len(plain.first_answers()) == 12
        shown = chosen.round(2)[0].call.prompt
        assert all(turn.call.reply.text in shown for turn in chosen.round(1)[1:])


def test_held_out_debates_and_unanimous_answers_stay_as_they_were_drawn():
    def in_order(debate: Debate) -> bool:
        """The first answer of each agent is the one whose purpose is `answer`."""
        name = ("eval", 1, debate.problem_id)
        drawn = [seeds.seed(0, *name, n, 1, "answer") for n in range(3)]
        return [turn.call.seed for turn in debate.round(1)] == drawn

    assert all(in_order(context(f"{n}+1", 1.0, stage="eval")) for n in range(10))
    agreed = context("1+1", 1.0, lambda r: boxed(2))
    assert [turn.call.seed for turn in agreed.round(1)] == [
        seeds.seed(0, "train", 1, "1+1", n, 1, "answer") for n in range(3)
    ]


def test_which_questions_begin_with_a_wrong_majority_and_by_whom_is_drawn_by_a_named_seed():
    how = rules(3, 2, summarizer="none", run_seed=5, iteration=2)
    how = how._replace(debate=how.debate.model_copy(update={"num_samples": 4, "wrong_majorities": 0.5}))
    names = [f"{n}+1" for n in range(8)]
    last = {seeds.seed(5, "train", 2, name, n, 1, "sample 3") for name in names for n in range(3)}
    for name in names:
        debate, _ = play(how, lambda request: boxed(2 if request.seed in last else 1), problem(name))
        rng = seeds.rng(5, "train", 2, name, "context")
        is_wrong = rng.random() < 0.5
        changed = rng.sample([0, 1, 2], 2) if is_wrong else []
        assert [turn.answer for turn in debate.round(1)] == ["2" if n in changed else "1" for n in range(3)]


def test_choosing_needs_something_to_choose_from():
    with pytest.raises(ConfigError, match=r"debate\.num_samples"):
        config_.parse({"task": {"name": "arithmetic"}, "debate": {"wrong_majorities": 0.5}})


def sets(folder: RunFolder, iteration: int) -> dict[str, list[str]]:
    names = files.read_json(folder.examples_summary(iteration))
    return {n: [e.problem_id for e in files.read_records(folder.examples(iteration, n), Example)] for n in names}


ASKED = ("num_iterations=2", "task.num_train=30", "task.high=5", "debate.summarizer=none", "curate.short_side=use_all",
         "vote.min_agreement=plurality")  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> RunFolder:
    return run(settings(tmp_path_factory.mktemp("runs"), *ASKED), Scripted(guess))


def test_shards_part_the_questions_among_the_agents_for_good(plain, tmp_path):
    folder = run(settings(tmp_path, *ASKED, "curate.questions=shards"), Scripted(guess))
    all_of = sets(plain, 1)
    of: dict[int, set[str]] = {n: set() for n in range(3)}
    for iteration in (1, 2):
        for name, ids in sets(folder, iteration).items():
            of[int(name[-1])] |= set(ids)
    assert not of[0] & of[1] and not of[0] & of[2] and not of[1] & of[2] and all(of.values())
    for name, ids in sets(folder, 1).items():
        assert ids == [id for id in all_of[name] if id in of[int(name[-1])]]
    for name, count in files.read_json(folder.examples_summary(1)).items():
        assert count["examples"] + count["not_drawn"] == len(all_of[name]) and not count["drawn_again"]
        assert count["examples"] == count["first"] + count["corrected"] + count["kept"]


def test_a_bootstrap_draws_as_many_questions_with_replacement_for_each_agent(plain, tmp_path):
    folder = run(settings(tmp_path, *ASKED, "curate.questions=bootstrap"), Scripted(guess))
    drawn, all_of = sets(folder, 1), sets(plain, 1)
    for name, ids in drawn.items():
        assert len(ids) == len(all_of[name]) and set(ids) < set(all_of[name])
        count = files.read_json(folder.examples_summary(1))[name]
        repeats = sum(times - 1 for times in Counter(ids).values())
        assert (count["not_drawn"], count["drawn_again"]) == (len(all_of[name]) - len(set(ids)), repeats)
    assert len({tuple(ids) for ids in drawn.values()}) == 6


def test_one_model_has_no_questions_of_its_own(tmp_path):
    with pytest.raises(ConfigError, match=r"society\.one_model has only one agent"):
        settings(tmp_path, "society.one_model=true", "curate.questions=shards")


def test_training_debates_may_be_drawn_at_another_temperature_in_each_iteration(tmp_path):
    config = settings(tmp_path, *ASKED, "sampling.train_temperature=[0.9,0.4]", "sampling.train.critic.top_p=0.5",
                      "society.generators=[{},{sampling: {temperature: 0.1}},{}]")  # fmt: skip
    folder = RunFolder(tmp_path, config)

    def of(stage: str, iteration: int) -> list[float]:
        how = pipeline.debate_rules(folder, iteration, societies.untrained(config), stage)
        return [how.sampling.generator.temperature, how.sampling.critic.temperature, how.sampling.critic.top_p]

    assert (of("train", 1), of("train", 2), of("train", 9)) == ([0.9, 0.9, 0.5], [0.4, 0.4, 0.5], [0.4, 0.4, 0.5])
    assert of("eval", 1) == [1.0, 1.0, 0.5], "held-out debates stay as they are"
    asked: list[Request] = []

    def say(request: Request) -> str:
        asked.append(request)
        return guess(request)

    run(config, Scripted(say))
    assert {r.sampling.temperature for r in asked if r.agent.name == "generator_1"} == {0.1}, "its own comes last"
    with pytest.raises(ConfigError, match=r"sampling\.train_temperature must be a number of at least 0"):
        settings(tmp_path, "sampling.train_temperature=-1")


def test_a_run_with_wrong_majorities_and_labels_of_a_large_vote(tmp_path):
    more = ("debate.num_samples=4", "debate.wrong_majorities=0.5", "vote.label_from=first", "debate.protocol=contested",
            "debate.quote=answers")  # fmt: skip
    folder = run(settings(tmp_path, *ASKED, *more), Scripted(guess))
    votes = {vote.problem_id: vote for vote in files.read_records(folder.votes(1), Vote)}
    assert all(vote.num_ballots == 12 for vote in votes.values())
    critics = [e for n in range(3) for e in files.read_records(folder.examples(1, f"critic_{n}"), Example)]
    kinds = Counter(example.kind for example in critics)
    assert kinds["corrected"] and kinds["kept"]


OWN = "society.generators=[{},{prompts: {solve: 'Draw {question} first.'}},{sampling: {temperature: 0.5}}]"
CRITICS = "society.critics=[{prompts: {critic_full: 'Doubt {answers}. {question}'}},{},{}]"


def test_agents_may_be_asked_in_words_of_their_own(tmp_path):
    asked: list[Request] = []

    def say(request: Request) -> str:
        asked.append(request)
        return guess(request)

    config = settings(tmp_path, "debate.summarizer=none", OWN, CRITICS)
    folder = run(config, Scripted(say))
    first = {r.agent.name: r.messages[0].content for r in asked if r.agent.role == "generator"}
    assert first["generator_1"].startswith("Draw What is") and not first["generator_0"].startswith("Draw")
    last = {r.agent.name: r.messages for r in asked if r.agent.role == "critic"}
    assert last["critic_0"][-1].content.startswith("Doubt Agent 1:") and "Doubt" not in last["critic_1"][-1].content
    assert last["critic_1"][0].content.startswith("Draw"), "a critic goes on in the dialogue of its generator"
    for name in ("generator_1", "critic_0"):
        for example in files.read_records(folder.examples(1, name), Example):
            assert example.messages[-2].content.startswith("Draw" if name == "generator_1" else "Doubt")
    assert config_.load(folder.config_file).prompts_of("critic_0")["critic_full"].startswith("Doubt")
    assert config_.parse({**config.model_dump(mode="json"), "society": {"one_model": True}})


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{prompts: {slove: x}}", "prompts.slove does not exist"),
        ("{prompts: {critic_full: x}}", r"prompts\.critic_full must contain \{answers\}"),
        ("{prompts: {system: x}}", r"prompts\.system is the same for all agents"),
    ],
)
def test_words_that_cannot_work_are_refused(entry, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        settings(tmp_path, f"society.generators=[{entry},{{}},{{}}]")


def test_a_society_without_prompts_of_its_own_keeps_its_identity():
    tree = config_.identity(config_.parse({"task": {"name": "arithmetic"}, "society": {"generators": [{}, {}, {}]}}))
    assert "prompts" not in tree["society"]["generators"][0]
    one = {"generators": [{"prompts": {"solve": "{question}!"}}, {}, {}], "one_model": True}
    assert config_.parse({"task": {"name": "arithmetic"}, "society": one}), "one model may be asked in several ways"
