"""Mixed batches in slots: equal to plain transformers with PEFT, whoever else is in the batch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maft.config import EngineConfig
from maft.records import AgentRef, Message, Request, SamplingParams
from maft.samplers.chat import Encoded
from maft.samplers.local import Job

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the libraries underneath

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
GREEDY = SamplingParams(temperature=0, max_new_tokens=24)
DRAWN = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=24)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A model of the family, with heads wide enough for a GPU's matrix units."""
    from tiny import build

    return build(tmp_path_factory.mktemp("model"), hidden_size=64, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory) -> list[str]:
    """Adapters of different ranks that change what the model says."""
    return [adapter(model, tmp_path_factory.mktemp(f"adapter_{n}"), rank, n) for n, rank in enumerate((8, 4, 20))]


def adapter(model: str, folder: Path, rank: int, seed: int, scale: float = 2, **more) -> str:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, **more)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.mul_(scale)
    wrapped.save_pretrained(folder)
    return str(folder)


def needs(where: str) -> None:
    import torch

    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")


def sampler(where: str, monkeypatch, **settings):
    """Return the engine with its slots in use, on a device."""
    from maft.samplers import transformers

    needs(where)
    monkeypatch.setattr(transformers, "device", lambda: where)
    engine = transformers.Transformers(EngineConfig(dtype="float32", **settings))
    engine.devices = (where,)
    return engine


def plain():
    """Return the engine without slots."""
    from maft.samplers.transformers import Transformers

    engine = Transformers(EngineConfig(dtype="float32"))
    engine.devices = ()
    return engine


def ask(model: str, number: int, adapter: str | None, sampling: SamplingParams = GREEDY) -> Request:
    agent = AgentRef(role="generator", index=0, model=model, adapter=adapter)
    text = f"What is {number} + 3? " * (1 + number % 3)
    return Request(agent=agent, messages=(Message(role="user", content=text),), sampling=sampling, seed=number)


def mixed(model: str, adapters: list[str], sampling: SamplingParams = GREEDY, count: int = 12) -> list[Request]:
    voices = [None, *adapters]
    return [ask(model, number, voices[number % len(voices)], sampling) for number in range(count)]


def ids(replies):
    return [reply.token_ids for reply in replies]


@pytest.mark.parametrize("where", DEVICES)
def test_agents_in_one_batch_say_what_each_says_with_plain_transformers(where, model, adapters, monkeypatch):
    requests = mixed(model, adapters)
    engine = sampler(where, monkeypatch)
    replies = engine.sample(requests)
    assert engine._fused is not None, "the probe has passed"
    by_plain = plain().sample(requests)
    assert len(set(ids(by_plain))) == len(by_plain)
    assert ids(replies) == ids(by_plain)
    for ours, theirs in zip(replies, by_plain, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=2e-3)
        assert (ours.text, ours.finish_reason, ours.prompt_tokens) == (
            theirs.text, theirs.finish_reason, theirs.prompt_tokens)  # fmt: skip


@pytest.mark.parametrize("where", DEVICES)
def test_a_reply_depends_on_its_seed_and_not_on_the_batch(where, model, adapters, monkeypatch):
    requests = mixed(model, adapters, DRAWN)
    together = ids(sampler(where, monkeypatch).sample(requests))
    assert ids(sampler(where, monkeypatch, max_sequences=5).sample(requests)) == together
    one_by_one = sampler(where, monkeypatch)
    assert [one_by_one.sample([request])[0].token_ids for request in requests[:4]] == together[:4]
    other = [request.model_copy(update={"seed": request.seed + 1000}) for request in requests]
    assert all(a != b for a, b in zip(ids(one_by_one.sample(other)), together, strict=True))


@pytest.mark.parametrize("where", DEVICES)
def test_adapters_that_come_later_are_heard_and_earlier_ones_are_left(where, model, adapters, monkeypatch):
    engine = sampler(where, monkeypatch)
    first, second, both = (
        [ask(model, n, adapters[n % 2]) for n in range(4) if n % 2 == 0],
        [ask(model, n, adapters[n % 2]) for n in range(4) if n % 2 == 1],
        [ask(model, n, adapters[n % 2]) for n in range(4)],
    )
    apart = [reply for pair in zip(engine.sample(first), engine.sample(second), strict=True) for reply in pair]
    assert ids(engine.sample(both)) == ids(apart)
    assert ids(engine.sample([ask(model, 0, None)])) != ids(apart[:1])


def test_agents_that_come_while_others_speak_are_heard(model, adapters, monkeypatch):
    requests, replies = mixed(model, adapters), {}
    left = requests[1:]

    def follow(number, reply):
        replies[number] = reply
        return [left.pop(0)] if left else []

    sampler("cpu", monkeypatch).answer(requests[:1], follow)
    assert ids(replies[n] for n in range(12)) == ids(sampler("cpu", monkeypatch).sample(requests))


