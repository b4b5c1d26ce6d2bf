"""/v1/completions with a real engine: log-likelihoods as transformers gives them, and what is refused."""

import pytest
from helpers import settings
from served import client_error, served
from tiny import slow

from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.samplers.scripted import guess
from maft.samplers.transformers import Transformers

TEXTS = ["What is 3 + 4? It is 7.", "One two three"]


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    sampler = ("engine.sampler=transformers", "engine.dtype=float32", f"model={tiny}")
    with RunFolder.open(settings(tmp_path_factory.mktemp("runs"), *sampler)) as folder:
        pass
    with served(folder, Transformers(folder.config.engine)) as opened:
        yield opened


def likelihoods(folder: str, text: str) -> tuple[list[int], list[float], list[float]]:
    """Return tokens, and the log-likelihoods of all but the first and of the likeliest in their places."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        scores = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return ids, scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist(), scores.max(-1).values.tolist()


@slow
def test_tokens_are_as_likely_as_transformers_says(server, tiny):
    done = server.client.completions.create(model="base", prompt=TEXTS, echo=True, logprobs=1, max_tokens=0)
    assert [choice.text for choice in done.choices] == TEXTS
    tokens = server.client.completions.create(
        model="base", prompt=[likelihoods(tiny, text)[0] for text in TEXTS], echo=True, logprobs=1, max_tokens=1
    )
    for text, choice, again in zip(TEXTS, done.choices, tokens.choices, strict=True):
        ids, chosen, best = likelihoods(tiny, text)
        assert choice.logprobs.token_logprobs[0] is None and len(choice.logprobs.tokens) == len(ids)
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(chosen, abs=1e-4)
        assert [max(top.values()) for top in choice.logprobs.top_logprobs[1:]] == pytest.approx(best, abs=1e-4)
        assert again.logprobs.token_logprobs[1:-1] == pytest.approx(chosen, abs=1e-4)
        assert len(again.logprobs.tokens) == len(ids) + 1
    assert done.usage.completion_tokens == 0 and done.usage.prompt_tokens == sum(
        len(likelihoods(tiny, t)[0]) for t in TEXTS
    )


@slow
def test_a_text_is_continued_as_it_stands(server):
    greedy = {"temperature": 0, "max_tokens": 8, "logprobs": 2}
    first = server.client.completions.create(model="generator_0", prompt="What is", **greedy)
    again = server.client.completions.create(model="generator_0", prompt="What is", **greedy)
    assert first.choices[0].text == again.choices[0].text and first.usage.completion_tokens <= 8
    top = first.choices[0].logprobs
    assert [max(each.values()) for each in top.top_logprobs] == pytest.approx(top.token_logprobs, abs=1e-3)
    many = server.client.completions.create(model="generator_0", prompt=TEXTS, n=2, max_tokens=4, seed=1, temperature=2)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text != many.choices[1].text
    assert server.ask("vote").choices


@slow
def test_what_cannot_be_read_is_refused(server):
    for body, word in [
        ({"model": "debate", "prompt": "x"}, "single agents"),
        ({"model": "base", "prompt": "x", "stream": True}, "stream"),
        ({"model": "base", "prompt": [[10**9]]}, "does not exist"),
        ({"model": "base", "prompt": "x " * 5000}, "must fit"),
        ({"model": "base", "prompt": []}, "prompt"),
    ]:
        with client_error("BadRequestError", match=word):
            server.client.completions.create(**body)


def test_an_engine_that_gives_no_likelihoods_says_which_does(finished_run):
    with (
        served(finished_run, Scripted(guess)) as opened,
        client_error("BadRequestError", match="sampler=transformers"),
    ):
        opened.client.completions.create(model="base", prompt="x", logprobs=1, echo=True)
