"""Adapters in the real engines: as PEFT alone on a fresh base, or refused; and the base is the same afterwards."""

from pathlib import Path

import adapters as make_
import pytest

from maft import models
from maft.config import EngineConfig, RunConfig, TaskConfig
from maft.engines import make_sampler
from maft.errors import DataError
from maft.models import adapters, probe
from maft.records import AgentRef, Message, Request, SamplingParams
from maft.samplers.base import Sampler
from maft.samplers.chat import Chat

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

QUESTIONS = ("What is 7 * 8?", "What is 3 + 4?", "Name a colour.", "What is 9 - 5?", "Who wrote Hamlet?", "Count.")
KINDS = {"plain": {}, "zero": {"strength": 0.0}, **make_.PATTERNS}


@pytest.fixture(scope="module", params=["openvino", "transformers"])
def sampler(request):
    engine = EngineConfig(sampler=request.param, dtype="float32", cache_gb=1)
    with_model = make_sampler(RunConfig(task=TaskConfig(name="arithmetic"), engine=engine))
    yield with_model
    with_model.release()


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    home = tmp_path_factory.mktemp("adapters")
    return {kind: make_.make(home / kind, tiny, **{"strength": 3.0, **how}) for kind, how in KINDS.items()}


def ask(question: str, model: str, adapter: Path | None, tokens: int = 3) -> Request:
    return Request(
        agent=AgentRef(role="generator", index=0, model=model, adapter=str(adapter) if adapter else None),
        messages=(Message(role="user", content=question),),
        sampling=SamplingParams(temperature=0, max_new_tokens=tokens),
        seed=0,
    )


def texts(sampler: Sampler, model: str, adapter: Path | None, tokens: int = 3) -> list[str]:
    return [reply.text for reply in sampler.sample([ask(question, model, adapter, tokens) for question in QUESTIONS])]


def by_peft(model: str, adapter: Path, tokens: int = 3) -> list[str]:
    """Return greedy replies of PEFT alone on a fresh base."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    chat = Chat(model)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter).eval()
    replies = []
    for question in QUESTIONS:
        ids = torch.tensor([chat.encode(ask(question, model, adapter)).token_ids])
        out = peft.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                            eos_token_id=sorted(chat.stop_ids), pad_token_id=min(chat.stop_ids))  # fmt: skip
        replies.append(chat.reply(ids[0].tolist(), out[0, ids.shape[1] :].tolist()).text)
    return replies


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_that_of_peft_alone(sampler, made, tiny, kind):
    base, expected = texts(sampler, tiny, None), by_peft(tiny, made[kind])
    agreeing = sum(a == b for a, b in zip(texts(sampler, tiny, made[kind]), expected, strict=True))
    assert agreeing >= 5, "a random model may turn at a rounding of openvino's key-value cache"
    assert sum(a == b for a, b in zip(base, expected, strict=True)) <= 2 or kind == "zero"
    assert texts(sampler, tiny, None) == base


def test_the_packaged_model_speaks_with_patterns_as_peft_does(tmp_path):
    model = models.resolve(models.PACKAGED)
    folder = make_.make(tmp_path / "both", model, **make_.PATTERNS["both_rslora"])
    engine = EngineConfig(sampler="openvino", dtype="float32")
    sampler = make_sampler(RunConfig(task=TaskConfig(name="arithmetic"), engine=engine))
    assert texts(sampler, model, folder, 12) == by_peft(model, folder, 12) != texts(sampler, model, None, 12)
    sampler.release()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changes_its_base_is_refused_and_the_base_stays(sampler, made, tiny, tmp_path, init):
    base = texts(sampler, tiny, None)
    folder = make_.make(tmp_path / "changing", tiny, init_lora_weights=init)
    with pytest.raises(DataError, match="has init_lora_weights"):
        texts(sampler, tiny, folder)
    assert texts(sampler, tiny, None) == base


def test_what_gets_past_the_settings_is_caught_by_the_probe(sampler, tiny, tmp_path, monkeypatch):
    """An engine that ignores an adapter, or a setting that nobody has heard of."""
    base = texts(sampler, tiny, None)
    monkeypatch.setattr(adapters, "_refuse_settings", lambda folder, config: None)
    monkeypatch.setattr(adapters, "_refuse_other_layers", lambda *_, **__: None)
    changing = make_.make(tmp_path / "changing", tiny, init_lora_weights="pissa", strength=3.0)
    renamed = make_.rename(make_.make(tmp_path / "renamed", tiny, strength=3.0), "model.layers", "model.blocks")
    expected = probe.expected(make_.make(tmp_path / "right", tiny, strength=3.0), tiny, "tiny")
    (renamed / "training.json").write_text(f'{{"probe": {expected.to_json()}}}')
    for folder in (changing, renamed):
        with pytest.raises(DataError, match="does not work here|changes the weights of its base"):
            texts(sampler, tiny, folder)
        sampler.release()
    assert texts(sampler, tiny, None) == base
