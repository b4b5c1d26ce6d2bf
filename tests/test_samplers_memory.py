"""A model that does not fit is refused before it is loaded, with the figures."""

import pytest

from maft.config import EngineConfig
from maft.errors import DataError
from maft.models import memory
from maft.records import AgentRef, Message, Request, SamplingParams
from maft.samplers import local

GB = 1e9


def test_the_message_has_the_figures():
    parts = {"of weights": 14.2 * GB, "of key-value cache": 3 * GB}
    memory.check("m", parts, 17.3 * GB, "the GPU", "Take another.")
    with pytest.raises(DataError) as refusal:
        memory.check("m", parts, 16 * GB, "the GPU", "Take another.")
    assert str(refusal.value) == (
        "model m does not fit into the GPU: 17.2 GB are needed (14.2 GB of weights, 3.0 GB of key-value cache), "
        "16.0 GB are available. Take another."
    )


def test_a_container_has_what_its_limit_leaves(tmp_path):
    free = memory.free_ram(tmp_path)
    assert free > 0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert memory.free_ram(tmp_path) > 1000
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory.free_ram(tmp_path) == 1000 - 700 + 100


class Engine(local.LocalSampler):
    """A local engine that loads nothing, on a machine with little memory."""

    free = 20 * GB
    loaded = False

    def room(self):
        return self.free, "main memory"

    def load(self, model, chat):
        self.loaded = True

    def unload(self):
        pass

    def run(self, take):
        while batch := take(self.max_sequences):
            yield from ((job, local.Generated([0])) for job in batch)


class Chat:
    """A tokenizer of no model."""

    def __init__(self, folder, **_):
        pass

    def encode(self, request):
        return local.Encoded([1, 2], request.sampling.max_new_tokens)

    def reply(self, prompt, generated, logprobs=None):
        return local.Reply(text="", finish_reason="stop")


def ask(count: int, model: str = "meta-llama/Llama-3-8B") -> list[Request]:
    agent = AgentRef(role="generator", index=0, model=model)
    messages = (Message(role="user", content="?"),)
    return [
        Request(agent=agent, messages=messages, sampling=SamplingParams(max_new_tokens=1000), seed=seed)
        for seed in range(count)
    ]


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(local, "Chat", Chat)
    return Engine(EngineConfig(max_sequences=32))


def test_weights_and_cache_that_fit_are_loaded(engine):
    """16.1 GB of weights, and 32 sequences of 1000 tokens of 131,072 bytes at a time: 4.2 GB."""
    engine.free = 20.3 * GB
    assert len(engine.sample(ask(100))) == 100
    assert engine.loaded


def test_a_model_too_large_for_the_machine_is_refused_before_it_is_loaded(engine):
    with pytest.raises(DataError, match=r"20\.3 GB are needed \(16\.1 GB of weights, 4\.2 GB of key-value cache\)"):
        engine.sample(ask(100))
    assert not engine.loaded


def test_fewer_requests_need_less_cache(engine):
    engine.sample(ask(10))
    assert engine.loaded


def test_a_model_whose_size_is_not_known_is_left_to_the_engine(engine):
    engine.free = 0.0
    engine.sample(ask(1, "somebody/a-model"))
    assert engine.loaded


def test_openvino_takes_the_cache_that_is_set():
    from maft.models import shapes
    from maft.samplers.openvino import OpenVino

    assert OpenVino(EngineConfig(cache_gb=3)).cache_bytes(shapes.known("llama-3-8b"), [10]) == 3 * 2**30


def test_pipelines_of_several_agents_stay_as_far_as_their_caches_will_fit_when_they_are_full(tmp_path, monkeypatch):
    from maft.samplers.openvino import RESERVE, OpenVino

    (tmp_path / "model.bin").write_bytes(b"x" * 1000)
    monkeypatch.setattr(memory, "free_ram", lambda: RESERVE + 2.5 * (2 << 30))  # room for two caches of 2 GB
    engine, built = OpenVino(EngineConfig(cache_gb=2)), []
    engine._folder = tmp_path
    engine._build = lambda adapter, key: built.append(adapter and adapter.name) or object()
    agents = []
    for name in "abc":
        (tmp_path / name).mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / name / file).write_text(name)
        agents.append(tmp_path / name)
    a, b, c = agents
    for adapter in (a, b, a, b, c, b, a):
        engine._pipeline(adapter)
    assert built == ["a", "b", "c", "a"], "the one that spoke longest ago goes"
    engine.unload()
    engine._pipeline(a)
    assert built[-1] == "a" and len(built) == 5
    engine._wide.add("a")
    assert engine._dtype("a") == "float32" and engine._bytes("float32") == engine._bytes("bfloat16") + 1000
