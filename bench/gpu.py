"""What one GPU does, part by part; each prints JSON as its last line. It runs on a CPU too, with --quick.

    python -m bench.gpu card|prepare|released|plain|batched|vllm|shapes|steps [--quick]

`released` is the manner of the paper's released code: float32, one request at a time, 8 prompts. `plain` is maft's
engine with transformers' own `generate`, in batches of 64. `batched` is the engine that maft uses on CUDA without
vLLM: replies in slots, agents in one batch. `vllm` is vLLM, which must be installed. Prompts and limits are the same
for all: one-digit sums in the recipe's words, temperature 1, top-p 0.9, at most 128 tokens. The adapters are random
and small, so that replies stay about as long.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maft import models, seeds
from maft.config import EngineConfig, VllmConfig
from maft.records import AgentRef, Message, Reply, Request, SamplingParams
from maft.samplers.base import Sampler

MODEL = "smollm2-135m-instruct"
QUICK = "--quick" in sys.argv
SAMPLING = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=4 if QUICK else 128)
AGENTS = 2 if QUICK else 6
COUNT = 4 if QUICK else 1000

QWEN_1_5B = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}  # fmt: skip
QWEN_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}  # fmt: skip
TINY = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 1000, "tie_word_embeddings": True}  # fmt: skip


def on_gpu() -> bool:
    """Say whether there is a GPU."""
    import torch

    return bool(torch.cuda.is_available())


def synchronize() -> None:
    """Wait for the GPU."""
    import torch

    if on_gpu():
        torch.cuda.synchronize()


@contextmanager
def timed(figures: dict[str, Any], name: str) -> Iterator[None]:
    """Note the seconds that a block takes."""
    synchronize()
    start = time.perf_counter()
    yield
    synchronize()
    figures[name] = time.perf_counter() - start


def requests(count: int, adapters: list[str | None]) -> list[Request]:
    """Return requests in turns from agents with these adapters."""
    made = []
    for number in range(count):
        rng = seeds.rng("gpu", number)
        question = f"What is {rng.randint(1, 9)} {rng.choice('+-*')} {rng.randint(1, 9)}?"
        text = f"{question} Give the final answer as \\boxed{{answer}}. Explain each step before it."
        agent = AgentRef(role="generator", index=0, model=MODEL, adapter=adapters[number % len(adapters)])
        made.append(
            Request(agent=agent, messages=(Message(role="user", content=text),), sampling=SAMPLING, seed=number)
        )
    return made


def jobs(prompts: list[list[int]], limit: int, adapters: list[str | None]) -> list[Any]:
    """Return jobs with these prompts, in turns from agents with these adapters."""
    from maft.samplers.chat import Encoded
    from maft.samplers.local import Job

    sampling = SAMPLING.model_copy(update={"max_new_tokens": limit})
    made = []
    for number, ids in enumerate(prompts):
        agent = AgentRef(role="generator", index=0, model=MODEL, adapter=adapters[number % len(adapters)])
        request = Request(agent=agent, messages=(Message(role="user", content="x"),), sampling=sampling, seed=number)
        made.append(Job(number, request, Encoded(ids, limit)))
    return made


def random_adapters(folder: Path, count: int, model: Any, rank: int = 16) -> list[str]:
    """Write adapters that change a model a little."""
    import torch
    from safetensors.torch import save_file

    from maft.samplers.fused import PARTS as LINEARS

    made = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for layer, block in enumerate(model.model.layers):
            for part, *names in LINEARS:
                for name in names:
                    weight = getattr(getattr(block, part), name).weight
                    key = f"base_model.model.model.layers.{layer}.{part}.{name}"
                    down = torch.randn(rank, weight.shape[1], generator=generator) / math.sqrt(weight.shape[1])
                    up = torch.randn(weight.shape[0], rank, generator=generator) * 0.003
                    tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = down, up
        home = folder / f"adapter_{number}"
        home.mkdir(parents=True)
        save_file(tensors, home / "adapter_model.safetensors")
        modules = sorted({name for _, *names in LINEARS for name in names})
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules,
                    "task_type": "CAUSAL_LM",
                    "base_model_name_or_path": MODEL, "bias": "none", "lora_dropout": 0.0}  # fmt: skip
        (home / "adapter_config.json").write_text(json.dumps(settings))
        made.append(str(home))
    return made


def rates(replies: list[Reply], seconds: float) -> dict[str, Any]:
    """Return tokens a second."""
    generated = sum(reply.completion_tokens for reply in replies)
    read = sum(reply.prompt_tokens for reply in replies)
    return {
        "seconds": seconds,
        "replies": len(replies),
        "generated": generated,
        "generated_per_second": generated / seconds,
        "tokens_per_second": (generated + read) / seconds,
    }


def measure(sampler: Sampler, asked: list[Request]) -> dict[str, Any]:
    """Return the rates of one call."""
    figures: dict[str, Any] = {}
    with timed(figures, "seconds"):
        replies = sampler.sample(asked)
    return rates(replies, figures["seconds"])


def card() -> dict[str, Any]:
    """Return the card's name, its rate of bfloat16 matrix products and of copies, and the versions."""
    import torch
    import transformers

    where, size = ("cuda", 8192) if on_gpu() else ("cpu", 512)
    a, b = (torch.randn(size, size, device=where, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 255, (2**31 if on_gpu() else 2**24,), dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    products, copies = [], []
    for _ in range(8):
        figures: dict[str, Any] = {}
        with timed(figures, "product"):
            a @ b
        with timed(figures, "copy"):
            target.copy_(source)
        products.append(2 * size**3 / figures["product"] / 1e12)
        copies.append(2 * source.numel() / figures["copy"] / 1e12)
    return {
        "name": torch.cuda.get_device_name() if on_gpu() else "cpu",
        "tflops": max(products),
        "copy_tb": max(copies),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
    }


def prepare() -> dict[str, Any]:
    """Prepare the packaged model."""
    figures: dict[str, Any] = {}
    with timed(figures, "seconds"):
        figures["folder"] = Path(models.resolve(MODEL)).name
    return figures


def released() -> dict[str, Any]:
    """Sample in the manner of the released code: float32, transformers' own draws, one request at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models.resolve(MODEL)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to("cuda" if on_gpu() else "cpu")
    replies: list[Reply] = []

    def answer(request: Request, limit: int) -> Reply:
        chat = [message.model_dump() for message in request.messages]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=True, top_k=0, temperature=1.0, top_p=0.9, max_new_tokens=limit)
        prompt = inputs["input_ids"].shape[1]
        return Reply(text="", finish_reason="stop", prompt_tokens=prompt, completion_tokens=output.shape[1] - prompt)

    asked = requests(2 if QUICK else 9, [None])
    answer(asked[0], 8)
    figures: dict[str, Any] = {}
    start = time.perf_counter()
    with timed(figures, "seconds"):
        for request in asked[1:]:
            replies.append(answer(request, SAMPLING.max_new_tokens))
            print(json.dumps(rates(replies, time.perf_counter() - start)), flush=True)
    return rates(replies, figures["seconds"])


def plain() -> dict[str, Any]:
    """Sample with transformers' `generate` in batches of 64, the base and six agents."""
    from maft.samplers.transformers import Transformers

    sampler = Transformers(EngineConfig(sampler="transformers"))
    sampler.devices = ()
    count = 4 if QUICK else 192
    with tempfile.TemporaryDirectory() as scratch:
        sampler.sample(requests(4, [None]))
        adapters = random_adapters(Path(scratch), AGENTS, sampler._model)
        result = {"base": measure(sampler, requests(count, [None]))}
        print(json.dumps(result), flush=True)
        sampler.sample(requests(AGENTS, [*adapters]))
        return result | {"agents": measure(sampler, requests(count, [*adapters]))}


def compare(sampler: Sampler, adapters: list[str], result: dict[str, Any]) -> None:
    """Measure the base and agents, each with few and many requests, and print the result after each."""
    for name, number, voices in (
        ("base_first", COUNT, [None]), ("base", COUNT, [None]), ("agents_first", COUNT, adapters),
        ("agents", COUNT, adapters), ("agents_times_six", AGENTS * COUNT, adapters),
        ("base_times_six", AGENTS * COUNT, [None]),
    ):  # fmt: skip
        result[name] = measure(sampler, requests(number, [*voices]))
        print(json.dumps(result), flush=True)  # for what comes later may run out of time


def vllm() -> dict[str, Any]:
    """Sample with vLLM, as many replies at a time as `batched` has slots: the base, and six agents in one batch."""
    import torch
    import vllm
    from transformers import AutoConfig, AutoModelForCausalLM

    from maft.samplers.vllm import Vllm

    settings = VllmConfig(max_model_len=2048, gpu_memory_utilization=0.5)
    sampler = Vllm(EngineConfig(sampler="vllm", max_sequences=1024), settings, AGENTS, 16)
    folder = models.resolve(MODEL)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    result: dict[str, Any] = {"vllm": vllm.__version__, "slots": sampler.max_sequences}
    with tempfile.TemporaryDirectory() as scratch, timed(result, "seconds_in_all"):
        adapters = random_adapters(Path(scratch), AGENTS, model)
        with timed(result, "seconds_load"):
            sampler.ready(MODEL, requests(AGENTS, [*adapters]))
        compare(sampler, adapters, result)
        sampler.release()
    return result


def batched() -> dict[str, Any]:
    """Sample in slots: the base, the first call of which captures graphs, and six agents in one batch."""
    import torch

    from maft.samplers.transformers import Transformers

    sampler = Transformers(EngineConfig(sampler="transformers"))
    sampler.devices = ("cuda", "cpu")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, timed(result, "seconds_in_all"):
        with timed(result, "seconds_load"):
            sampler.ready(MODEL, requests(1, [None]))
        adapters = random_adapters(Path(scratch), AGENTS, sampler._model)
        compare(sampler, adapters, result)
        asked = requests(COUNT, [None])
        with timed(result, "seconds_encoding"):
            chat = sampler.ready(MODEL)
            for request in asked:
                chat.encode(request)
        result["passed_the_probe"] = sampler._fused is not None
        result["slots"] = sampler._slots.count if sampler._slots else 0
    result["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9 if on_gpu() else 0.0
    return result


def shaped(sizes: dict[str, Any], kind: str = "qwen2") -> Any:
    """Return a model of a shape with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, max_position_embeddings=8192, **sizes)
    where, dtype = ("cuda", torch.bfloat16) if on_gpu() else ("cpu", torch.float32)
    with torch.device(where):
        torch.set_default_dtype(dtype)
        model = AutoModelForCausalLM.from_config(config)
        torch.set_default_dtype(torch.float32)
    return model.eval()


def decode(
    model: Any, ops: Any, slots: int, limits: dict[str, float], agents: int = 0, prompt: int = 192
) -> dict[str, Any]:
    """Return seconds of one step of full slots, and the share of the card's limit that this is.

    The limit is the longer of two times: bytes of weights and of the cache that is read, at the rate of a copy (which
    counts bytes read and written), and products of weights, at the rate of a matrix product.
    """
    import torch

    from maft.samplers.fused import Fused
    from maft.samplers.slots import STEPS, Slots, _chunks

    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    steps = 16 if QUICK else 128
    fused = Fused(model, ops)
    folders: list[str] = []
    if agents:
        with tempfile.TemporaryDirectory() as scratch:
            from safetensors.torch import load_file

            folders = random_adapters(Path(scratch), agents, model)
            where = str(model.device)
            fused.adapt({Path(f): load_file(Path(f) / "adapter_model.safetensors", device=where) for f in folders})
    room = Slots(fused, [-1], slots, prompt + steps, steps)
    prompts = [[(7 * n + i) % 900 + 5 for i in range(prompt)] for n in range(slots)]
    asked = jobs(prompts, steps, [*folders] or [None])
    figures: dict[str, Any] = {"slots": slots, "agents": agents}
    order = sorted(range(slots), key=lambda slot: slot % max(1, agents))  # rows of one agent are neighbours
    room._read(asked[:1], [0])
    with timed(figures, "seconds_prefill"):
        for chunk in _chunks(asked):
            room._read(chunk, [job.number for job in chunk])
    with timed(figures, "seconds_capture"):
        room._go(order)
    blocks = 1 if QUICK else 6
    with timed(figures, "seconds_steps"):
        for _ in range(blocks):
            room._go(order)
    step = figures["seconds_steps"] / blocks / STEPS
    weights = sum(p.numel() for p in model.parameters())
    idle = 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    seen = prompt + STEPS * (1 + blocks / 2)
    size = room.keys.element_size()
    cache = 2 * len(fused.layers) * fused.kv_heads * fused.width * seen * slots * size
    by_bytes = ((weights - idle) * size + cache) / (limits["copy_tb"] * 1e12)
    by_products = 2 * (weights - idle) * slots / (limits["tflops"] * 1e12)
    read = 2 * (weights - idle) * slots * prompt / figures["seconds_prefill"] / 1e12
    return figures | {
        "ms_step": 1000 * step, "tokens_per_second": slots / step, "ms_by_bytes": 1000 * by_bytes,
        "ms_by_products": 1000 * by_products, "share_of_limit": max(by_bytes, by_products) / step,
        "prefill_tflops": read, "prefill_share": read / limits["tflops"],
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu() else 0.0,
    }  # fmt: skip


def shapes() -> dict[str, Any]:
    """Return what steps take with random weights in the shapes of 1.5B and 7B models, held against the limits."""
    limits = card()
    result: dict[str, Any] = {"card": limits}
    for name, sizes in {"tiny": TINY}.items() if QUICK else {"1.5B": QWEN_1_5B, "7B": QWEN_7B}.items():
        model = shaped(sizes)
        for slots in (2,) if QUICK else (64, 256, 512, 1024):
            result[f"{name}, {slots} slots"] = decode(model, None, slots, limits)
            print(json.dumps(result), flush=True)
        result[f"{name}, 6 agents"] = decode(model, None, 2 if QUICK else 256, limits, agents=6)
        if on_gpu():
            result[f"{name}, kernels"] = _kernels(model)
        del model
        _empty()
    return result


def steps() -> dict[str, Any]:
    """Return what steps take in the shape of the packaged model: with Triton and without, and by kernel."""
    from maft.samplers import plain_ops

    limits = card()
    result: dict[str, Any] = {"card": limits}
    small = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}  # fmt: skip
    model = shaped(TINY if QUICK else small, "llama")
    cases: list[tuple[str, Any, int, int]] = [
        (f"{n} slots", None, n, 0) for n in ((2,) if QUICK else (64, 256, 512, 1024))
    ]
    cases += [("6 agents", None, 2 if QUICK else 512, 6), ("6 agents", None, 2 if QUICK else 1024, 6)]
    cases += [("plain torch", plain_ops, 2 if QUICK else 256, 0)]
    for name, ops, slots, agents in cases:
        try:
            result[f"{name}, {slots}"] = decode(model, ops, slots, limits, agents=agents)
        except Exception as error:  # the other cases are still worth having
            result[f"{name}, {slots}"] = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(result), flush=True)
        _empty()
    if on_gpu():
        result["kernels"] = _kernels(model)
    return result


def _kernels(model: Any) -> list[str]:
    """Return the kernels of one step that take longest: microseconds, calls, name."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from maft.samplers.fused import Fused
    from maft.samplers.slots import Slots, _chunks

    room = Slots(Fused(model), [-1], 512, 320, 128)
    for chunk in _chunks(jobs([list(range(5, 197))] * 512, 128, [None])):
        room._read(chunk, [job.number for job in chunk])
    rows = torch.arange(512, device="cuda")
    with torch.inference_mode():
        room._step(rows)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            room._step(rows)
            torch.cuda.synchronize()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)[:25]
    return [f"{event.self_device_time_total:9.0f} {event.count:5d} {event.key[:90]}" for event in events]


def _empty() -> None:
    import gc

    import torch

    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


PARTS = {part.__name__: part for part in (card, prepare, released, plain, batched, vllm, shapes, steps)}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]]()))
