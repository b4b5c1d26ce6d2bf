"""What holds for every engine with a real model: the same request means the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from maft import models
from maft.config import EngineConfig, RunConfig, TaskConfig
from maft.engines import make_sampler as make
from maft.records import AgentRef, Message, Reply, Request, SamplingParams
from maft.samplers import base
from maft.samplers.base import Sampler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of the libraries underneath
]

MODEL = models.PACKAGED
ENGINES = ("openvino", "transformers")
GREEDY = SamplingParams(temperature=0, max_new_tokens=10)
DRAWN = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=24)
QUESTIONS = [f"What is {a} {'+*'[(a + b) % 2]} {b}?" for a in range(2, 6) for b in range(3, 6)]


def engine(name: str) -> Sampler:
    how = EngineConfig(sampler=name, dtype="float32", num_threads=1)  # other tests have the other core
    return make(RunConfig(task=TaskConfig(name="arithmetic"), engine=how))


@pytest.fixture(scope="module")
def both():
    """Each engine, with the model and the adapters that it has loaded."""
    made = {name: engine(name) for name in ENGINES}
    yield made
    for sampler in made.values():
        sampler.release()


@pytest.fixture(scope="module", params=ENGINES)
def sampler(request, both):
    return both[request.param]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> list[Path]:
    """Two adapters that change what the model says without breaking it."""
    import adapters as make_  # not above: a test imports this file from a folder that has no `adapters`
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        plain = AutoModelForCausalLM.from_pretrained(models.resolve(MODEL), dtype=torch.bfloat16)
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(plain, config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.mul_(0.3)
        folders.append(tmp_path_factory.mktemp("adapters") / f"adapter_{seed}")
        model.save_pretrained(folders[-1])
        make_.write_probe(folders[-1], model, models.resolve(MODEL))
    return folders


def ask(question: str, adapter: Path | None = None, sampling: SamplingParams = GREEDY, seed: int = 0) -> Request:
    agent = AgentRef(role="generator", index=0, model=MODEL, adapter=str(adapter) if adapter else None)
    return Request(agent=agent, messages=(Message(role="user", content=question),), sampling=sampling, seed=seed)


def texts(sampler: Sampler, requests: list[Request]) -> list[str]:
    return [reply.text for reply in sampler.sample(requests)]


def test_greedy_text_agrees_between_the_engines_with_and_without_an_adapter(both, adapters):
    few = QUESTIONS[:8]
    requests = [ask(question, adapter) for adapter in (None, *adapters) for question in few]
    said = {name: texts(both[name], requests) for name in ENGINES}
    pairs = list(zip(said["openvino"], said["transformers"], strict=True))
    # In float32 the engines differ by rounding alone: two near-equal logits may change places.
    for start in range(0, len(pairs), len(few)):
        part = pairs[start : start + len(few)]
        assert sum(a == b for a, b in part) >= 0.85 * len(part), [pair for pair in part if pair[0] != pair[1]]


def test_identical_prompts_with_different_seeds_get_different_samples(sampler):
    replies = texts(sampler, [ask("Tell me about the sea.", sampling=DRAWN, seed=seed) for seed in range(8)])
    assert len(set(replies)) == 8


def test_the_same_seed_gives_the_same_sample_in_any_company(sampler):
    alone = texts(sampler, [ask("Tell me about the sea.", sampling=DRAWN, seed=5)])
    crowd = texts(sampler, [ask(q, sampling=DRAWN, seed=5) for q in ("Count to nine.", "Tell me about the sea.")])
    assert crowd[1] == alone[0]


def test_an_agent_speaks_with_its_own_adapter_whoever_spoke_before(sampler, adapters):
    one, two = adapters
    fresh = {adapter: texts(sampler, [ask(q, adapter) for q in QUESTIONS[:2]]) for adapter in (None, one, two)}
    assert fresh[None] != fresh[one] != fresh[two]
    mixed = [ask(q, adapter) for q in QUESTIONS[:2] for adapter in (two, None, one)]
    for request, reply in zip(mixed, sampler.sample(mixed), strict=True):
        adapter = Path(request.agent.adapter) if request.agent.adapter else None
        assert reply.text == fresh[adapter][QUESTIONS.index(request.messages[0].content)]


def test_an_adapter_that_comes_after_the_base_has_spoken_is_not_ignored(sampler, adapters):
    sampler.release()
    base = texts(sampler, [ask(q) for q in QUESTIONS[:4]])
    assert texts(sampler, [ask(q, adapters[0]) for q in QUESTIONS[:4]]) != base


def test_a_prompt_longer_than_the_context_is_an_error_of_that_request_alone(sampler):
    seen: list[Reply] = []
    replies = sampler.sample([ask("word " * 9000), ask("What is 2 + 2?")], on_reply=seen.append)
    assert replies[0].finish_reason == "error" and "context" in (replies[0].error or "")
    assert replies[1].error is None and replies[1].text
    assert len(seen) == 2


def test_a_reply_says_why_it_ended_and_what_it_cost(sampler):
    cut, whole = sampler.sample(
        [
            ask("Write a long story.", sampling=SamplingParams(temperature=0, max_new_tokens=5)),
            ask("What is 2 + 2?", sampling=SamplingParams(temperature=0, max_new_tokens=400)),
        ]
    )
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 5)
    assert whole.finish_reason == "stop" and 1 < whole.completion_tokens < 400
    assert "<|im_end|>" not in whole.text and whole.prompt_tokens > 10


@pytest.fixture(scope="module")
def adapted(adapters):
    """The model with the first adapter, by PEFT alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(models.resolve(MODEL), dtype=torch.float32)
    return PeftModel.from_pretrained(base, adapters[0]).eval()


