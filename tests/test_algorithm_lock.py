"""The method, locked: each numbered statement has the tests of that number, and no other file says it more exactly.

 1. In round 1 every generator answers the question alone. All agents may have the same weights; what makes them
    differ is that every draw has a random stream of its own, named by run, iteration, question, agent and round.
 2. Rounds are synchronous: what an agent is shown in round m was said in round m - 1.
 3. From round 2 on, the other agents' answers, at most five of them and in an order drawn by seed, are condensed by
    the summariser; the critic goes on with its own dialogue and this summary. Without a summariser the answers are
    quoted in full. With no other agent the critic checks its own answer.
 4. The summariser is the untrained base model; or the critic itself; or another model by name.
 5. The answer is the last boxed one. Answers are grouped by mathematical equality, whatever their order.
 6. The pseudo-label is the answer with the most votes in the last round. Ties are drawn by seed, answers that cannot
    be parsed abstain, and a question is trained on only if more than half of all agents agree. What is dropped is
    counted by its reason.
 7. Generator n learns from (question, its own first answer) wherever that answer equals the label.
 8. Critic n learns from its whole dialogue wherever its last answer equals the label: dialogues that corrected a
    wrong first answer and dialogues that kept a right one, mixed with weight w, half and half by default. A side
    that is empty never empties the set.
 9. An agent is trained on its own examples only: with N = 3 and M = 2, six finetunings in each iteration.
10. What is trained on is what was said: the messages sent, in their order, and the reply.
11. Loss is on the assistant's last turn by default, and that turn is the response that agrees with the label.
12. An iteration starts from the weights of the one before; or, if asked for, from the base model.
13. The questions stay the same in every iteration, and no held-out question is a training question: its text counts,
    whatever ids the two files give.
14. Held-out questions are answered by the same debate with the finetuned agents: generators first, critics after.
    The vote of the last round is the answer.
15. Gold answers are never read on the way to the weights.
16. An answer that cannot be parsed is wrong in every accuracy.

Do not "fix" a test here without an explicit decision: if one turns red, the method has changed.
"""

import ast
import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from helpers import boxed, debate, group, play, problem, rules, run, run_files, scored, settings

import maft
from maft import answers, files
from maft.config import CurateConfig, TrainConfig, VoteConfig
from maft.errors import DataError
from maft.evaluation.metrics import summarize
from maft.method import curate
from maft.method import vote as voting
from maft.records import Debate, Example, Problem, Request, Score, Vote
from maft.samplers import Scripted
from maft.samplers.scripted import guess
from maft.trainers import NullTrainer

ON_THE_WAY = {
    Path("method/protocol.py"),
    Path("method/debate.py"),
    Path("method/vote.py"),
    Path("method/curate.py"),
    Path("pipeline/finetune.py"),
    Path("pipeline/rollouts.py"),
}


def said(request: Request) -> str:
    """A reply that can be recognised wherever it is shown again."""
    number = len(request.messages) // 2 + 1
    return f"{request.agent.name} answers in dialogue turn {number}: {boxed(number)}"


def of(sampler: Scripted, role: str) -> list[Request]:
    return [request for request in sampler.history if request.agent.role == role]


