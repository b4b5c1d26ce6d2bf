"""What we ask of vLLM, with a stand-in in its place; the real one is in test_vllm_engine.py."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from maft.config import EngineConfig, VllmConfig
from maft.errors import ConfigError, DataError, StageFailed
from maft.models import adapters, memory, shapes
from maft.records import AgentRef, Message, Reply, Request, SamplingParams
from maft.samplers import local, vllm
from maft.samplers.chat import UNLIMITED, Encoded

pytestmark = pytest.mark.usefixtures("without_torch")

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
GB = 10**9


class EngineDeadError(Exception):
    """The name by which vLLM says that its processes have ended."""


class FakeEngine:
    """Answers every request with the number of its adapter, the last one first."""

    made: list["FakeEngine"] = []  # noqa: RUF012
    dies = False

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.asked: dict[str, dict[str, Any]] = {}
        self.waiting: list[str] = []
        self.most_adapters = 0
        self.ended = False
        self.engine_core = SimpleNamespace(shutdown=self.end)
        self.model_config = SimpleNamespace(max_model_len=arguments["max_model_len"] or 50)
        FakeEngine.made.append(self)

    def end(self) -> None:
        self.ended = True

    def add_request(self, name, prompt, params, lora_request=None):
        self.asked[name] = {"prompt": prompt, "params": params, "lora": lora_request}
        self.waiting.append(name)

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self):
        if FakeEngine.dies:
            raise EngineDeadError("a worker has run out of memory")
        loras = {self.asked[name]["lora"].lora_int_id for name in self.waiting if self.asked[name]["lora"]}
        self.most_adapters = max(self.most_adapters, len(loras))
        name = self.waiting.pop()
        lora = self.asked[name]["lora"]
        ids = [lora.lora_int_id if lora else 0, 2]
        asked = self.asked[name]["params"].logprobs is not None
        logprobs = [{token: SimpleNamespace(logprob=-token / 2)} for token in ids] if asked else None
        done = SimpleNamespace(token_ids=ids, logprobs=logprobs)
        return [
            SimpleNamespace(request_id=name, finished=True, outputs=[done]),
            *(SimpleNamespace(request_id=other, finished=False, outputs=[]) for other in self.waiting),
        ]


class FakeChat:
    """One token for each letter; 2 ends a reply."""

    def __init__(self, folder: str, **_: object) -> None:
        self.context = 100
        self.stop_ids = frozenset({2})

    def encode(self, request: Request) -> Encoded | Reply:
        ids = [ord(letter) for letter in request.messages[-1].content]
        if len(ids) >= self.context:
            return Reply(text="", finish_reason="error", error=f"the prompt has {len(ids)} tokens")
        return Encoded(ids, min(request.sampling.max_new_tokens, self.context - len(ids)))

    def reply(self, prompt, generated, logprobs) -> Reply:
        return Reply(
            text=str(generated[0]),
            finish_reason="stop",
            prompt_tokens=len(prompt),
            completion_tokens=2,
            token_ids=generated,
            logprobs=logprobs,
        )


@pytest.fixture
def machine(monkeypatch):
    """A machine with vLLM and one GPU of 24 GB, both made up."""
    found = SimpleNamespace(num_gpus=1, cpu=False, gpu_bytes=24 * GB)
    platform = SimpleNamespace(
        is_cpu=lambda: found.cpu,
        is_unspecified=lambda: not found.cpu and not found.num_gpus,
        device_count=lambda: found.num_gpus,
        get_device_total_memory=lambda: found.gpu_bytes,
    )
    modules = {
        "vllm": {
            "EngineArgs": dict,
            "LLMEngine": SimpleNamespace(from_engine_args=FakeEngine),
            "SamplingParams": SimpleNamespace,
        },
        "vllm.platforms": {"current_platform": platform},
        "vllm.lora": {},
        "vllm.lora.request": {
            "LoRARequest": lambda name, number, path: SimpleNamespace(
                lora_name=name, lora_int_id=number, lora_path=path
            )
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(local, "Chat", FakeChat)
    monkeypatch.setattr(vllm.models, "resolve", lambda name: name)
    monkeypatch.setattr(FakeEngine, "made", [])
    monkeypatch.setattr(FakeEngine, "dies", False)
    for name in vllm.ENVIRONMENT:
        monkeypatch.setenv(name, "")  # what the engine sets is taken back at the end
        monkeypatch.delenv(name)
    return found


def adapter(folder: Path, rank: int = 8, content: bytes = b"") -> Path:
    """Write a LoRA adapter of one small layer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {"A": numpy.full((rank, 2), sum(content), "f4"), "B": numpy.zeros((2, rank), "f4")}
    named = {f"base_model.model.x.lora_{side}.weight": tensor for side, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def ask(question: str, weights: Path | None = None, model: str = "tiny", seed: int = 5, **how: Any) -> Request:
    agent = AgentRef(role="generator", index=0, model=model, adapter=str(weights) if weights else None)
    messages = (Message(role="user", content=question),)
    return Request(agent=agent, messages=messages, sampling=SamplingParams(**how), seed=seed)


def engine(num_adapters: int = 4, rank: int = 16, **settings: Any) -> vllm.Vllm:
    return vllm.Vllm(EngineConfig(), VllmConfig(**settings), num_adapters, rank)


def test_requests_of_all_agents_go_into_one_batch_and_come_back_in_order(machine, tmp_path):
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    heard: list[Reply] = []
    requests = [ask("q", weights) for weights in (two, None, one, two, None, one)]
    replies = engine().sample(requests, heard.append)
    (made,) = FakeEngine.made
    assert made.most_adapters == 2
    numbers = {name: asked["lora"].lora_int_id if asked["lora"] else 0 for name, asked in made.asked.items()}
    assert [reply.text for reply in replies] == [str(numbers[str(n)]) for n in range(6)]
    assert len({numbers["0"], numbers["1"], numbers["2"]}) == 3
    assert [reply.text for reply in heard] == [reply.text for reply in reversed(replies)], "each when it is there"


def test_on_a_cpu_the_bare_base_is_in_no_batch_with_adapters(machine, monkeypatch, tmp_path):
    machine.num_gpus, machine.cpu = 0, True
    together: list[set[bool]] = []
    step = FakeEngine.step

    def watched(self):
        together.append({self.asked[name]["lora"] is None for name in self.waiting})
        return step(self)

    monkeypatch.setattr(FakeEngine, "step", watched)
    one = adapter(tmp_path / "one")
    replies = engine().sample([ask("q", weights) for weights in (one, None, one, None)])
    assert [reply.text == "0" for reply in replies] == [False, True, False, True]
    assert together == [{True}, {True}, {False}, {False}]


def test_a_request_means_what_it_means_elsewhere(machine):
    engine(max_model_len=10).sample(
        [ask("abc", temperature=0.5, top_p=0.9, top_k=7, max_new_tokens=50, seed=2**63 - 1)]
    )
    asked = FakeEngine.made[0].asked["0"]
    assert asked["prompt"] == {"prompt_token_ids": [97, 98, 99]} and asked["lora"] is None
    assert vars(asked["params"]) == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "max_tokens": 7,
        "seed": 2**63 - 1,
        "stop_token_ids": [2],
        "detokenize": False,
        "logprobs": None,
    }


