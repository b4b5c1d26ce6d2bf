"""What was computed once is not computed again: replies by request, agents by job."""

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from helpers import run, run_files, settings

from maft.config import RoleTraining, TrainConfig
from maft.errors import DataError
from maft.records import AgentRef, Message, Reply, Request, SamplingParams
from maft.samplers import Scripted
from maft.samplers.cached import CachedSampler, Replies, weights
from maft.samplers.scripted import guess
from maft.trainers import NullTrainer
from maft.trainers.base import TrainJob
from maft.trainers.cached import CachedTrainer, key

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


def test_what_follows_from_a_reply_is_asked_at_once_and_looked_up_too(tmp_path):
    """A chain of three questions, each asked because of the reply before it; twice, side by side."""

    def ask(number: int) -> Request:
        return ASK.model_copy(update={"seed": number})

    def chain() -> list[tuple[int, str]]:
        told = []

        def take(number, reply):
            told.append((number, reply.text))
            return [ask(int(reply.text) + 1)] if int(reply.text) < 3 else []

        CachedSampler(engine, tmp_path / "replies.sqlite").answer([ask(1), ask(1)], take)
        return told

    engine = Scripted(lambda request: str(request.seed))
    assert chain() == chain() == [(0, "1"), (1, "1"), (2, "2"), (3, "2"), (4, "3"), (5, "3")]
    assert len(engine.history) == 3


def test_a_damaged_file_is_said(tmp_path):
    (tmp_path / "replies.sqlite").write_bytes(b"no data base " * 1000)
    with pytest.raises(DataError, match="replies.sqlite cannot be read: .*Remove it"):
        CachedSampler(Scripted(["x"]), tmp_path / "replies.sqlite").sample([ASK])


def test_a_file_that_another_process_uses_is_not_called_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0.01))
    with closing(Replies(tmp_path / "replies.sqlite")) as held:
        held.keep(b"key", Reply(text="x", finish_reason="stop"))
        with pytest.raises(DataError, match="replies.sqlite is in use by another process"):
            Replies(tmp_path / "replies.sqlite")


def test_several_processes_use_a_shared_file(tmp_path):
    file = tmp_path / "replies.sqlite"
    with closing(Replies(file, shared=True)) as one, closing(Replies(file, shared=True)) as two:
        for held, key in ((one, b"a"), (two, b"b"), (one, b"c")):
            held.keep(key, Reply(text=key.decode(), finish_reason="stop"))
        assert [held.find(key).text for held in (one, two) for key in (b"a", b"b", b"c")] == [*"abcabc"]


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
    one, two = (run_files(folder.path) for folder in folders)
    assert one.pop("config.json") != two.pop("config.json") and one == two
    before = len(engine.history)
    run(settings(tmp_path / "three", "num_iterations=2"), CachedSampler(engine, tmp_path / "cache/replies.sqlite"))
    assert len(engine.history) == before


def job(home: Path, model: str, **changes) -> TrainJob:
    home.mkdir(exist_ok=True)
    (home / "examples.jsonl").write_text("examples")
    made = TrainJob(
        agent="critic_0",
        role="critic",
        iteration=2,
        examples=home / "examples.jsonl",
        num_examples=1,
        base_model=model,
        init_adapter=None,
        output=home / "critic_0",
        seed=1,
    )
    return made.model_copy(update=changes)


def full_agent(folder: Path, weights: bytes) -> str:
    folder.mkdir()
    (folder / "training.json").write_text(f"made in {folder}")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return str(folder)


def test_a_training_is_known_by_the_weights_it_starts_from_not_by_their_place(tmp_path):
    starts = [full_agent(tmp_path / name, weights) for name, weights in (("a", b"x"), ("b", b"x"), ("c", b"y"))]
    keys = [key(job(tmp_path, start), TrainConfig(method="full")) for start in starts]
    assert keys[0] == keys[1] != keys[2]
    replies = [weights(ASK.agent.model_copy(update={"model": start})) for start in starts]
    assert replies[0] == replies[1] != replies[2]
    assert weights(ASK.agent) == "m"


@pytest.mark.parametrize(
    "same",
    [
        TrainConfig(learning_rate=(3e-4, 1e-4), generator=RoleTraining(num_epochs=9)),
        TrainConfig(learning_rate=1e-4),
        TrainConfig(critic=RoleTraining(learning_rate=1e-4)),
        TrainConfig(learning_rate=1e-4, gradient_checkpointing=True),
    ],
)
def test_a_training_is_known_by_the_settings_that_hold_for_it(tmp_path, same):
    assert key(job(tmp_path, "m"), same) == key(job(tmp_path, "m"), TrainConfig(learning_rate=(9e-4, 1e-4, 2e-4)))


@pytest.mark.parametrize("other", [TrainConfig(method="full"), TrainConfig(packing=True), TrainConfig(batch_size=4)])
def test_other_settings_are_another_training(tmp_path, other):
    assert key(job(tmp_path, "m"), other) != key(job(tmp_path, "m"), TrainConfig())