class Recording(NullTrainer):
    """Remembers the jobs and settings it was given."""

    def __init__(self):
        self.jobs = []
        self.settings: list[TrainConfig] = []

    def train(self, jobs, settings, on_progress):
        self.jobs += jobs
        self.settings.append(settings)
        super().train(jobs, settings, on_progress)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of two iterations with everything that was asked of the sampler and the trainer."""
    config = settings(tmp_path_factory.mktemp("runs"), "num_iterations=2", "vote.min_agreement=plurality")
    sampler, trainer = Scripted(guess), Recording()
    return run(config, sampler, trainer), sampler, trainer


# 1


def test_01_every_generator_answers_the_bare_question_alone():
    _, sampler = play(rules(num_rounds=1), said)
    assert [request.agent.name for request in sampler.history] == ["generator_0", "generator_1", "generator_2"]
    assert len({request.messages for request in sampler.history}) == 1
    assert [message.role for message in sampler.history[0].messages] == ["user"]
    assert problem().question in sampler.history[0].messages[0].content


def test_01_no_two_draws_of_a_run_share_a_random_stream(recorded):
    _, sampler, _ = recorded
    seeds = Counter(request.seed for request in sampler.history)
    assert set(seeds.values()) == {1}


@pytest.mark.parametrize("change", [{"run_seed": 1}, {"iteration": 2}, {"stage": "eval"}])
def test_01_another_run_or_iteration_or_stage_draws_other_streams(change):
    drawn = [{r.seed for r in play(rules(**how), said)[1].history} for how in ({}, change)]
    assert len(drawn[0] | drawn[1]) == 2 * len(drawn[0])


# 2


@pytest.mark.parametrize("summarizer", ["base", "none"])
def test_02_what_is_shown_in_a_round_was_said_in_the_round_before(summarizer):
    held, sampler = play(rules(3, 4, summarizer=summarizer), said)
    readers = of(sampler, "summarizer") if summarizer == "base" else of(sampler, "critic")
    for number in (2, 3, 4):
        before = {turn.agent: turn.call.reply.text for turn in held.round(number - 1)}
        now = [turn.call.reply.text for turn in held.round(number)]
        earlier = [turn.call.reply.text for m in range(1, number - 1) for turn in held.round(m)]
        for agent, request in enumerate(readers[(number - 2) * 3 : (number - 1) * 3]):
            shown = request.messages[-1].content
            assert all(text in shown for other, text in before.items() if other != agent)
            assert not any(text in shown for text in [*now, *earlier, before[agent]])


# 3


def test_03_the_critic_goes_on_with_its_own_dialogue_and_the_summary():
    held, sampler = play(rules(), lambda r: "SUMMARY" if r.agent.role == "summarizer" else said(r))
    for agent, request in enumerate(of(sampler, "critic")):
        first = held.round(1)[agent].call
        assert [message.content for message in request.messages[:-1]] == [first.prompt, first.reply.text]
        assert "SUMMARY" in request.messages[-1].content
        assert problem().question in request.messages[-1].content


def test_03_the_summariser_reads_the_other_agents_only_and_nothing_else():
    held, sampler = play(rules(), said)
    for agent, request in enumerate(of(sampler, "summarizer")):
        assert [message.role for message in request.messages] == ["user"]
        shown = {t.agent for t in held.round(1) if t.call.reply.text in request.messages[0].content}
        assert shown == {0, 1, 2} - {agent}


def test_03_at_most_five_others_are_shown():
    held, sampler = play(rules(9), said)
    for request in of(sampler, "summarizer"):
        assert sum(turn.call.reply.text in request.messages[0].content for turn in held.round(1)) == 5


def test_03_the_order_of_the_others_is_drawn_by_seed():
    def orders(run_seed: int) -> list[list[int]]:
        held, sampler = play(rules(5, run_seed=run_seed), said)
        found = []
        for request in of(sampler, "summarizer"):
            places = {t.agent: request.messages[0].content.find(t.call.reply.text) for t in held.round(1)}
            found.append([agent for agent in sorted(places, key=places.get) if places[agent] >= 0])
        return found

    assert orders(0) == orders(0) != orders(1)
    assert any(order != sorted(order) for order in orders(0))


def test_03_without_a_summariser_the_others_are_quoted_in_full():
    held, sampler = play(rules(summarizer="none"), said)
    assert of(sampler, "summarizer") == []
    for agent, request in enumerate(of(sampler, "critic")):
        shown = {t.agent for t in held.round(1) if t.call.reply.text in request.messages[-1].content}
        assert shown == {0, 1, 2} - {agent}


@pytest.mark.parametrize("summarizer", ["base", "self", "none"])
def test_03_an_agent_alone_checks_its_own_answer(summarizer):
    held, sampler = play(rules(1, summarizer=summarizer), said)
    assert [request.agent.name for request in sampler.history] == ["generator_0", "critic_0"]
    asked = sampler.history[1].messages
    assert asked[1].content == held.round(1)[0].call.reply.text
    assert "other agents" not in asked[-1].content and "Check your answer" in asked[-1].content


# 4


def test_04_the_summariser_is_the_untrained_base_model_by_default_in_every_iteration(recorded):
    _, sampler, _ = recorded
    summarising = of(sampler, "summarizer")
    assert summarising and {(r.agent.model, r.agent.adapter) for r in summarising} == {("smollm2-135m-instruct", None)}


def test_04_the_critic_itself_can_summarise():
    held, _ = play(rules(summarizer="self"), said)
    assert [turn.summary.agent for turn in held.round(2)] == ["critic_0", "critic_1", "critic_2"]


def test_04_another_model_can_summarise():
    _, sampler = play(rules(summarizer="other/model"), said)
    assert {request.agent.model for request in of(sampler, "summarizer")} == {"other/model"}
    assert {request.agent.model for request in of(sampler, "critic")} == {"tiny"}


# 5


def test_05_the_answer_is_the_last_boxed_one():
    held, _ = play(rules(num_rounds=1), lambda _: r"\boxed{1}, no, \boxed{\frac{1}{2}}. Or 7?")
    assert [turn.answer for turn in held.turns] == [r"\frac{1}{2}"] * 3


def test_05_answers_are_grouped_by_mathematical_equality_in_any_order():
    texts = [r"\frac12", "3", "0.5", None, "1/2", "3.0"]
    rng = Random(0)
    wanted = {frozenset(("0.5", r"\frac12", "1/2")), frozenset(("3", "3.0"))}
    for _ in range(50):
        rng.shuffle(texts)
        assert {frozenset(texts[i] for i in indices) for indices in group(texts)} == wanted
        assert voting.tally(texts, Random(0)).counts == (("0.5", 3), ("3", 2))


def test_05_an_answer_that_is_written_otherwise_agrees_with_the_label():
    held = [debate([r"\frac12", "0.5", "3"], ["0.50", "1/2", "3"])]
    votes = votes_of(held)
    assert [len(curate.generator_examples(held, votes, n).examples) for n in range(3)] == [1, 1, 0]
    assert curate.critic_examples(held, votes, 0, CurateConfig(), 0).counts.kept == 1


# 6


def test_06_the_label_is_the_majority_of_the_last_round():
    vote = voting.vote(debate(["1", "1", "1"], ["1", "2", "2"]), VoteConfig(), 0)
    assert (vote.label, vote.agreement, vote.dropped) == ("2", 2 / 3, None)


def test_06_ties_are_drawn_by_seed_among_the_tied():
    def winners(run_seed: int) -> list[str | None]:
        held = [debate(["5", "40", "40", "5", "6"], problem_id=str(n)) for n in range(200)]
        return [voting.vote(d, VoteConfig(), run_seed).label for d in held]

    assert winners(0) == winners(0) != winners(1)
    drawn = Counter(winners(0))
    assert set(drawn) == {"5", "40"} and min(drawn.values()) > 70


def test_06_answers_that_cannot_be_parsed_abstain_but_count_as_agents():
    vote = voting.vote(debate([None, None, "4"]), VoteConfig(), 0)
    assert (vote.label, vote.abstained, vote.num_ballots, vote.dropped) == ("4", 2, 3, "low_agreement")


@pytest.mark.parametrize(
    ("last", "min_agreement", "dropped"),
    [
        (["1", "1", "2", "2"], "majority", "low_agreement"),
        (["1", "1", "1", "2"], "majority", None),
        (["1", "1", "2", "3", "4"], "majority", "low_agreement"),
        (["1", "1", "2", "3", "4"], "plurality", None),
        ([None, None, None], "plurality", "no_answer"),
        (["1", "1", "2", "2"], 0.5, None),
    ],
)
def test_06_a_question_is_trained_on_only_with_enough_agreement(last, min_agreement, dropped):
    assert voting.vote(debate(last), VoteConfig(min_agreement=min_agreement), 0).dropped == dropped
    assert VoteConfig().min_agreement == "majority"


def test_06_what_is_dropped_is_counted_by_reason():
    held = [
        debate(["1", "1", "1"], problem_id="good"),
        debate(["1", "2", "3"], problem_id="split"),
        debate([None, None, None], problem_id="silent"),
        debate(["1", "1", "1"], problem_id="broken", error="timeout"),
        debate([None, "1", "1"], problem_id="mumbled"),
        debate(["2", "1", "1"], problem_id="dissent"),
    ]
    counts = curate.generator_examples(held, votes_of(held), 0).counts
    reasons = counts.model_dump(exclude={"examples", "first"}, exclude_defaults=True)
    assert counts.examples == counts.first == 1
    assert reasons == {"low_agreement": 1, "no_answer": 1, "failed": 1, "unparsed": 1, "disagrees": 1}


def votes_of(held: list[Debate]) -> dict[str, Vote]:
    return {d.problem_id: voting.vote(d, VoteConfig(), 0) for d in held}


# 7


def test_07_a_generator_learns_its_first_answer_wherever_that_equals_the_label():
    held = [
        debate(["1", "2", "2"], ["2", "2", "2"], problem_id="first wrong, last right"),
        debate(["2", "2", "2"], ["1", "2", "2"], problem_id="first right, last wrong"),
    ]
    made = curate.generator_examples(held, votes_of(held), 0).examples
    assert [example.problem_id for example in made] == ["first right, last wrong"]
    assert made[0].messages == held[1].dialogue(0, num_rounds=1)
    assert len(made[0].messages) == 2


# 8


def four_kinds(num_each: int) -> list[Debate]:
    kinds = {"kept": ("1", "1"), "corrected": ("2", "1"), "spoilt": ("1", "2"), "wrong": ("2", "2")}
    return [
        debate([first, "1", "1"], [last, "1", "1"], problem_id=f"{kind} {n}")
        for n in range(num_each)
        for kind, (first, last) in kinds.items()
    ]


def test_08_a_critic_learns_whole_dialogues_whose_last_answer_equals_the_label():
    held = four_kinds(3)
    made = curate.critic_examples(held, votes_of(held), 0, CurateConfig(), 0)
    by_id = {d.problem_id: d for d in held}
    assert Counter(e.kind for e in made.examples) == {"corrected": 3, "kept": 3}
    assert made.counts.disagrees == 6
    for example in made.examples:
        assert example.problem_id.startswith(example.kind)
        assert example.messages == by_id[example.problem_id].dialogue(0)
        assert len(example.messages) == 4


@pytest.mark.parametrize(("w", "corrected", "kept"), [(0.5, 4, 4), (0.25, 4, 12), (0.2, 3, 12)])
def test_08_corrected_and_kept_dialogues_are_mixed_with_weight_w(w, corrected, kept):
    held = four_kinds(12)
    held = [d for d in held if not d.problem_id.startswith("corrected") or int(d.problem_id.split()[1]) < 4]
    made = curate.critic_examples(held, votes_of(held), 0, CurateConfig(critic_mix=w), 0)
    assert (made.counts.corrected, made.counts.kept) == (corrected, kept)
    assert made.counts.cut_for_mix == 16 - corrected - kept
    assert CurateConfig().critic_mix == 0.5


@pytest.mark.parametrize("there", ["kept", "corrected"])
def test_08_a_side_that_is_empty_never_empties_the_set(there):
    held = [d for d in four_kinds(5) if d.problem_id.startswith(there)]
    assert len(curate.critic_examples(held, votes_of(held), 0, CurateConfig(), 0).examples) == 5


# 9


def test_09_each_of_the_six_agents_is_trained_once_per_iteration_on_its_own_examples(recorded):
    folder, _, trainer = recorded
    names = [f"{role}_{n}" for role in ("generator", "critic") for n in range(3)]
    assert [(job.iteration, job.agent) for job in trainer.jobs] == [
        (iteration, name) for iteration in (1, 2) for name in names
    ]
    for job in trainer.jobs:
        made = files.read_records(job.examples, Example)
        held = {d.problem_id: d for d in files.read_records(folder.debates(job.iteration), Debate)}
        number = int(job.agent.split("_")[1])
        assert job.examples == folder.examples(job.iteration, job.agent) and made
        assert {example.agent for example in made} == {job.agent}
        for example in made:
            rounds = 1 if job.role == "generator" else None
            assert example.messages == held[example.problem_id].dialogue(number, num_rounds=rounds)


# 10


@pytest.mark.parametrize("system", [(), ("Be brief.",)])
def test_10_examples_hold_the_messages_as_sent_and_the_reply_as_said(system):
    how = rules(**({"system": system[0]} if system else {}))
    replies = {}

    def remember(request: Request) -> str:
        replies[request.messages, request.seed] = text = f"  {request.seed} \\boxed{{4}}\n"
        return text

    held, sampler = play(how, remember)
    votes = votes_of([held])
    for n in range(3):
        for role, (example,) in (
            ("generator", curate.generator_examples([held], votes, n).examples),
            ("critic", curate.critic_examples([held], votes, n, CurateConfig(), 0).examples),
        ):
            asked = of(sampler, role)[n]
            assert example.messages[:-1] == asked.messages
            assert example.messages[-1].content == replies[asked.messages, asked.seed]
            assert [m.content for m in example.messages if m.role == "system"] == list(system)


# 11


def test_11_loss_is_on_the_last_turn_by_default_and_the_trainer_is_told(recorded):
    _, _, trainer = recorded
    assert TrainConfig().loss_turns == "last"
    assert {how.loss_turns for how in trainer.settings} == {"last"}


def test_11_the_last_message_is_the_response_that_agrees_with_the_label(recorded):
    folder, _, trainer = recorded
    votes = {
        iteration: {v.problem_id: v for v in files.read_records(folder.votes(iteration), Vote)} for iteration in (1, 2)
    }
    for job in trainer.jobs:
        for example in files.read_records(job.examples, Example):
            last, vote = example.messages[-1], votes[job.iteration][example.problem_id]
            answer = answers.extract_answer(last.content)
            assert last.role == "assistant"
            assert answers.equivalent(answer, vote.label) and vote.dropped is None


# 12


def test_12_an_iteration_starts_from_the_agents_own_weights_of_the_one_before(recorded):
    folder, _, trainer = recorded
    for job in trainer.jobs:
        before = None if job.iteration == 1 else folder.agent(1, job.agent).resolve()
        assert job.init_adapter == before


def test_12_or_from_the_base_model_if_asked_for(tmp_path):
    trainer = Recording()
    run(settings(tmp_path, "num_iterations=2", "train.start_from=base"), trainer=trainer)
    assert len(trainer.jobs) == 12 and {job.init_adapter for job in trainer.jobs} == {None}


# 13


def test_13_the_questions_are_the_same_in_every_iteration(recorded):
    folder, _, _ = recorded
    train = [p.id for p in files.read_records(folder.problems("train"), Problem)]
    held_out = [p.id for p in files.read_records(folder.problems("eval"), Problem)]
    for iteration in (1, 2):
        assert [d.problem_id for d in files.read_records(folder.debates(iteration), Debate)] == train
    for iteration in (0, 1, 2):
        debates = files.read_records(folder.evaluation(iteration) / "debates.jsonl", Debate)
        assert [d.problem_id for d in debates] == held_out
    assert not set(train) & set(held_out)


@pytest.mark.parametrize("held_out", [{"id": "b", "question": "What is 2+2?"}, {"question": "what is  2 + 2 ?"}])
def test_13_a_run_refuses_to_start_when_the_sides_share_a_question(tmp_path, held_out):
    (tmp_path / "train.jsonl").write_text(json.dumps({"id": "a", "question": "What is 2 + 2?"}))
    (tmp_path / "eval.jsonl").write_text(json.dumps(held_out))
    task = {"name": "jsonl", "train_file": str(tmp_path / "train.jsonl"), "eval_file": str(tmp_path / "eval.jsonl")}
    sampler = Scripted(guess)
    with pytest.raises(DataError, match=r"1 of 1 held-out questions are training questions too, such as"):
        run(settings(tmp_path, "task.gold_field=null", task=task), sampler)
    assert sampler.history == []


# 14


def test_14_held_out_questions_are_debated_by_the_finetuned_agents_generators_first(recorded):
    folder, sampler, _ = recorded
    held_out = {p.question for p in files.read_records(folder.problems("eval"), Problem)}
    evaluating = [r for r in sampler.history if any(q in r.messages[0].content for q in held_out)]
    per_evaluation = 6 * (3 + 2 * 3)
    assert len(evaluating) == 3 * per_evaluation
    for iteration in (0, 1, 2):
        for request in evaluating[iteration * per_evaluation : (iteration + 1) * per_evaluation]:
            agent = request.agent
            own = None if iteration == 0 else str(folder.agent(iteration, agent.name).resolve())
            assert agent.adapter == (None if agent.role == "summarizer" else own)
            assert (agent.role == "critic") == (len(request.messages) == 3)


def test_14_training_debates_are_held_by_the_agents_finetuned_one_time_less(recorded):
    folder, sampler, _ = recorded
    train = {p.question for p in files.read_records(folder.problems("train"), Problem)}
    asked = [r for r in sampler.history if any(q in r.messages[0].content for q in train)]
    trained = [r for r in asked if r.agent.role != "summarizer"]
    first, second = trained[: len(trained) // 2], trained[len(trained) // 2 :]
    assert {r.agent.adapter for r in first} == {None}
    assert all(r.agent.adapter == str(folder.agent(1, r.agent.name).resolve()) for r in second)


def test_14_the_vote_of_the_last_round_is_the_answer():
    held = debate(["1", "1", "2"], ["2", "2", "1"])
    scores = scored([held], {"7*8": problem(gold="2")}, 1)
    assert scores["maft"][0].answers == ("2",) and scores["maft"][0].correct == (True,)


# 15


def test_15_other_gold_answers_change_no_vote_no_example_and_no_agent(tmp_path):
    made = {}
    for name, gold in (("true", "1"), ("false", "no such answer"), ("unknown", None)):
        home = tmp_path / name
        home.mkdir()
        for side in ("train", "eval"):
            rows = [{"question": f"{side} {n}?", "answer": gold} for n in range(8)]
            (home / f"{side}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        task = {"name": "jsonl", "train_file": str(home / "train.jsonl"), "eval_file": str(home / "eval.jsonl")}
        folder = run(settings(home, "num_iterations=2", task=task))
        shown = run_files(folder.path)
        made[name] = {path: data for path, data in shown.items() if path.startswith("iter_") and "/eval/" not in path}
    assert len(made["true"]) > 20
    assert made["true"] == made["false"] == made["unknown"]


def test_15_nothing_on_the_way_to_the_weights_mentions_gold():
    source = Path(maft.__file__).parent
    guarded = [source / name for name in ON_THE_WAY] + sorted((source / "trainers").glob("*.py"))
    for path in guarded:
        names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        assert "gold" not in names, path.relative_to(source)


# 16


def test_16_an_answer_that_cannot_be_parsed_is_wrong_in_every_accuracy():
    held = [debate(["2", None, None], [None, None, None], problem_id="a"), debate(["2"] * 3, ["2"] * 3, problem_id="b")]
    problems = {name: Problem(id=name, question=name, gold="2") for name in "ab"}
    results = {m: summarize(s) for m, s in scored(held, problems, 0).items()}
    assert results["base"].accuracy == pytest.approx(4 / 6) and results["base"].unparsed == pytest.approx(2 / 3)
    assert results["debate"].accuracy == 0.5 and results["debate"].unparsed == 1
    assert {result.n for result in results.values()} == {2}


def test_16_a_debate_that_failed_is_wrong_too_and_stays_in_the_denominator():
    held = [debate(["2", "2", "2"], problem_id="a", error="critic_0, round 2: timeout")]
    scores = scored(held, {"a": Problem(id="a", question="a", gold="2")}, 0)
    assert summarize(scores["debate"]).accuracy == 0.0
    assert isinstance(scores["debate"][0], Score) and scores["debate"][0].answers == (None,)