def test_a_reply_carries_its_tokens_and_their_log_probabilities(sampler, adapters, adapted):
    """Compared with one forward pass of the model over prompt and reply."""
    import torch

    from maft.samplers.chat import Chat

    chat = Chat(models.resolve(MODEL))
    halved = SamplingParams(temperature=0.5, top_p=0.9, top_k=20, max_new_tokens=12)
    for request in [ask("Tell me about the sea.", adapters[0], halved), ask("What is 2 + 2?", adapters[0], DRAWN)]:
        reply = sampler.sample([request])[0]
        assert len(reply.token_ids) == len(reply.logprobs) == reply.completion_tokens
        assert chat.tokenizer.decode(reply.token_ids, skip_special_tokens=True) == reply.text
        prompt = chat.encode(request).token_ids
        with torch.no_grad():
            logits = adapted(torch.tensor([prompt + list(reply.token_ids)])).logits[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(reply.token_ids)[:, None])[:, 0]
        assert torch.tensor(reply.logprobs) == pytest.approx(wanted, abs=0.02)


def test_requests_that_follow_from_replies_are_answered_as_if_they_were_asked_alone(sampler, adapters):
    """Dialogues go on after replies of one token, so that prompts read before are the beginnings of later ones."""
    short = GREEDY.model_copy(update={"max_new_tokens": 1})
    asked = [ask(question, adapter, short) for question in QUESTIONS[:2] for adapter in (None, adapters[0])]
    followed: list[Request] = []
    told: dict[int, str] = {}

    def take(number: int, reply: Reply) -> list[Request]:
        told[number] = reply.text
        if number >= len(asked):
            return []
        before = asked[number]
        on = (Message(role="assistant", content=reply.text), Message(role="user", content="Explain it in a sentence."))
        followed.append(before.model_copy(update={"messages": (*before.messages, *on), "sampling": GREEDY}))
        return [followed[-1]]

    base.answer(sampler, asked, take)
    assert sorted(told) == list(range(2 * len(asked)))
    sampler.release()
    alone = [texts(sampler, [request])[0] for request in followed]
    same = [told[len(asked) + number] == text for number, text in enumerate(alone)]
    assert sum(same) >= len(same) - 1, "two near-equal logits may change places by rounding"


def test_openvino_tells_a_reply_as_it_ends_and_hears_an_interruption_before_the_last():
    sampler = engine("openvino")
    brief, long = (SamplingParams(temperature=0, max_new_tokens=most) for most in (2, 300))
    both = [ask("Write a long story.", sampling=long), ask("Write a short story.", sampling=brief)]
    told: list[int] = []

    def interrupt(reply: Reply) -> None:
        told.append(reply.completion_tokens)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.sample(both, on_reply=interrupt)
    assert told == [2], "the brief reply is told first, and the long one is given up"
    again = sampler.sample([both[1], ask("What is 2 + 2?")])
    assert again == engine("openvino").sample([both[1], ask("What is 2 + 2?")])


def test_the_packaged_model_has_the_tokenizer_its_own_file_describes():
    from maft.samplers.chat import Chat

    tokenizer = Chat(models.resolve(MODEL)).tokenizer
    assert tokenizer("What is 7 * 8?").input_ids == [1780, 314, 216, 39, 1672, 216, 40, 47]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered.count("<|im_start|>") == 2 and rendered.startswith("<|im_start|>system\n")


def test_openvino_samples_in_bfloat16_on_one_thread_without_dying():
    code = (
        "from maft.config import EngineConfig, RunConfig, TaskConfig\n"
        "from maft.engines import make_sampler as make\n"
        "from tests.test_samplers import ask\n"
        "engine = EngineConfig(sampler='openvino', dtype='bfloat16', num_threads=1)\n"
        "print(make(RunConfig(task=TaskConfig(name='arithmetic'), engine=engine)).sample([ask('What is 2 + 3?')])[0].text)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "5" in done.stdout
