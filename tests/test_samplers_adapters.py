"""Adapters in the real engines: as PEFT alone on a fresh base, or refused; and the base is the same afterwards."""

import shutil
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
    engine = EngineConfig(sampler=request.param, dtype="float32", cache_gb=1, num_threads=1)
    with_model = make_sampler(RunConfig(task=TaskConfig(name="arithmetic"), engine=engine))
    yield with_model
    with_model.release()


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    home = tmp_path_factory.mktemp("adapters")
    return {
        kind: make_.make(home / kind, tiny, probed=kind != "rslora", **{"strength": 3.0, **how})
        for kind, how in KINDS.items()
    }


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


TOKENS = 8
"""Length of the packaged model's replies."""


@pytest.fixture(scope="module")
def of_packaged(tmp_path_factory):
    """Two kinds of adapter of the packaged model, and what it says with them by PEFT alone."""
    home, model = tmp_path_factory.mktemp("packaged"), models.resolve(models.PACKAGED)
    folders = []
    for number, kind in enumerate(["both_rslora", "some_layers"]):
        how = {"layers_to_transform": [1, 14]} if kind == "some_layers" else {}
        folders.append(make_.make(home / kind, model, **make_.PATTERNS[kind] | how, seed=number, probed=True))
    return {folder: by_peft(model, folder, TOKENS) for folder in folders}


@pytest.mark.parametrize("name", ["openvino", "transformers"])
def test_the_packaged_model_speaks_as_peft_does_with_several_kinds_of_adapter(of_packaged, name):
    model = models.resolve(models.PACKAGED)
    engine = EngineConfig(sampler=name, dtype="float32", num_threads=1)
    sampler = make_sampler(RunConfig(task=TaskConfig(name="arithmetic"), engine=engine))
    base = texts(sampler, model, None, TOKENS)
    for folder, expected in of_packaged.items():
        spoken = texts(sampler, model, folder, TOKENS)
        agreeing = sum(a == b for a, b in zip(spoken, expected, strict=True))
        assert agreeing >= (5 if name == "openvino" else 6), f"{folder}: its key-value cache may round one text apart"
        assert spoken != base, folder
    assert texts(sampler, model, None, TOKENS) == base
    sampler.release()


def small_effect(folder: Path, model: str, seed: int) -> Path:
    """Make an adapter that changes the log-likelihoods of the probe's text by 0.08, as short trainings do."""
    modules = ["q_proj", "v_proj", "o_proj", "up_proj"]
    return make_.make(folder, model, seed=seed, strength=0.155, probed=True, target_modules=modules)


@pytest.fixture(scope="module")
def small_effects(tmp_path_factory):
    """An adapter, what PEFT says of it, and others that an engine may take it for."""
    home, model = tmp_path_factory.mktemp("small"), models.resolve(models.PACKAGED)
    own, another = (small_effect(home / f"{seed}", model, seed) for seed in (1, 2))
    half, nothing = (Path(shutil.copytree(own, home / name)) for name in ("half", "nothing"))
    make_.settings(half, lora_alpha=4)
    make_.settings(nothing, lora_alpha=1e-6)
    num_tokens = len(probe.token_ids(Chat(model).tokenizer))
    return probe.recorded(own, num_tokens), own, another, half, nothing


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["openvino", "transformers"])
def test_the_probe_of_the_packaged_model_tells_what_an_adapter_of_small_effect_was_taken_for(
    small_effects, name, dtype
):
    """The right adapter speaks; one that is ignored, another agent's, and half the scale, the most alike, are refused."""
    model, (right, own, another, half, nothing) = models.resolve(models.PACKAGED), small_effects
    effect = probe._size(probe._differences(right.adapted, right.base))
    assert 0.04 < effect < 0.12
    threads = 1 if dtype == "float32" else None  # one thread of openvino computes in float32 only
    engine = EngineConfig(sampler=name, dtype=dtype, num_threads=threads)
    sampler = make_sampler(RunConfig(task=TaskConfig(name="arithmetic"), engine=engine))
    for folder in (own, another, half, nothing):
        (folder / "training.json").write_text(f'{{"probe": {right.to_json()}}}')
    texts(sampler, model, own, 1)
    for wrong in (another, half, nothing) if dtype == "float32" else (half,):
        with pytest.raises(DataError, match="does not work here as it does in PEFT"):
            texts(sampler, model, wrong, 1)
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
    right = make_.make(tmp_path / "right", tiny, strength=3.0, probed=True)
    expected = probe.expected(right, tiny, "tiny", len(probe.token_ids(Chat(tiny).tokenizer)))
    (renamed / "training.json").write_text(f'{{"probe": {expected.to_json()}}}')
    for folder in (changing, renamed):
        with pytest.raises(DataError, match="does not work here|changes the weights of its base"):
            texts(sampler, tiny, folder)
        sampler.release()
    assert texts(sampler, tiny, None) == base


def test_after_a_refusal_the_base_and_other_adapters_are_right(sampler, made, tiny, tmp_path):
    """The refused adapter is loaded no longer, and its name in the engine means nothing to the next one."""
    base, expected = texts(sampler, tiny, None), by_peft(tiny, made["plain"])
    sampler.release()
    wrong = make_.make(tmp_path / "wrong", tiny, seed=5, strength=3.0, lora_alpha=32)
    num_tokens = len(probe.token_ids(Chat(tiny).tokenizer))
    other = probe.expected(made["plain"], tiny, "tiny", num_tokens)
    (wrong / "training.json").write_text(f'{{"probe": {other.to_json()}}}')
    for _ in range(2):
        with pytest.raises(DataError, match="does not work here"):
            texts(sampler, tiny, wrong)
        assert texts(sampler, tiny, None) == base
        agreeing = sum(a == b for a, b in zip(texts(sampler, tiny, made["plain"]), expected, strict=True))
        assert agreeing >= 5
