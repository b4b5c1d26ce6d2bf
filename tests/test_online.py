"""Sampling and finetuning in turns: who debates when, what is written, and what a kill leaves."""

from itertools import pairwise

import pytest
from helpers import run, run_files, settings

from maft import files
from maft.config import TrainConfig
from maft.errors import StageFailed
from maft.pipeline import online, tracking
from maft.records import Debate, Example, Problem, Vote
from maft.runs import seals, societies
from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.samplers.scripted import guess
from maft.trainers import NullTrainer

ONLINE = (
    "num_iterations=2",
    "train.online_questions=4",
    "train.learning_rate=[1e-3, 1e-4]",
    "sampling.train_temperature=[1.0, 0.5]",
    "vote.min_agreement=plurality",
)


class Watching(NullTrainer):
    """Notes its jobs, and fails at one of them."""

    def __init__(self, failing: int | None = None) -> None:
        self.jobs, self.rates, self.failing = [], [], failing

    def train(self, jobs, settings: TrainConfig, on_progress) -> None:
        for job in jobs:
            if len(self.jobs) == self.failing:
                self.failing = None
                raise StageFailed("killed")
            super().train([job], settings, on_progress)
            self.jobs.append(job)
            self.rates.append(job.training(settings).learning_rate)


@pytest.fixture(scope="module")
def turns(tmp_path_factory):
    """A run of two iterations in three turns each, who debated which question, and the trainer."""
    speakers = []

    def answer(request):
        speakers.append((request.agent.name, request.agent.adapter, request.sampling.temperature))
        return guess(request)

    trainer = Watching()
    folder = run(settings(tmp_path_factory.mktemp("runs"), *ONLINE), Scripted(answer), trainer)
    return folder, speakers, trainer


def test_agents_debate_with_what_they_learned_in_the_turn_before(turns):
    folder, speakers, trainer = turns
    inner = folder.iteration(1) / "online"
    jobs = [job for job in trainer.jobs if job.agent == "generator_0"]
    firsts = [job for job in jobs if "iter_01/online" in str(job.output)]
    assert len(firsts) > 1 and len(jobs) > len(firsts)
    for before, job in pairwise(jobs):
        start = before.output if job in firsts or before not in firsts else folder.agent(1, "generator_0")
        assert job.init_adapter == start
    assert all(inner in job.output.parents for job in firsts)
    debating = list(dict.fromkeys(adapter for name, adapter, _ in speakers if name == "generator_0"))
    outputs = [str(job.output) for job in jobs]
    assert debating[0] is None and [one for one in debating if one in outputs] == [
        one for one in outputs if one in debating
    ]
    assert str(folder.agent(2, "generator_0")) == debating[-1]
    for iteration, temperature in ((1, 1.0), (2, 0.5)):
        turns_of = str(folder.iteration(iteration) / "online")
        assert {warmth for _, one, warmth in speakers if one and one.startswith(turns_of)} == {temperature}
    assert all(job.keep_optimizer for job in jobs) and len({job.seed for job in jobs}) == len(jobs)
    assert {job.output: rate for job, rate in zip(trainer.jobs, trainer.rates, strict=True)} == {
        job.output: 1e-3 if inner in job.output.parents else 1e-4 for job in trainer.jobs
    }


def test_what_the_turns_made_is_the_iterations(turns):
    folder, _, _ = turns
    asked = [problem.id for problem in files.read_records(folder.problems("train"), Problem)]
    for iteration in (1, 2):
        for file, kind in ((folder.debates(iteration), Debate), (folder.votes(iteration), Vote)):
            records = files.read_records(file, kind)
            assert [record.problem_id for record in records] == asked
            assert {record.iteration for record in records} == {iteration}
        counts = files.read_json(folder.examples_summary(iteration))
        for agent in ("generator_0", "critic_2"):
            examples = files.read_records(folder.examples(iteration, agent), Example)
            assert (
                len(examples)
                == counts[agent]["examples"]
                == counts[agent]["first"] + counts[agent]["corrected"] + counts[agent]["kept"]
            )
            last = sorted(folder.iteration(iteration).glob(f"online/iter_0*/agents/{agent}/adapter.json"))[-1]
            assert (folder.agent(iteration, agent) / "adapter.json").read_bytes() == last.read_bytes()
    assert societies.finished(folder, 2) and folder.evaluated(2)
    debated = [event for event in folder.events() if event["event"] == "debated" and event["stage"] == "train"]
    assert {(event["iteration"], event["turn"]) for event in debated} == {(i, t) for i in (1, 2) for t in (1, 2, 3)}