def test_limits_and_sampling_are_each_request_own(model, monkeypatch):
    engine = sampler("cpu", monkeypatch)
    brief = SamplingParams(temperature=0, max_new_tokens=3)
    nearly_greedy = SamplingParams(temperature=1.0, top_k=1, max_new_tokens=9)
    replies = engine.sample([ask(model, 1, None, brief), ask(model, 1, None), ask(model, 1, None, nearly_greedy)])
    assert [len(reply.token_ids) for reply in replies] == [3, 24, 9]
    assert replies[1].token_ids[:9] == replies[2].token_ids and replies[0].token_ids == replies[1].token_ids[:3]
    assert replies[0].finish_reason == "length"


def test_a_wrong_mixture_is_found_by_the_probe_and_left_to_plain_transformers(model, adapters, monkeypatch, caplog):
    from maft.samplers import fused

    whole = fused.Linear.__call__
    monkeypatch.setattr(fused.Linear, "__call__", lambda self, x, agents, *more: whole(self, x, agents * 0, *more))
    engine = sampler("cpu", monkeypatch)
    requests = mixed(model, adapters[:2], count=6)
    replies = engine.sample(requests)
    assert engine._fused is None and "Using plain transformers" in caplog.text
    assert ids(replies) == ids(plain().sample(requests))


def test_an_adapter_of_small_effect_that_the_mixture_ignores_is_found(model, tmp_path, monkeypatch, caplog):
    from maft.samplers import fused

    whole = fused.Fused.adapt

    def without(self, loaded):
        zero = {who: {n: t * ("lora_A" in n) for n, t in tensors.items()} for who, tensors in loaded.items()}
        return whole(self, zero)

    small = adapter(model, tmp_path / "small", 4, 1, scale=0.3)
    monkeypatch.setattr(fused.Fused, "adapt", without)
    engine = sampler("cpu", monkeypatch)
    requests = mixed(model, [small], count=4)
    replies = engine.sample(requests)
    assert engine._fused is None and "0.00 times that" in caplog.text
    assert ids(replies) == ids(plain().sample(requests))


def test_adapters_with_ranks_of_their_own_by_layer_are_mixed_too(model, tmp_path, monkeypatch):
    odd = adapter(model, tmp_path / "odd", 4, 5, rank_pattern={"q_proj": 8})
    assert json.loads((tmp_path / "odd" / "adapter_config.json").read_text())["rank_pattern"]
    engine = sampler("cpu", monkeypatch)
    assert ids(engine.sample([ask(model, 1, odd)])) == ids(plain().sample([ask(model, 1, odd)]))
    assert engine._fused.numbers == {None: -1, Path(odd): 0}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_triton_computes_what_torch_does(dtype):
    import torch

    needs("cuda")
    check_operations(getattr(torch, dtype), "cuda")


def check_operations(dtype, where: str, vocabulary: int = 5000, rows: int = 40) -> None:
    """Compare Triton's kernels with plain torch."""
    import torch

    from maft.samplers import plain_ops, triton_ops

    torch.manual_seed(0)
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2

    def random(*shape: int):
        return torch.randn(*shape, device=where).to(dtype)

    def same(a, b) -> None:
        torch.testing.assert_close(a.float(), b.float(), atol=tolerance * float(b.abs().max() + 1), rtol=0)

    def both(call) -> None:
        for a, b in zip(call(triton_ops), call(plain_ops), strict=True):
            same(a, b)

    x, residual, weight, wide = random(5, 48), random(5, 48), random(48), random(5, 200)[:, :150]
    both(lambda ops: ops.add_norm(x, None, weight, 1e-5))
    both(lambda ops: ops.add_norm(x, residual, weight, 1e-5))
    both(lambda ops: [ops.silu_mul(wide, 70)])
    agents, up = torch.tensor([0, 2, -1, 1, 1], device=where), random(96, 70)
    outputs = random(5, 70 + 96)

    def adapted(ops):
        changed = outputs.clone()
        ops.add_adapters(changed, 70, up, agents, 16, 3)
        return [changed]

    if dtype == torch.float32 or where == "cuda":  # the interpreter has no products of bfloat16
        both(adapted)
    cos, sin = (random(80, 8).repeat(1, 2) for _ in range(2))
    positions, slots = torch.tensor([3, 79, 0], device=where), torch.tensor([2, 0, 3], device=where)
    qkv, cache, lengths = random(3, 160), random(2, 4, 2, 80, 16), torch.tensor([79, 0, 3, 0], device=where)

    def stored(ops):
        keys, values = cache.clone()
        return ops.rotate_and_store(qkv, cos, sin, positions, slots, keys, values, 6), keys, values

    def attended(ops):
        keys, values = cache.clone()
        return ops.attend(qkv, cos, sin, slots, keys, values, lengths, 6), keys, values

    both(stored)
    if dtype == torch.float32 or where == "cuda":
        both(attended)
    logits = random(rows, vocabulary) * 3
    likeliest = int(logits[0].argmax())
    cases = (
        (1, 0, 1.0),
        (1, 0, 0.9),
        (0.7, 0, 0.5),
        (0, 0, 0.9),
        (1, 7, 1.0),
        (1, 7, 0.8),
        (1.3, 50, 0.9),
        (1, 0, 1e-6),
    )
    for temperature, top_k, top_p in cases:
        ours, theirs = (new_state(where, rows, temperature, top_k, top_p) for _ in range(2))
        at, stops = torch.randperm(rows, device=where), torch.tensor([3, likeliest], device=where)
        triton_ops.advance(logits, at, ours, stops)
        plain_ops.advance(logits, at, theirs, stops)
        agree = ours["tokens"] == theirs["tokens"]  # the sums are taken in another order
        assert agree.float().mean() >= 0.95, (temperature, top_k, top_p)
        for name in ("steps", "lengths", "done"):
            assert (ours[name] == theirs[name])[agree].all(), name
        same(ours["logprobs"][agree], theirs["logprobs"][agree])