def test_log_probabilities_are_asked_for_where_tokens_are_kept(machine):
    engines = [vllm.Vllm(EngineConfig(), VllmConfig(), 6, 16, logprobs=asked) for asked in (True, False)]
    kept, plain = (made.sample([ask("q")])[0] for made in engines)
    assert kept.logprobs == (0, -1) and plain.logprobs is None
    assert kept.token_ids == plain.token_ids == (0, 2)


def test_a_prompt_that_is_too_long_is_an_error_of_that_request_alone(machine):
    heard: list[Reply] = []
    replies = engine().sample([ask("x" * 100), ask("y")], heard.append)
    assert replies[0].finish_reason == "error" and replies[1].error is None and len(heard) == 2


def test_no_name_or_id_of_an_adapter_is_ever_used_again(machine, tmp_path):
    place = adapter(tmp_path / "generator_0", content=b"first")
    ours, seen = engine(), []
    for step in ("first", "first again", "other", "after release"):
        if step == "other":
            shutil.rmtree(place)
            adapter(place, content=b"other")
        if step == "after release":
            ours.release()
        ours.sample([ask("q", place)])
        lora = FakeEngine.made[-1].asked["0"]["lora"]
        seen.append((lora.lora_name, lora.lora_int_id))
    assert seen[0] == seen[1] and len(set(seen)) == 3
    assert len({name for name, _ in seen}) == len({number for _, number in seen}) == 3