def test_turns_are_sealed_named_in_messages_and_measured_as_one_iteration(turns):
    folder, _, _ = turns
    seals.seal(folder)
    assert seals.damage(folder) == []
    with (folder.path / "iter_02/online/iter_03/votes.jsonl").open("a") as file:
        file.write(" ")
    assert [damaged.file for damaged in seals.damage(folder)] == ["iter_02/online/iter_03/votes.jsonl"]
    inner = RunFolder(folder.path, folder.config)
    inner.turns_of = 2
    assert (folder.part(3), inner.part(3)) == ("iteration 3", "iteration 2, turn 3")
    reader = tracking.Reader(folder)
    curated = [e for e in folder.events() if e["event"] == "curated" and reader.take(e) and reader.measured(e)]
    assert [(event["iteration"], event.get("turn")) for event in curated] == [(1, None), (2, None)]


def test_steps_of_turns_stand_end_to_end(turns):
    reader, points = tracking.Reader(turns[0]), []
    for iteration, turn, step in ((1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 2, 1), (1, 2, 2), (2, 1, 1)):
        event = {"event": "step", "iteration": iteration, "turn": turn, "agent": "critic_0", "step": step, "loss": 1.0}
        points += [measured.step for measured in (reader.measured(event) if reader.take(event) else [])]
    assert points == [1, 2, 3, 4, 5]


def test_turns_draw_other_replies_in_each_iteration(turns):
    folder, _, _ = turns
    seeds = [
        [turn.call.seed for debate in files.read_records(folder.debates(iteration), Debate) for turn in debate.turns]
        for iteration in (1, 2)
    ]
    assert not set(seeds[0]) & set(seeds[1])


@pytest.mark.parametrize("failing", [0, 8, 17, 20])
def test_a_run_that_was_killed_goes_on_with_the_turn_it_was_in(turns, tmp_path, failing):
    whole, _, once = turns
    trainer = Watching(failing)
    config = settings(tmp_path, *ONLINE)
    with pytest.raises(StageFailed):
        run(config, trainer=trainer)
    folder = run(config, trainer=trainer)
    assert len(trainer.jobs) == len(once.jobs), "no job is done twice"

    def content(of) -> dict[str, bytes]:
        kept = run_files(of.path)
        return {
            name: text
            for name, text in kept.items()
            if name.endswith(("jsonl", "adapter.json")) and "events" not in name
        }

    assert content(folder).keys() == content(whole).keys()
    assert files.read_records(folder.debates(2), Debate) == files.read_records(whole.debates(2), Debate)


def test_cards_and_figures_are_of_all_turns(tmp_path):
    config = settings(tmp_path)
    made = []
    for turn, losses in enumerate(([3.0, 2.0], [1.5]), 1):
        made.append(tmp_path / f"turn_{turn}")
        made[-1].mkdir()
        one = dict.fromkeys(("num_examples", "steps", "tokens", "completion_tokens", "num_dropped_too_long"), turn)
        summary = {**one, "losses": losses, "seconds": 1.5, "init_adapter": None, "versions": {}, "iteration": turn}
        files.write_json(made[-1] / "training.json", summary)
    online._describe(made[-1], config, "critic_1", 4, [*made, tmp_path / "no_examples"])
    total = files.read_json(made[-1] / "training.json")
    assert (total["iteration"], total["turns"], total["steps"], total["losses"]) == (4, 2, 3, [3.0, 2.0, 1.5])
    assert "critic_1, iteration 4" in (made[-1] / "README.md").read_text()


def test_turns_continue_so_they_cannot_start_from_the_base(tmp_path):
    with pytest.raises(Exception, match=r"train\.start_from=previous"):
        settings(tmp_path, "task.num_train=12", "train.online_questions=4", "train.start_from=base")
