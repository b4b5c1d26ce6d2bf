"""A society taught to one model: what the student learns from, and whom it is compared with."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from helpers import Quiet, boxed, debate, run, settings

from maft import comparison, files, report, seeds
from maft.answers import Mathematics
from maft.comparison import distil
from maft.comparison.arms import ARMS
from maft.config import VoteConfig
from maft.errors import ConfigError, UserError
from maft.method import vote as voting
from maft.records import Debate, Example, Vote
from maft.runs import status
from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.samplers.scripted import guess
from maft.sharing import sections
from maft.sharing.sections import Held
from maft.trainers import NullTrainer

STUDENTS = ("distil", "distil_debates")


class Counting(Scripted):
    def __init__(self) -> None:
        super().__init__(guess)
        self.asked: Counter[str] = Counter()

    def sample(self, requests, *args, **kwargs):
        requests = list(requests)
        self.asked.update(request.agent.name for request in requests)
        return super().sample(requests, *args, **kwargs)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    teacher = run(settings(tmp_path_factory.mktemp("runs"), "num_iterations=2"))
    before = files_of(teacher.path)
    compared = comparison.of_run(teacher, ["majority_ft", *STUDENTS])
    sampler = Counting()
    comparison.compare(compared, sampler, NullTrainer(), Quiet())
    return teacher, before, compared, sampler


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def examples(compared, name: str, iteration: int) -> list[Example]:
    return files.read_records(compared.folder(ARMS[name], 0).examples(iteration, "generator_0"), Example)


def test_the_teacher_is_left_as_it_was_and_is_the_reference(taught):
    teacher, before, compared, _ = taught
    assert files_of(teacher.path) == before
    assert compared.folder(ARMS["maft"], 0).path.resolve() == teacher.path.resolve()
    assert compared.path == teacher.path.with_name("run_distilled")


def test_a_society_debates_again_only_where_it_has_not(taught):
    teacher, _, compared, _ = taught
    student = compared.folder(ARMS["distil"], 0)
    assert student.debates(1).read_bytes() == teacher.debates(2).read_bytes()
    assert {d.iteration for d in files.read_records(student.debates(2), Debate)} == {3}
    assert student.debates(2).read_bytes() == compared.folder(ARMS["distil_debates"], 0).debates(2).read_bytes()
    events = [event for event in student.events() if (event["event"], event.get("stage")) == ("debated", "train")]
    assert {event["iteration"] for event in events} == {1, 2}, "its costs are those of the lesson that it is for"


def test_a_student_is_an_ordinary_run_of_one_agent_on_the_base(taught):
    for name in STUDENTS:
        student = taught[2].folder(ARMS[name], 0)
        assert status.complete(student) and student.config.society.one_model
        assert student.config.train.start_from == "base"
        assert [path.name for path in student.agent(2, "generator_0").parent.iterdir()] == ["generator_0"]


def test_the_card_of_a_student_names_its_teachers(taught):
    student = taught[2].folder(ARMS["distil_debates"], 0)
    card = sections.body(Held(student, 2), ["generator_0"], "a/b", "c/d", adapter=True)
    assert "debated by 3 agents in 2 rounds, which had been finetuned" in card and "write their debates" in card
    assert "One model learnt" not in card


def test_the_student_learns_replies_that_are_the_label_at_most_as_many_as_an_agent(taught):
    teacher, _, compared, _ = taught
    for iteration in (1, 2):
        folder = compared.folder(ARMS["distil"], 0)
        votes = {vote.problem_id: vote for vote in files.read_records(folder.votes(iteration), Vote)}
        for example in examples(compared, "distil", iteration):
            assert votes[example.problem_id].dropped is None
            assert f"\\boxed{{{votes[example.problem_id].label}}}" in example.messages[-1].content
            assert [message.role for message in example.messages] == ["user", "assistant"]
        counts = files.read_json(teacher.examples_summary(iteration))
        mean = sum(count["examples"] for count in counts.values()) / len(counts)
        assert len(examples(compared, "distil", iteration)) <= max(1, round(mean))


def test_a_whole_debate_is_one_reply_that_ends_in_the_label(taught):
    for example in examples(taught[2], "distil_debates", 2):
        text = example.messages[-1].content
        assert text.startswith("Round 1\n\nAgent 1: ") and text.count("Agent ") == 6 and "Round 2" in text
        assert text.rpartition("Vote\n\n")[2].startswith("The answer is \\boxed{")
    config = taught[2].folder(ARMS["distil_debates"], 0).config
    assert config.sampling.train.generator.max_new_tokens == 3 * 2 * 512 + 100
    assert config.train.max_length > config.sampling.train.generator.max_new_tokens


def test_a_student_has_room_for_debates_of_training_where_held_out_replies_are_shorter(tmp_path):
    stages = {"train": {"critic": {"max_new_tokens": 400}}, "eval": {"generator": {"max_new_tokens": 90}}}
    config = settings(tmp_path, sampling=stages)
    longest = max(config.sampling.train.generator.max_new_tokens, 400)
    room = ARMS["distil_debates"].settings(config)
    assert room["sampling.eval.generator.max_new_tokens"] == 3 * 2 * longest + 100


def test_where_no_first_answer_is_the_label_later_ones_are_learned_as_answers_to_the_question():
    def learned(*rounds):
        spoken = debate(*rounds)
        return distil._agreeing(spoken, voting.vote(spoken, VoteConfig(), 0, Mathematics()))

    assert learned(["1", "2", "3"], ["4", "4", "5"]) == [boxed("4")]
    assert learned(["4", "2", "3"], ["4", "5", "5"]) == [boxed("5")]


def test_a_debate_that_teaches_nothing_is_counted_by_its_reason(tmp_path):
    folder = RunFolder(tmp_path, settings(tmp_path, "society.one_model=true", "debate.num_rounds=1"))
    label = VoteConfig(label_from="all", min_agreement="plurality")
    (tmp_path / "iter_01").mkdir()
    middle = debate(["1", "2", "3"], ["9", "9", "9"], ["4", "5", "6"], problem_id="middle")
    cut = debate(["7", "7", "7"], problem_id="cut")
    reply = cut.turns[0].call.reply.model_copy(update={"finish_reason": "length"})
    turns = [t.model_copy(update={"call": t.call.model_copy(update={"reply": reply})}) for t in cut.turns]
    debates = [middle, cut.model_copy(update={"turns": tuple(turns)})]
    votes = {d.problem_id: voting.vote(d, label, 0, Mathematics()) for d in debates}
    votes["cut"] = votes["cut"].model_copy(update={"label": "7", "winner": 0, "dropped": None})
    distil._make_examples(folder, 1, debates, votes, whole=False)
    (counts,) = files.read_json(folder.examples_summary(1)).values()
    assert (counts["examples"], counts["disagrees"], counts["cut"]) == (0, 1, 1)


def test_the_table_has_the_society_its_best_member_and_votes_at_equal_tokens(taught):
    rows = {row.method: row for row in comparison.results(taught[2]) if row.iteration == 2}
    assert {"maft", "maft_best_member", "majority_ft", "distil", "distil_majority@budget", "distil_debates"} <= set(
        rows
    )
    assert rows["distil_majority@budget"].tokens >= rows["maft"].tokens
    assert rows["maft_best_member"].calls == rows["maft"].n
    assert rows["distil"].holm is not None and rows["distil"].difference is not None


def test_an_interrupted_lesson_is_resumed_and_repeats_nothing(taught):
    sampler = taught[3]
    before = sampler.asked.total()
    comparison.compare(comparison.of_run(taught[0], STUDENTS), sampler, NullTrainer(), Quiet())
    assert sampler.asked.total() == before


def test_an_unfinished_run_and_settings_of_the_society_are_refused(tmp_path, call, finished_run):
    with pytest.raises(UserError, match="is not finished"):
        comparison.of_run(RunFolder(tmp_path, finished_run.config), ["distil"])
    code, _, err = call("distil", str(finished_run.path), "debate.num_agents=5")
    assert code == 2 and "only engine, vllm, openai and train" in err
    with pytest.raises(ConfigError, match="cannot be the reference"):
        comparison.begin(settings(tmp_path, "name=c"), ["maft"], [0], reference="distil")


@pytest.mark.parametrize("change", ["seed=1", "seed=0"])
def test_another_run_in_the_same_folder_is_no_teacher_of_what_was_taught(tmp_path, change):
    comparison.of_run(run(settings(tmp_path)), ["distil"])
    shutil.rmtree(tmp_path / "run")
    again = run(settings(tmp_path, change), Scripted(lambda request: boxed(request.seed % 7)))
    with pytest.raises(ConfigError, match="run_distilled was made from another run than .* is now"):
        comparison.of_run(again, ["distil"])


def test_a_teacher_with_further_iterations_goes_on_teaching(tmp_path):
    comparison.of_run(run(settings(tmp_path)), ["distil"])
    assert comparison.of_run(run(settings(tmp_path, "num_iterations=2")), ["distil"]).config.num_iterations == 2


def test_other_settings_of_finetuning_than_those_of_the_society_are_said(tmp_path, caplog):
    compared = comparison.of_run(run(settings(tmp_path)), ["distil"], ["train.num_epochs=5", "engine.batch_size=2"])
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "train.num_epochs = 2, not 5." in warning and "batch_size" not in warning
    assert "5 (maft: 2)" in report.write_comparison_page(compared, []).read_text()


def test_a_society_that_learns_other_questions_in_each_iteration_teaches_those(tmp_path):
    task = {"name": "arithmetic", "shape": "a+b*c", "num_train": 8, "num_eval": 4, "train_sets": 2}
    teacher = run(settings(tmp_path, "num_iterations=2", task=task))
    compared = comparison.of_run(teacher, ["distil"])
    comparison.compare(compared, Scripted(guess), NullTrainer(), Quiet())
    student = compared.folder(ARMS["distil"], 0)
    assert student.debates(1).read_bytes() == teacher.debates(2).read_bytes()
    asked = [
        {d.problem_id for d in files.read_records(path, Debate)} for path in (teacher.debates(1), student.debates(2))
    ]
    assert asked[0] == asked[1] and len(asked[0]) == 8


def test_the_judge_is_asked_about_the_debates_that_only_the_student_learns_from(tmp_path):
    rows = [{"question": f"What is on picture {n}?", "answer": "a dog"} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def say(request) -> str:
        if "Second answer:" in request.messages[-1].content:
            return "yes"
        return f"dog {seeds.rng('says', request.seed).randrange(1000)}"

    task = {"name": "text", "equality": "judge", "train_file": str(tmp_path / "rows.jsonl")}
    compared = comparison.of_run(run(settings(tmp_path, task=task), Scripted(say)), ["distil"])
    comparison.compare(compared, Scripted(say), NullTrainer(), Quiet())
    votes = files.read_records(compared.folder(ARMS["distil"], 0).votes(1), Vote)
    assert votes and all(vote.agreement == 1 for vote in votes)


def test_a_student_or_star_that_learns_nothing_is_named(tmp_path):
    class Heard(Quiet):
        said: list[str] = []  # noqa: RUF012

        def say(self, text: str) -> None:
            self.said.append(text)

    compared = comparison.begin(settings(tmp_path, "name=c"), ["star", "distil"], [0])
    comparison.compare(compared, Scripted(lambda request: "I do not know."), NullTrainer(), Heard())
    after = {name: Heard.said[Heard.said.index(f"{name}, seed 0") :] for name in ("star", "distil")}
    assert any("no reply is right" in text for text in after["star"])
    assert any("nothing was learned" in text for text in after["distil"])
    (counts,) = files.read_json(compared.folder(ARMS["star"], 0).examples_summary(1)).values()
    assert (counts["examples"], counts["disagrees"]) == (0, 10)


def test_a_student_is_an_arm_of_any_comparison(tmp_path):
    compared = comparison.begin(settings(tmp_path, "name=c"), ["distil"], [0])
    comparison.compare(compared, Scripted(guess), NullTrainer(), Quiet())
    assert {"distil", "maft_best_member"} <= {row.method for row in comparison.results(compared)}