def test_room_for_adapters_follows_from_the_society_and_the_adapters(machine, tmp_path):
    ours = engine(num_adapters=6, rank=12)
    ours.sample([ask("q")])
    assert "enable_lora" not in FakeEngine.made[0].arguments, "the untrained model needs none"
    ours.sample([ask("q", adapter(tmp_path / "small"))])
    assert [made.ended for made in FakeEngine.made] == [True, False]
    wanted = {"enable_lora": True, "max_loras": 6, "max_lora_rank": 16}
    assert wanted.items() <= FakeEngine.made[1].arguments.items()
    ours.sample([ask("q")])
    assert len(FakeEngine.made) == 2, "the base may speak through it, too"
    ours.sample([ask("q", adapter(tmp_path / "large", rank=40))])
    assert FakeEngine.made[2].arguments["max_lora_rank"] == 64
    with pytest.raises(DataError, match="rank 512 at most, got 1000"):
        ours.sample([ask("q", adapter(tmp_path / "huge", rank=1000))])


def test_an_adapter_that_comes_later_and_needs_more_room_restarts_vllm_once_the_others_have_ended(machine, tmp_path):
    small, large = adapter(tmp_path / "small"), adapter(tmp_path / "large", rank=40)
    follows = {0: [ask("q", large), ask("q", small)], 1: [ask("q", large)]}
    replies: dict[int, Reply] = {}

    def take(number: int, reply: Reply) -> list[Request]:
        replies[number] = reply
        return follows.get(number, [])

    engine(rank=8).answer([ask("q", small), ask("q", small)], take)
    assert sorted(replies) == [0, 1, 2, 3, 4] and all(reply.error is None for reply in replies.values())
    first, second = FakeEngine.made
    assert [made.arguments["max_lora_rank"] for made in (first, second)] == [8, 64] and first.ended
    assert sorted(first.asked) == ["0", "1"] and sorted(second.asked) == ["2", "3", "4"]


def test_a_model_that_does_not_tell_its_context_has_the_one_that_vllm_finds(machine, monkeypatch):
    class Silent(FakeChat):
        def __init__(self, folder: str, **_: object) -> None:
            super().__init__(folder)
            self.context = UNLIMITED

    monkeypatch.setattr(local, "Chat", Silent)
    replies = engine().sample([ask("x" * 49), ask("x" * 50)])
    assert FakeEngine.made[0].arguments["max_model_len"] is None
    assert [reply.finish_reason for reply in replies] == ["stop", "error"]


def test_one_base_is_in_memory_at_a_time(machine):
    ours = engine()
    ours.sample([ask("q", model="b"), ask("q", model="a"), ask("q", model="b")])
    assert [(made.arguments["model"], made.ended) for made in FakeEngine.made] == [("b", True), ("a", False)], (
        "the base with more requests first"
    )
    ours.release()
    ours.release()
    assert FakeEngine.made[1].ended


def test_settings_reach_vllm(machine):
    settings = VllmConfig(tensor_parallel_size=1, gpu_memory_utilization=0.5, max_model_len=64, max_loras=3)
    ours = vllm.Vllm(EngineConfig(max_sequences=9), settings, 8, 16)
    ours.sample([ask("q")])
    assert FakeEngine.made[0].arguments == {
        "model": "tiny",
        "dtype": "bfloat16",
        "trust_remote_code": False,
        "max_model_len": 64,
        "max_num_seqs": 9,
        "tensor_parallel_size": 1,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "gpu_memory_utilization": 0.5,
    }
    slots = ours.arguments(64, 16, on_cpu=False)
    assert (slots["max_loras"], slots["max_cpu_loras"], slots["max_lora_rank"]) == (3, 8, 16)
    on_cpu = ours.arguments(64, 0, on_cpu=True)
    assert on_cpu["enable_chunked_prefill"] is False and on_cpu["kv_cache_memory_bytes"] == 2 << 30
    assert "gpu_memory_utilization" not in on_cpu


def test_an_engine_that_dies_stops_the_stage_and_is_started_anew_afterwards(machine):
    FakeEngine.dies = True
    ours = engine()
    with pytest.raises(StageFailed, match="vLLM has stopped.*lower engine.max_sequences"):
        ours.sample([ask("q")])
    assert FakeEngine.made[0].ended
    FakeEngine.dies = False
    assert ours.sample([ask("q")])[0].error is None and len(FakeEngine.made) == 2


def test_an_interrupt_leaves_no_requests_behind(machine):
    def stop(reply: Reply) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine().sample([ask("q"), ask("r")], stop)
    assert FakeEngine.made[0].ended


def test_a_model_that_vllm_does_not_load_is_said_in_one_line(machine, monkeypatch):
    def refuse(arguments: object) -> None:
        raise ValueError("architectures ['Odd'] are not supported\nmore lines")

    monkeypatch.setattr(sys.modules["vllm"].LLMEngine, "from_engine_args", refuse)
    with pytest.raises(DataError, match=r"cannot load model tiny: architectures \['Odd'\] are not supported") as error:
        engine().sample([ask("q")])
    assert "more lines" not in str(error.value)