def new_state(where: str, rows: int, temperature: float, top_k: int, top_p: float) -> dict:
    import torch

    whole = torch.zeros(rows + 1, dtype=torch.long, device=where)
    state = {name: whole.clone() for name in ("tokens", "lengths")}
    state |= {"steps": whole + 1, "limits": whole + 4, "top_k": whole + top_k, "done": whole > 0}
    state |= {"temperature": whole + float(temperature), "top_p": whole + float(top_p)}
    state["draws"] = torch.rand(rows + 1, 5, generator=torch.Generator().manual_seed(3)).to(where)
    state |= {"logprobs": torch.zeros(rows + 1, 5, device=where), "output": whole[:, None].repeat(1, 5)}
    state["done"][7] = True
    return state


def test_draws_follow_the_distribution_after_temperature_top_k_and_top_p():
    import torch

    from maft.samplers.plain_ops import choose

    logits = torch.log(torch.tensor([0.05, 0.3, 0.15, 0.5])).repeat(4000, 1)
    draws = (torch.arange(4000) + 0.5) / 4000
    for temperature, top_k, top_p, wanted in (
        (1.0, 0, 1.0, [0.05, 0.3, 0.15, 0.5]),
        (1.0, 0, 0.7, [0, 0.375, 0, 0.625]),
        (1.0, 3, 1.0, [0, 0.316, 0.158, 0.526]),
        (0.5, 0, 1.0, [0.0068, 0.2466, 0.0616, 0.6849]),
        (0.0, 0, 1.0, [0.0, 0.0, 0.0, 1.0]),
    ):
        how = (torch.full((4000,), temperature), torch.full((4000,), top_k), torch.full((4000,), top_p))
        shares = torch.bincount(choose(logits, draws, *how), minlength=4) / 4000
        assert torch.allclose(shares, torch.tensor(wanted), atol=2e-3), (temperature, top_k, top_p, shares)


def test_a_slot_takes_the_next_request_when_its_reply_has_ended(model):
    import torch
    from transformers import AutoModelForCausalLM

    from maft.samplers import fused, plain_ops, slots

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    few = slots.Slots(fused.Fused(loaded, plain_ops), [257], count=2, length=64, steps=32)
    limits = (5, 1, 30, 2, 9)

    def job(number: int) -> Job:
        sampling = SamplingParams(temperature=0, max_new_tokens=limits[number])
        return Job(number, ask(model, number, None, sampling), Encoded([5, 6, 7 + number], limits[number]))

    waiting, lengths = [], {}

    def take(limit: int) -> list[Job]:
        return [waiting.pop() for _ in waiting[:limit]]

    for done, generated in few.run([job(0), job(1), job(2)], take, lambda *_: None):
        lengths[done.number] = len(generated.token_ids)
        if done.number == 0:
            waiting += [job(3), job(4)]
    assert lengths == dict(enumerate(limits))


def test_where_memory_runs_out_there_are_fewer_slots(model, monkeypatch):
    import torch

    from maft.samplers.slots import Slots

    whole, counts = Slots.run, []

    def run(self, *more):
        counts.append(self.count)
        if self.count > 2:
            raise torch.OutOfMemoryError
        return whole(self, *more)

    requests = [ask(model, number, None) for number in range(5)]
    wanted = ids(sampler("cpu", monkeypatch).sample(requests))
    monkeypatch.setattr(Slots, "run", run)
    assert ids(sampler("cpu", monkeypatch).sample(requests)) == wanted
    assert counts[-1] <= 2 < counts[0]


