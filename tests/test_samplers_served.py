"""Adapters in a vLLM server elsewhere, against a stand-in on loopback; the real one is in test_vllm_engine.py."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import needs
from openai_stand_in import KEY, Fault, StandIn
from test_samplers_vllm import adapter

from maft import config as config_
from maft.config import OpenAiConfig
from maft.errors import ConfigError, DataError
from maft.hosted.sampler import OpenAi
from maft.records import AgentRef, Message, Request, SamplingParams
from maft.samplers.cached import CachedSampler

pytestmark = [needs("openai"), pytest.mark.usefixtures("without_torch")]

LOAD = "/load_lora_adapter"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("maft.hosted.service.retry_after", lambda error: 0.001)
    with StandIn(lambda asked: asked["model"]) as made:
        made.adapters = {}
        yield made


def ask(question: str, weights: Path | None = None) -> Request:
    agent = AgentRef(role="critic", index=1, model="tiny", adapter=str(weights) if weights else None)
    messages = (Message(role="user", content=question),)
    return Request(agent=agent, messages=messages, sampling=SamplingParams(max_new_tokens=7), seed=1)


def engine(server: StandIn, folder: Path) -> CachedSampler:
    service = OpenAi(OpenAiConfig(base_url=server.url, load_adapters=True), folder)
    return CachedSampler(service, folder / "replies.sqlite", paid=True)


def test_each_agent_is_asked_under_the_name_of_its_own_adapter(server, tmp_path):
    one, two = adapter(tmp_path / "generator_0", content=b"1"), adapter(tmp_path / "generator_1", content=b"2")
    replies = engine(server, tmp_path).sample([ask(q, weights) for q in "ab" for weights in (None, two, one)])
    assert replies[0].text == replies[3].text == "tiny"
    assert server.adapters[replies[1].text] == server.adapters[replies[4].text] == str(two)
    assert server.adapters[replies[2].text] == server.adapters[replies[5].text] == str(one)
    assert replies[1].text.startswith("maft-generator_1-") and len(server.adapter_names) == 2
    assert {asked["top_k"] for asked in server.asked} == {0}, "vLLM would take the model's own default"


def test_no_name_is_used_twice_and_release_unloads_all(server, tmp_path):
    place, ours = adapter(tmp_path / "generator_0", content=b"first"), engine(server, tmp_path)
    ours.sample([ask("a", place)])
    ours.sample([ask("b", place)])
    assert len(server.adapter_names) == 1
    ours.release()
    assert server.adapters == {} and not (tmp_path / "served.json").exists()
    shutil.rmtree(place)
    ours.sample([ask("c", adapter(place, content=b"other"))])
    assert len(set(server.adapter_names)) == 2
    ours.release()


def test_what_a_killed_start_left_behind_is_unloaded_by_the_next(server, tmp_path):
    one, two = adapter(tmp_path / "one", content=b"1"), adapter(tmp_path / "two", content=b"2")
    engine(server, tmp_path).sample([ask("a", one)])
    (left,) = server.adapters
    (tmp_path / "served.json").write_text(json.dumps({"names": [left, "never-loaded"]}))
    engine(server, tmp_path).sample([ask("b", two)])
    assert list(server.adapters.values()) == [str(two)]


def test_what_was_answered_before_needs_no_adapter(server, tmp_path):
    one = adapter(tmp_path / "one", content=b"1")
    first = engine(server, tmp_path)
    first.sample([ask("a", one)])
    first.release()
    assert engine(server, tmp_path).sample([ask("a", one)])[0].text == server.adapter_names[0]
    assert len(server.adapter_names) == 1


def test_an_answer_that_is_lost_is_no_reason_to_use_a_name_again(server, tmp_path):
    server.faults += [Fault(LOAD, -1), Fault(LOAD, 503)]
    ours = engine(server, tmp_path)
    ours.sample([ask("a", adapter(tmp_path / "one"))])
    assert len(server.adapters) == 2, "the lost one was loaded, too"
    ours.release()
    assert server.adapters == {}


@pytest.mark.parametrize(
    ("faults", "kind", "said"),
    [
        ([Fault(LOAD, 404, "Not Found")], DataError, "does not load the adapter .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        ([Fault(LOAD, 400, "rank 64 is greater than max_lora_rank 16")], DataError, "max_lora_rank 16"),
        ([Fault(LOAD, 401)], ConfigError, "does not accept the key in OPENAI_API_KEY"),
        ([Fault(LOAD, 0)] * 3, DataError, "cannot be reached"),
    ],
)
def test_a_server_that_loads_nothing_is_said_before_anything_is_asked(server, tmp_path, faults, kind, said):
    server.faults += faults
    with pytest.raises(kind, match=said):
        engine(server, tmp_path).sample([ask("a", adapter(tmp_path / "one"))])
    assert not server.asked


def test_what_is_no_adapter_is_not_sent(server, tmp_path):
    with pytest.raises(DataError, match=r"has no adapter_config.json"):
        engine(server, tmp_path).sample([ask("a", tmp_path / "nothing")])
    assert not server.adapter_names


def test_a_server_that_has_gone_does_not_keep_a_run_from_ending(server, tmp_path):
    ours = engine(server, tmp_path)
    ours.sample([ask("a", adapter(tmp_path / "one"))])
    server.faults += [Fault("/unload_lora_adapter", 0)] * 5
    ours.release()
    assert (tmp_path / "served.json").exists(), "asked again at the next start"


def test_a_server_may_sample_what_we_finetune():
    def config(*overrides: str) -> config_.RunConfig:
        tree = {"task": {"name": "arithmetic"}, "engine": {"sampler": "openai", "trainer": "sft"}}
        return config_.parse(tree, overrides)

    with pytest.raises(ConfigError, match="or openai.load_adapters for a vLLM server"):
        config_.check_loop(config())
    config_.check_loop(config("openai.load_adapters=true", "openai.base_url=http://localhost:8000/v1"))
    with pytest.raises(ConfigError, match="openai.load_adapters needs the address of a vLLM server"):
        config("openai.load_adapters=true")
