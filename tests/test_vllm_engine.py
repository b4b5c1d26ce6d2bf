"""vLLM for real, in an environment of its own, against transformers and PEFT: its CPU build (`make test-vllm`) or, where
there is a GPU, that."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from helpers import problem

from maft import method, models
from maft.config import (
    DebateConfig,
    EngineConfig,
    OpenAiConfig,
    RoleSampling,
    RunConfig,
    TaskConfig,
    VllmConfig,
    prompts,
)
from maft.engines import make_sampler as make
from maft.method.protocol import Rules
from maft.pipeline import rollouts
from maft.records import AgentRef, Message, Reply, Request, SamplingParams, Society
from maft.samplers.base import Sampler
from maft.samplers.chat import Chat
from maft.samplers.transformers import device

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),  # of the libraries underneath
]

MODEL = models.PACKAGED
GREEDY = SamplingParams(temperature=0, max_new_tokens=24)
DRAWN = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=16)
QUESTIONS = [f"What is {a} {sign} {b}?" for a in range(2, 6) for b in (3, 5) for sign in "+*"]
ON_GPU = device() == "cuda"
DTYPE = "bfloat16" if ON_GPU else "float32"
TOGETHER = 0.6 if ON_GPU else 0.85
"""Share of greedy texts that must be equal: two near-equal logits may change places by rounding."""


def engine(name: str) -> Sampler:
    settings = EngineConfig(sampler=name, dtype=DTYPE, cache_gb=1, max_sequences=32, num_threads=1)
    how = VllmConfig(max_model_len=2048, max_loras=2, gpu_memory_utilization=0.5)  # no slot is free while two speak
    task = TaskConfig(name="arithmetic")
    return make(RunConfig(task=task, debate=DebateConfig(num_agents=2), engine=settings, vllm=how))


NAMES = ("Anna", "Ben")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> list[Path]:
    """Two adapters, each taught to begin its answers with its own name."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # on a busy machine, two wait for each other
    chat = Chat(models.resolve(MODEL))
    folders = []
    for name in NAMES:
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(models.resolve(MODEL), dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        steps = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
        for step in range(12):
            prompt = chat.encode(ask(f"What is {step % 5} + {step % 3}?")).token_ids
            reply = [*chat.tokenizer(f"{name} says: it is {step % 5 + step % 3}.").input_ids, min(chat.stop_ids)]
            ids, labels = torch.tensor([prompt + reply]), torch.tensor([[-100] * len(prompt) + reply])
            model(input_ids=ids, labels=labels).loss.backward()
            steps.step()
            steps.zero_grad()
        folders.append(tmp_path_factory.mktemp("adapters") / name)
        model.save_pretrained(folders[-1])
    return folders


@pytest.fixture(scope="module")
def vllm():
    made = engine("vllm")
    yield made
    made.release()


@pytest.fixture(scope="module")
def reference():
    """What is known to be right: transformers and PEFT, one adapter at a time."""
    made = engine("transformers")
    made.devices = ()  # on a GPU, it would mix them itself
    yield made
    made.release()


def agent(adapter: Path | None, index: int = 0, role: str = "generator") -> AgentRef:
    return AgentRef(role=role, index=index, model=MODEL, adapter=str(adapter) if adapter else None)


def ask(question: str, adapter: Path | None = None, sampling: SamplingParams = GREEDY, seed: int = 0) -> Request:
    return Request(
        agent=agent(adapter), messages=(Message(role="user", content=question),), sampling=sampling, seed=seed
    )


def texts(sampler: Sampler, requests: list[Request]) -> list[str]:
    return [reply.text for reply in sampler.sample(requests)]


def share(pairs: list[tuple[object, object]]) -> float:
    return sum(a == b for a, b in pairs) / len(pairs)


def test_agents_mixed_in_one_batch_say_what_they_say_with_peft(vllm, reference, adapters):
    requests = [ask(question, adapter) for question in QUESTIONS for adapter in (None, *adapters)]
    heard: list[Reply] = []
    ours = vllm.sample(requests, heard.append)
    theirs = reference.sample(requests)
    assert len(heard) == len(requests)
    for place in range(3):
        pairs = [(a.text, b.text) for a, b in zip(ours[place::3], theirs[place::3], strict=True)]
        assert share(pairs) >= TOGETHER, [pair for pair in pairs if pair[0] != pair[1]]

    def ending(reply: Reply) -> tuple[int, str]:
        return reply.completion_tokens, reply.finish_reason

    alike = [(ending(a), ending(b)) for a, b in zip(ours, theirs, strict=True) if a.text == b.text]
    assert all(a == b and 0 < a[0] <= 24 for a, b in alike)
    assert [r.prompt_tokens for r in ours] == [r.prompt_tokens for r in theirs], "the same tokens, BOS and all"
    for place, name in enumerate(NAMES, 1):
        assert all(reply.text.startswith(name) for reply in ours[place::3])
    assert not any(reply.text.startswith(NAMES) for reply in ours[::3])


def test_a_debate_of_two_agents_with_two_adapters(vllm, reference, adapters):
    one, two = adapters
    society = Society(
        generators=(agent(one), agent(two, 1)),
        critics=(agent(two, 0, "critic"), agent(one, 1, "critic")),
        summarizer=None,
    )
    rules = Rules(
        society=society,
        debate=DebateConfig(num_agents=2, num_rounds=2, summarizer="none"),
        prompts=prompts.build({}),
        sampling=RoleSampling(generator=GREEDY, critic=GREEDY, summarizer=GREEDY),
        run_seed=0,
        iteration=1,
        stage="train",
    )
    asked: list[Request] = []

    class Watched:
        def sample(self, requests, on_reply=None):
            asked.extend(requests)
            return vllm.sample(requests, on_reply)

        def release(self) -> None: ...

    problems = [problem(f"{a} + {b}", str(a + b)) for a in (3, 4) for b in (2, 5, 7)]
    held = rollouts.play_all([method.play(one, rules) for one in problems], Watched())
    assert all(debate.error is None and len(debate.calls()) == 4 for debate in held)
    replies = texts(vllm, asked)
    assert share(list(zip(replies, texts(reference, asked), strict=True))) >= TOGETHER
    speakers = [Path(request.agent.adapter).name for request in asked]
    assert [reply.split()[0] for reply in replies] == speakers
    for debate in held:
        assert [turn.call.reply.text.split()[0] for turn in debate.turns] == ["Anna", "Ben", "Ben", "Anna"]


def test_another_adapter_under_the_same_path_is_not_taken_for_the_first(vllm, adapters, tmp_path):
    one, two = adapters
    place = tmp_path / "generator_0"
    # Longer than a block of the prefix cache, which has 128 tokens on a CPU.
    question = "Here is a list of words. " + "apple, pear, plum, cherry, " * 30 + "What is 3 + 4?"
    for adapter in (one, two, one):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(adapter, place)
        for _ in range(2):
            reply = vllm.sample([ask(question, place)])[0]
            assert reply.prompt_tokens > 128 and reply.text.startswith(adapter.name)


def test_seeds_make_samples(vllm, adapters):
    sea = "Tell me about the sea."
    replies = texts(vllm, [ask(sea, adapters[0], DRAWN, seed) for seed in range(6)])
    assert len(set(replies)) == 6, "identical prompts, different seeds"
    crowd = [ask("Count to nine.", None, DRAWN, 3), ask(sea, adapters[0], DRAWN, 3), ask(sea, adapters[1], DRAWN, 3)]
    again = texts(vllm, crowd)[1]
    assert again == replies[3] or (ON_GPU and again[:4] == replies[3][:4]), "the same seed in other company"


def test_draws_with_seeds_are_draws_from_the_distribution_of_the_agent(vllm, reference, adapters):
    import torch

    number, first = 150, SamplingParams(temperature=1.0, max_new_tokens=1)
    requests = [ask(QUESTIONS[0], adapters[1], first, 977 * seed) for seed in range(number)]
    drawn = Counter(texts(vllm, requests))
    chat = reference.ready(MODEL)
    made = chat.encode(requests[0])
    model = reference.speaking(adapters[1])
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([made.token_ids], device=model.device)).logits[0, -1]
    likely = logits.float().softmax(-1).topk(8)
    for probability, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
        expected, seen = number * probability, drawn[chat.tokenizer.decode([token])]
        assert abs(seen - expected) < 4 * max(1.0, expected) ** 0.5 + 2, (token, expected, seen)