def test_a_job_that_is_too_long_for_the_slots_gets_longer_ones(model, monkeypatch):
    engine = sampler("cpu", monkeypatch)
    long = ask(model, 1, None, SamplingParams(temperature=0, max_new_tokens=200))
    asked = []

    def follow(number, reply):
        asked.append((number, reply.completion_tokens))
        return [long] if number == 0 else []

    engine.answer([ask(model, 0, None)], follow)
    assert asked == [(0, 24), (1, 104)] and engine._slots.steps >= 200


def test_only_the_request_says_how_plain_transformers_draws(model, tmp_path):
    """A model's own generation_config.json may hold any field of transformers."""
    own = tmp_path / "model"
    shutil.copytree(model, own)
    fields = {
        "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1, "min_new_tokens": 9,
        "min_length": 60, "suppress_tokens": list(range(0, 200, 2)), "begin_suppress_tokens": list(range(1, 200, 2)),
        "bad_words_ids": [[n] for n in range(200)], "sequence_bias": [[[201], 50.0]], "exponential_decay_length_penalty": [1, 2.0],
        "forced_bos_token_id": 5, "forced_eos_token_id": 7, "num_beams": 3, "top_k": 2, "top_p": 0.3, "do_sample": True,
        "typical_p": 0.2, "min_p": 0.5, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01, "guidance_scale": 3.0,
        "renormalize_logits": True, "penalty_alpha": 0.5, "max_new_tokens": 2, "max_time": 1e-6, "temperature": 0.1,
        "remove_invalid_values": True, "return_dict_in_generate": True, "output_scores": True,
    }  # fmt: skip
    (own / "generation_config.json").write_text(json.dumps(fields))
    for sampling in (GREEDY, DRAWN):
        of_both = [plain().sample([ask(str(folder), n, None, sampling) for n in range(3)]) for folder in (model, own)]
        assert ids(of_both[0]) == ids(of_both[1])
        assert [reply.logprobs for reply in of_both[0]] == [reply.logprobs for reply in of_both[1]]


def test_where_memory_runs_out_batches_of_plain_transformers_are_halved(model, monkeypatch):
    import torch

    from maft.errors import TooLarge
    from maft.samplers.transformers import Transformers

    whole, room = Transformers._generate, [2]

    def generate(self, jobs):
        if len(jobs) > room[0]:
            raise torch.OutOfMemoryError
        return whole(self, jobs)

    requests = [ask(model, number, None) for number in range(7)]
    wanted = ids(plain().sample(requests))
    monkeypatch.setattr(Transformers, "_generate", generate)
    engine = plain()
    assert ids(engine.sample(requests)) == wanted and engine.max_sequences <= 2
    room[0] = 0
    with pytest.raises(TooLarge, match="no memory for one reply"):
        engine.sample(requests)


def test_triton_computes_what_torch_does_in_its_interpreter():
    pytest.importorskip("triton")
    code = (
        "import torch; from test_samplers_batched import check_operations\n"
        "for dtype in (torch.float32, torch.bfloat16): check_operations(dtype, 'cpu', vocabulary=700, rows=12)"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.torch
@pytest.mark.parametrize("logits", ["bf16", "fp32"])
def test_the_kernel_that_draws_compiles_for_a_gpu_where_there_is_none(logits):
    kinds = {"logits": f"*{logits}", "done": "*i1"}
    kinds |= dict.fromkeys(("draws", "logprobs", "temperature", "top_p"), "*fp32")
    kinds |= dict.fromkeys(("row_stride", "size", "width", "num_stops"), "i32")
    compile_for_a_gpu("_advance", "*i64", kinds, {"SHORT": logits == "bf16", "BLOCK": 8192}, 16)


@pytest.mark.torch
@pytest.mark.parametrize("width", [64, 128])
def test_the_kernel_of_attention_compiles_for_a_gpu_where_there_is_none(width):
    kinds = dict.fromkeys(("slots", "lengths"), "*i64") | {"scale": "fp32"}
    kinds |= dict.fromkeys(("row_stride", "slot_stride", "head_stride", "heads", "kv_heads", "group"), "i32")
    compile_for_a_gpu("_attend", "*bf16", kinds, {"WIDTH": width, "GROUP": 16, "BLOCK": 64}, 4)


def compile_for_a_gpu(name: str, pointers: str, kinds: dict, constants: dict, warps: int) -> None:
    """Compile a kernel for an H100; arguments are pointers unless `kinds` says otherwise."""
    pytest.importorskip("triton")
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from maft.samplers import triton_ops

    kernel = getattr(triton_ops, name)
    kinds = dict.fromkeys(kernel.arg_names, pointers) | kinds | dict.fromkeys(constants, "constexpr")
    made = build(ASTSource(kernel, kinds, constants), target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert made.asm["cubin"]
