"""What was computed once is not computed again: replies by request, agents by job."""

from pathlib import Path

import pytest
from helpers import files, run, settings

from maft.records import AgentRef, Message, Reply, Request, SamplingParams
from maft.samplers import Scripted
from maft.samplers.cached import CachedSampler
from maft.samplers.scripted import guess
from maft.trainers import NullTrainer
from maft.trainers.cached import CachedTrainer

ASK = Request(
    agent=AgentRef(role="generator", index=0, model="m"),
    messages=(Message(role="user", content="What is 7 * 8?"),),
    sampling=SamplingParams(),
    seed=1,
)


def adapter(folder: Path, weights: bytes) -> AgentRef:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return ASK.agent.model_copy(update={"adapter": str(folder)})


def test_a_request_is_answered_once_whoever_asks_and_in_any_process(tmp_path):
    engine = Scripted(["first", "second"])
    cached = CachedSampler(engine, tmp_path / "replies.sqlite")
    other = ASK.model_copy(update={"agent": AgentRef(role="critic", index=2, model="m")})
    assert [r.text for r in cached.sample([ASK, other])] == ["first", "first"]
    heard: list[Reply] = []
    again = CachedSampler(engine, tmp_path / "replies.sqlite").sample([other, ASK], heard.append)
    assert [r.text for r in again] == [r.text for r in heard] == ["first", "first"]
    assert len(engine.history) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"messages": (Message(role="user", content="What is 7 * 9?"),)},
        {"sampling": SamplingParams(top_k=3)},
        {"agent": AgentRef(role="generator", index=0, model="n")},
    ],
)
def test_another_request_is_asked(tmp_path, change):
    engine = Scripted(["first", "second"])
    cached = CachedSampler(engine, tmp_path / "replies.sqlite")
    assert [r.text for r in cached.sample([ASK, ASK.model_copy(update=change)])] == ["first", "second"]


def test_the_same_weights_in_another_folder_are_the_same_and_others_are_not(tmp_path):
    agents = [adapter(tmp_path / name, weights) for name, weights in (("a", b"x"), ("b", b"x"), ("c", b"y"))]
    engine = Scripted(["x says", "y says"])
    cached = CachedSampler(engine, tmp_path / "replies.sqlite")
    replies = cached.sample([ASK.model_copy(update={"agent": agent}) for agent in agents])
    assert [reply.text for reply in replies] == ["x says", "x says", "y says"]


def test_an_error_is_not_kept(tmp_path):
    engine = Scripted(lambda request: Reply(text="", finish_reason="error", error="no answer in time"))
    cached = CachedSampler(engine, tmp_path / "replies.sqlite")
    assert all(cached.sample([ASK])[0].error for _ in range(2))
    assert len(engine.history) == 2


def test_a_second_run_computes_nothing_and_has_the_same_files(tmp_path):
    class Counting(NullTrainer):
        trained = 0

        def train(self, jobs, settings, on_progress):
            self.trained += len(jobs)
            super().train(jobs, settings, on_progress)

    engine, trainer = Scripted(guess), Counting()
    folders = [
        run(
            settings(tmp_path / name, "num_iterations=2"),
            CachedSampler(engine, tmp_path / "cache/replies.sqlite"),
            CachedTrainer(trainer, tmp_path / "cache/agents"),
        )
        for name in ("one", "two")
    ]
    calls = {request.model_dump_json(exclude={"agent"}) for request in engine.history}
    assert trainer.trained == 12 and len(engine.history) >= len(calls) > 0
    one, two = (files(folder.path) for folder in folders)
    assert one.pop("config.json") != two.pop("config.json") and one == two
    before = len(engine.history)
    run(settings(tmp_path / "three", "num_iterations=2"), CachedSampler(engine, tmp_path / "cache/replies.sqlite"))
    assert len(engine.history) == before