def test_a_prompt_longer_than_the_context_is_an_error_of_that_request_alone(vllm):
    seen: list[Reply] = []
    long, short = vllm.sample([ask("word " * 3000), ask("What is 2 + 2?")], on_reply=seen.append)
    assert long.finish_reason == "error" and "context" in (long.error or "")
    assert short.error is None and short.text and len(seen) == 2


def test_a_reply_says_why_it_ended_and_what_it_cost(vllm):
    cut, whole = vllm.sample(
        [
            ask("Write a long story.", sampling=SamplingParams(temperature=0, max_new_tokens=5)),
            ask("What is 2 + 2?", sampling=SamplingParams(temperature=0, max_new_tokens=400)),
        ]
    )
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 5)
    assert whole.finish_reason == "stop" and 1 < whole.completion_tokens < 400
    assert "<|im_end|>" not in whole.text and whole.prompt_tokens > 10


def engines() -> int:
    """Return how many processes of vLLM run."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return sum("VLLM" in child.name() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_release_ends_the_engine_and_the_next_request_starts_it_anew(vllm, adapters):
    before = texts(vllm, [ask(QUESTIONS[0], adapters[0])])
    assert engines() > 0
    vllm.release()
    assert engines() == 0
    assert texts(vllm, [ask(QUESTIONS[0], adapters[0])]) == before
    vllm.release()


def test_a_whole_run_finetunes_between_two_engines(vllm, tmp_path):
    vllm.release()
    (tmp_path / "sums.yaml").write_text(
        """