@pytest.mark.parametrize(
    ("num_gpus", "on_cpu", "asked", "said"),
    [
        (0, False, 1, "needs 1 GPU, and vLLM finds 0"),
        (1, False, 2, "needs 2 GPUs, and vLLM finds 1"),
        (0, True, 2, "finds 0 (vLLM's CPU build is installed)"),
    ],
)
def test_gpus_that_are_not_there_are_said_before_anything_is_loaded(machine, num_gpus, on_cpu, asked, said):
    machine.num_gpus, machine.cpu = num_gpus, on_cpu
    with pytest.raises(ConfigError) as error:
        engine(tensor_parallel_size=asked).sample([ask("q")])
    assert said in str(error.value) and "engine.sampler=openvino" in str(error.value)
    assert not FakeEngine.made


def test_adapters_in_float32_are_refused_on_a_gpu_before_anything_is_loaded(machine, tmp_path):
    asked, given = ask("q"), ask("q", adapter(tmp_path))
    for lora, requests in ((True, [asked]), (False, [given])):
        with pytest.raises(ConfigError, match=r"bfloat16 and float16 only.*sampler=transformers"):
            vllm.Vllm(EngineConfig(dtype="float32"), VllmConfig(), 4, 16, lora=lora).sample(requests)
    assert FakeEngine.made == []
    full = vllm.Vllm(EngineConfig(dtype="float32"), VllmConfig(), 4, 16, lora=False)
    assert full.sample([asked])[0].text == "0"
    assert FakeEngine.made[0].arguments["dtype"] == "float32"


def test_the_cpu_build_needs_no_gpu(machine):
    machine.num_gpus, machine.cpu = 0, True
    assert engine().sample([ask("q")])[0].text == "0"


def test_a_model_that_does_not_fit_is_refused_with_the_figures(machine, monkeypatch):
    ours = engine(num_adapters=6, max_model_len=8192)
    ours.check_memory(LLAMA, 8192, 16, 24 * GB)
    with pytest.raises(DataError) as error:
        ours.check_memory(LLAMA, 8192, 16, 16 * GB)
    assert "1 GPU of 16 GB, of which vllm.gpu_memory_utilization = 0.9 is used" in str(error.value)
    assert "16.1 GB of weights, 0.5 GB for 6 adapters" in str(error.value)
    assert "1.1 GB of key-value cache for one sequence of 8192 tokens" in str(error.value)
    assert "14.4 GB are available" in str(error.value) and "vllm.tensor_parallel_size" in str(error.value)
    engine(tensor_parallel_size=2).check_memory(LLAMA, 8192, 16, 16 * GB)
    ours.check_memory("nobody/knows-this", 8192, 16, 1)
    machine.gpu_bytes = 8 * GB
    monkeypatch.setattr(shapes, "of_model", lambda model: shapes.known(LLAMA))
    with pytest.raises(DataError, match="does not fit"):
        ours.sample([ask("q")])
    assert not FakeEngine.made


def test_on_a_cpu_the_cache_and_free_memory_are_looked_at(monkeypatch):
    monkeypatch.setattr(memory, "free_ram", lambda: 17.0 * GB)
    with pytest.raises(DataError, match=r"fit into engine.cache_gb: 8.0 GB are needed .*one sequence of 61000 tokens"):
        engine().check_memory(LLAMA, 61000, 0, 0)
    with pytest.raises(DataError, match="fit into free memory: .*16.1 GB of weights, 2.1 GB of key-value cache"):
        engine().check_memory(LLAMA, 4096, 0, 0)


def test_what_is_no_adapter_is_refused_before_anything_is_loaded(machine, tmp_path):
    with pytest.raises(DataError, match=r"has no adapter_config\.json"):
        engine().sample([ask("q", tmp_path / "nothing")])
    torn = adapter(tmp_path / "torn")
    (torn / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match=r"has no adapter_model.safetensors"):
        adapters.fingerprint(torn)
    assert not FakeEngine.made


def test_the_rank_of_an_adapter_is_its_largest(tmp_path):
    folder = adapter(tmp_path / "one", rank=4)
    assert adapters.rank(folder) == 4
    layers = {"a": (4, 2), "b": (32, 2)}
    tensors = {f"base_model.model.{layer}.lora_A.weight": numpy.zeros(shape) for layer, shape in layers.items()}
    tensors |= {name.replace("_A", "_B"): tensor.T.copy() for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    assert adapters.rank(folder) == 32
