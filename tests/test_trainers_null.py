"""The trainer that learns nothing, and the folders that appear whole."""

import json

import pytest

from maft.config import TrainConfig
from maft.files import appearing_whole, partial
from maft.trainers.base import TrainJob
from maft.trainers.null import NullTrainer


def make_job(folder, **changes) -> TrainJob:
    examples = folder / "examples.jsonl"
    examples.write_text("one\ntwo\n")
    job = TrainJob(
        agent="critic_1",
        role="critic",
        iteration=2,
        examples=examples,
        num_examples=2,
        base_model="none",
        init_adapter=folder / "before" / "critic_1",
        output=folder / "after" / "critic_1",
        seed=7,
    )
    return job.model_copy(update=changes)


def train(job: TrainJob) -> dict:
    NullTrainer().train([job], TrainConfig(), lambda _: None)
    return json.loads((job.output / "adapter.json").read_text())


def test_each_job_gets_its_folder_and_a_progress_that_ends_it(tmp_path):
    jobs = [make_job(tmp_path, agent=agent, output=tmp_path / agent) for agent in ("critic_0", "critic_1")]
    seen = []
    NullTrainer().train(jobs, TrainConfig(), seen.append)
    assert [progress.agent for progress in seen] == ["critic_0", "critic_1"]
    assert all(progress.step == progress.num_steps for progress in seen)
    assert all((job.output / "adapter.json").is_file() for job in jobs)


def test_the_same_job_in_two_places_gives_equal_bytes(tmp_path):
    contents = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        job = make_job(tmp_path / place)
        train(job)
        contents.append((job.output / "adapter.json").read_bytes())
    assert contents[0] == contents[1]


def test_other_examples_give_another_adapter(tmp_path):
    first = make_job(tmp_path)
    one = train(first)
    first.examples.write_text("something else\n")
    other = train(first.model_copy(update={"output": tmp_path / "other"}))
    assert one["examples_sha256"] != other["examples_sha256"]
    assert {**one, "examples_sha256": ""} == {**other, "examples_sha256": ""}


def test_a_folder_that_fails_half_way_never_appears(tmp_path):
    output = tmp_path / "agents" / "critic_0"
    with pytest.raises(RuntimeError), appearing_whole(output) as folder:
        (folder / "half").write_text("")
        raise RuntimeError
    assert list(output.parent.iterdir()) == []


def test_what_a_killed_training_left_is_not_in_the_next_folder(tmp_path):
    output = tmp_path / "critic_0"
    partial(output).mkdir()
    (partial(output) / "torn").write_text("")
    with appearing_whole(output) as folder:
        (folder / "whole").write_text("")
    assert [file.name for file in output.iterdir()] == ["whole"]
    assert not partial(output).exists()


def test_an_output_that_is_there_is_refused(tmp_path):
    output = tmp_path / "critic_0"
    output.mkdir()
    with pytest.raises(AssertionError, match="critic_0 is there already"), appearing_whole(output):
        pass