task: {name: arithmetic, low: 1, high: 3, num_train: 6, num_eval: 2}
debate: {num_agents: 2, summarizer: none}
sampling: {train: {generator: {max_new_tokens: 48, temperature: 0.7}, critic: {max_new_tokens: 48}}}
vote: {min_agreement: plurality}
train: {num_epochs: 1}
engine: {sampler: vllm, cache_gb: 1, dtype: DTYPE, num_threads: 1}
vllm: {max_model_len: 1024}
""".replace("DTYPE", DTYPE)
    )
    command = [sys.executable, "-m", "maft", "run", "sums.yaml", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs/sums"
    assert list((run / "iter_01/agents").iterdir()), "those who had examples"
    assert (run / "iter_01/eval/summary.json").exists() and "maft" in done.stdout


@pytest.fixture
def server(vllm, tmp_path):
    """`vllm serve` on loopback; the engine in this process is stopped first, for there is memory for one."""
    vllm.release()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = os.environ | {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    # `vllm serve`, whose start looks for a package called vllm, which the CPU build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", models.resolve(MODEL)]
    command += [
        "--served-model-name",
        MODEL,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--max-model-len",
        "2048",
    ]
    command += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", "--generation-config", "vllm"]
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192", "--max-num-seqs", "32"]
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=settings, stdout=log, stderr=log)
        try:
            for _ in range(400):
                assert process.poll() is None, (tmp_path / "server.log").read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(1)
            yield f"{address}/v1"
        finally:
            process.terminate()
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()


def test_a_server_elsewhere_is_given_the_adapters_while_it_runs(server, reference, adapters, tmp_path):
    from maft.hosted.sampler import OpenAi

    ours = OpenAi(OpenAiConfig(base_url=server, load_adapters=True), tmp_path)
    # The CPU build mixes up the base and an adapter in one batch (samplers/vllm.py), so the base is asked by itself.
    for weights in ([None], adapters):
        requests = [ask(question, adapter) for question in QUESTIONS[:4] for adapter in weights]
        replies = ours.sample(requests)
        assert [reply.error for reply in replies] == [None] * len(requests)
        assert share(list(zip([r.text for r in replies], texts(reference, requests), strict=True))) >= 0.75
        for request, reply in zip(requests, replies, strict=True):
            assert reply.text.startswith(Path(request.agent.adapter).name if request.agent.adapter else "")
    drawn = ours.sample([ask("Tell me about the sea.", adapters[0], DRAWN, seed) for seed in range(4)])
    assert len({reply.text for reply in drawn}) == 4

    def names() -> str:
        return urllib.request.urlopen(f"{server}/models").read().decode()

    assert all(f"maft-{name}-" in names() for name in NAMES)
    ours.release()
    assert not any(f"maft-{name}-" in names() for name in NAMES) and not (tmp_path / "served.json").exists()
