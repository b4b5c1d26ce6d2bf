"""Which engine is taken on which machine."""

from importlib.util import find_spec

import pytest

from maft import engines
from maft.config import EngineConfig, RunConfig, TaskConfig
from maft.engines import choose
from maft.errors import MissingExtra

HF = {"torch", "transformers"}


@pytest.mark.parametrize(
    ("packages", "device", "wanted"),
    [
        (HF | {"vllm"}, "cuda", "vllm"),
        (HF | {"vllm", "openvino_genai"}, "cuda", "vllm"),
        (HF | {"openvino_genai"}, "cuda", "transformers"),
        (HF | {"openvino_genai"}, "cpu", "openvino"),
        (HF | {"vllm", "openvino_genai"}, "cpu", "openvino"),
        (HF | {"vllm"}, "cpu", "transformers"),
        (HF | {"vllm", "openvino_genai"}, "mps", "transformers"),
    ],
)
def test_the_machine_and_what_is_installed_decide(packages, device, wanted):
    assert choose(packages.__contains__, lambda: device) == wanted


@pytest.mark.parametrize("packages", [set(), HF, {"openvino_genai"}, {"vllm"}])
def test_the_device_is_not_asked_for_where_it_does_not_matter(packages):
    def slow() -> str:
        raise AssertionError("importing torch takes seconds")

    assert choose(packages.__contains__, slow) == "transformers"


def test_looking_whether_an_engine_is_installed_imports_nothing(monkeypatch):
    looked: list[str] = []
    monkeypatch.setattr(engines, "find_spec", lambda name: looked.append(name) or find_spec(name))
    assert engines.installed("json") and not engines.installed("no_such_engine")
    assert looked == ["json", "no_such_engine"]


@pytest.mark.parametrize(
    ("sampler", "extra"), [("vllm", "vllm"), ("openvino", "openvino"), ("transformers", "hf"), ("openai", "openai")]
)
def test_an_engine_that_is_not_installed_says_how_to_install_it(monkeypatch, sampler, extra):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    config = RunConfig(task=TaskConfig(name="arithmetic"), engine=EngineConfig(sampler=sampler))
    with pytest.raises(MissingExtra, match=rf"engine.sampler={sampler} .*\[{extra}\]"):
        engines.make_sampler(config)


def test_what_an_engine_holds_is_freed_at_the_end_and_after_an_error(monkeypatch):
    released: list[str] = []

    class Engine:
        def release(self) -> None:
            released.append("free")

    monkeypatch.setattr(engines, "make_sampler", lambda config: Engine())
    config = RunConfig(task=TaskConfig(name="arithmetic"))
    with engines.opened(config):
        assert not released
    with pytest.raises(KeyboardInterrupt), engines.opened(config):
        raise KeyboardInterrupt
    assert released == ["free", "free"]
