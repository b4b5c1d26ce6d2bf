"""maft as a library: run, open, records for pandas and datasets, a society that can be asked."""

import subprocess
import sys

import pytest
from helpers import ENVIRONMENT, ROOT, settings

import maft
from maft import NullTrainer, Scripted
from maft.errors import ConfigError, UserError
from maft.pipeline import run as pipeline
from maft.runs import societies
from maft.runs.folder import RunFolder
from maft.samplers.scripted import guess


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return maft.run(settings(tmp_path_factory.mktemp("runs"), "num_iterations=2"), quiet=True)


def test_a_run_can_be_opened_and_read(finished):
    run = maft.open(finished.path)
    assert run.config == finished.config and run.path == finished.path
    assert [(r.iteration, r.method) for r in run.results()][:2] == [(0, "base"), (0, "majority@3")]
    assert len(run.questions()) == 10 and len(run.questions(held_out=True)) == 6
    assert {d.iteration for d in run.debates()} == {2} and {d.iteration for d in run.debates(1)} == {1}
    assert {d.problem_id for d in run.debates(0, held_out=True)} == {p.id for p in run.questions(held_out=True)}
    assert {v.problem_id for v in run.votes(1)} == {p.id for p in run.questions()}
    assert all(e.agent == "critic_0" for e in run.examples("critic_0"))
    assert run.report().is_file()


@pytest.mark.slow
def test_records_are_sequences_frames_and_data_sets(finished):
    debates = finished.debates(1)
    assert debates[0] == next(iter(debates)) and debates[:2] == list(debates)[:2]
    frame = finished.votes(1).to_pandas()
    assert len(frame) == 10 and "label" in frame.columns
    assert finished.results().to_pandas()["accuracy"].between(0, 1).all()
    scores = finished.scores("maft", 1)
    assert len(scores.to_pandas()) == 6 and scores.to_dataset().num_rows == 6
    rows = finished.examples("generator_0", 1)
    dataset = rows.to_dataset()
    assert dataset.num_rows == len(rows) and dataset[0]["messages"][-1]["role"] == "assistant"


def test_what_is_not_there_is_said_in_one_line(finished):
    with pytest.raises(UserError, match="critic_9' is not finetuned in this run. It has generator_0"):
        finished.examples("critic_9")
    with pytest.raises(UserError, match="iter_07"):
        finished.debates(7)
    with pytest.raises(UserError, match="not finetuned"):
        finished.society(7)
    with pytest.raises(ConfigError, match="debate.num_agent"):
        maft.run({"task": {"name": "arithmetic"}}, "debate.num_agent=2")


def test_a_society_answers_questions_and_the_same_one_alike(finished):
    with maft.LoadedSociety.load(finished.path) as society:
        first, other = society.ask_all(["What is 2 + 3?", "What is 4 * 4?"])
        again = society.ask("What is 2 + 3?")
        with pytest.raises(UserError, match="a question is empty"):
            society.ask(" ")
    assert again == first and first.debate.question == "What is 2 + 3?"
    assert first.text == first.vote.label and 0 < first.agreement <= 1
    assert {turn.call.agent for turn in first.debate.round(1)} == {"generator_0", "generator_1", "generator_2"}
    assert other.debate.problem_id != first.debate.problem_id


def test_first_answers_that_do_not_vote_are_not_asked_for(tmp_path):
    for over, num_samples in (("last", 1), ("first", 4)):
        config = settings(tmp_path, "debate.num_eval_samples=4", f"vote.over={over}")
        rules = pipeline.answer_rules(RunFolder(tmp_path, config), 0, societies.untrained(config))
        assert rules.debate.num_samples == num_samples


def test_engines_of_ones_own_take_the_place_of_those_in_the_config(tmp_path):
    asked = []

    def note(request):
        asked.append(request)
        return guess(request)

    run = maft.run(settings(tmp_path, "engine.sampler=auto"), sampler=Scripted(note), trainer=NullTrainer(), quiet=True)
    assert len(asked) == sum(len(d.calls()) for d in run.debates(1)) + sum(
        len(d.calls()) for number in (0, 1) for d in run.debates(number, held_out=True)
    )


PROGRAM = """
import maft

run = maft.open("runs/mine")
best = max(run.results(), key=lambda result: result.accuracy or 0.0)
name: str = best.method
labels: list[str | None] = [vote.label for vote in run.votes(1)]
texts: list[str] = [turn.call.reply.text for debate in run.debates() for turn in debate.turns]
last: maft.Message = run.examples("critic_0")[0].messages[-1]
with run.society() as society:
    answer: maft.Answer = society.ask("What is 7 * 8?")
    text: str | None = answer.text
finished: maft.Run = maft.run({"task": {"name": "arithmetic"}}, "seed=1", quiet=True)
reveal_type(finished.debates()[0])
"""


@pytest.mark.slow
def test_a_program_of_a_user_is_type_checked(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    wrong = PROGRAM.replace("name: str = best.method", "name: int = best.method")
    (tmp_path / "wrong.py").write_text(wrong)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    done = subprocess.run(
        [*command, "program.py", "wrong.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT | {"MYPYPATH": ENVIRONMENT["PYTHONPATH"]},
    )
    said = done.stdout.splitlines()
    assert [line for line in said if "error" in line and not line.startswith("wrong.py:6")] == [said[-1]], done.stdout
    assert any("maft.records.Debate" in line for line in said)
