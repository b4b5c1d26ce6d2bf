"""Hosted models through the official client, against a stand-in of the service on loopback, and a real server."""

import asyncio
import itertools
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from helpers import needs
from openai_stand_in import KEY, Fault, StandIn

from maft import config as config_
from maft import files
from maft.config import OpenAiConfig
from maft.errors import ConfigError, DataError, StageFailed
from maft.hosted import service as hosted
from maft.hosted.sampler import Gate, OpenAi
from maft.hosted.service import Spending
from maft.records import AgentRef, Message, Reply, Request, SamplingParams
from maft.samplers.cached import CachedSampler

pytestmark = needs("openai")

CHAT = "/chat/completions"


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("maft.hosted.sampler.seeds.rng", lambda *names: NoWait())
    with StandIn(lambda asked: f"You said: {asked['messages'][-1]['content']}") as made:
        yield made


class NoWait:
    """A random source that makes all waits nothing."""

    def random(self) -> float:
        return -1.0


def ask(number: int = 0, **change: object) -> Request:
    agent = AgentRef(role="generator", index=number % 3, model="gpt-small")
    messages = (Message(role="user", content=f"question {number}"),)
    sampling = SamplingParams(temperature=0.5, top_p=0.9, max_new_tokens=7)
    return Request(agent=agent, messages=messages, sampling=sampling, seed=2**40 + number).model_copy(update=change)


def kept(sampler: OpenAi, folder: Path, **how: bool) -> CachedSampler:
    return CachedSampler(sampler, folder / "replies.sqlite", paid=True, **how)


def engine(service: StandIn, folder: Path, **settings: object) -> CachedSampler:
    return kept(OpenAi(OpenAiConfig(base_url=service.url, **settings), folder), folder)


def test_replies_come_in_the_order_of_the_requests_with_their_tokens(service, tmp_path):
    heard: list[Reply] = []
    replies = engine(service, tmp_path).sample([ask(n) for n in range(40)], heard.append)
    assert [reply.text for reply in replies] == [f"You said: question {n}" for n in range(40)]
    assert {(r.prompt_tokens, r.completion_tokens, r.finish_reason) for r in replies} == {(20, 5, "stop")}
    assert len(heard) == 40


def test_a_request_means_what_it_means_elsewhere(service, tmp_path):
    engine(service, tmp_path).sample(
        [ask(1, sampling=SamplingParams(temperature=0.5, top_p=0.9, top_k=8, max_new_tokens=7))]
    )
    (sent,) = service.asked
    assert sent == {
        "model": "gpt-small",
        "messages": [{"role": "user", "content": "question 1"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 8,
        "max_tokens": 7,
        "seed": (2**40 + 1) % 2**31,
    }


def test_tokens_are_asked_for_and_stored_where_they_are_kept(service, tmp_path):
    plain = engine(service, tmp_path / "plain").sample([ask()])[0]
    assert (plain.token_ids, plain.logprobs) == (None, None) and "logprobs" not in service.asked[0]
    settings = OpenAiConfig(base_url=service.url, load_adapters=True)
    replies = [
        kept(OpenAi(settings, tmp_path / "kept", keep_tokens=True), tmp_path / "kept", keep_tokens=True).sample(
            [ask()]
        )[0]
        for _ in range(2)
    ]
    assert [(reply.token_ids, reply.logprobs) for reply in replies] == [((7,), (-0.5,))] * 2
    assert len(service.asked) == 2, "the second time it is looked up"


def test_no_more_requests_than_allowed_are_under_way(service, tmp_path):
    engine(service, tmp_path, concurrency=3).sample([ask(n) for n in range(30)])
    assert service.most_at_once <= 3


FAULTS = {
    "too many": Fault(CHAT, 429, headers=(("retry-after", "0.01"),)),
    "too many, in milliseconds": Fault(CHAT, 429, headers=(("retry-after-ms", "10"),)),
    "the service's fault": Fault(CHAT, 500),
    "overloaded": Fault(CHAT, 503),
    "dropped connection": Fault(CHAT, 0),
    "dropped answer": Fault(CHAT, -1),
    "no choices": Fault(CHAT, 200, body='{"choices": [], "error": "overloaded"}'),
    "half an answer": Fault(CHAT, 200, body='{"choices": ['),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_may_pass_is_tried_again_with_the_same_words(service, tmp_path, fault):
    service.faults += [fault, fault]
    replies = engine(service, tmp_path).sample([ask(n) for n in range(4)])
    assert [reply.text for reply in replies] == [f"You said: question {n}" for n in range(4)]
    sent = [str(sorted(asked.items(), key=str)) for asked in service.asked]
    assert len(set(sent)) == 4 and not service.faults


def test_tries_are_bounded_and_their_failure_is_a_reply_beside_its_siblings(service, tmp_path):
    service.faults += [Fault(CHAT, 500, "broken")] * 3
    replies = engine(service, tmp_path, max_retries=2, concurrency=1).sample([ask(0), ask(1)])
    assert replies[0].error is not None and "InternalServerError: broken" in replies[0].error
    assert replies[1].text == "You said: question 1"


def test_a_request_that_the_service_refuses_is_not_repeated(service, tmp_path):
    service.faults.append(Fault(CHAT, 400, "This model's maximum context length is 9 tokens."))
    (reply,) = engine(service, tmp_path).sample([ask()])
    assert reply.error == "BadRequestError: This model's maximum context length is 9 tokens." and not service.asked


def test_a_request_that_takes_too_long_is_tried_again(service, tmp_path):
    service.faults.append(Fault(CHAT, 200, delay=1.0))
    started = time.monotonic()
    (reply,) = engine(service, tmp_path, timeout=0.2).sample([ask()])
    assert reply.text == "You said: question 0" and time.monotonic() - started < 0.9
    ours = engine(service, tmp_path, timeout=0.2, max_retries=1)
    service.faults += [Fault(CHAT, 200, delay=0.6)] * 2
    with pytest.raises(DataError, match="does not answer within openai.timeout = 0.2 seconds"):
        ours.sample([ask(1)])
    ours.sample([ask(2)])
    service.faults += [Fault(CHAT, 200, delay=0.6)] * 2
    assert ours.sample([ask(3)])[0].error == "APITimeoutError: Request timed out."


def test_waits_are_read_in_every_form_and_bounded():
    def asked(**headers: str) -> float | None:
        import httpx

        error = Exception()
        error.response = httpx.Response(429, headers={name.replace("_", "-"): text for name, text in headers.items()})
        return hosted.retry_after(error)

    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert asked(retry_after="2") == 2 and asked(retry_after_ms="250", retry_after="9") == 0.25
    assert 25 < asked(retry_after=soon) <= 30 and asked(retry_after="Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert asked(retry_after="86400") == 300 and asked(retry_after="soon") is None and asked() is None


def test_what_the_service_bears_is_remembered_from_batch_to_batch(service, tmp_path):
    ours = engine(service, tmp_path, concurrency=16)
    service.faults.append(Fault(CHAT, 429, headers=(("retry-after", "0.05"),)))
    ours.sample([ask(0)])
    service.say, service.most_at_once = (lambda asked: time.sleep(0.1) or "late"), 0
    ours.sample([ask(n) for n in range(1, 13)])
    assert 2 <= service.most_at_once <= 9


@pytest.mark.parametrize("page", ["<html>A router</html>", "[]", "{", '{"choices": null}'])
def test_a_server_that_speaks_otherwise_is_said_soon(service, tmp_path, page):
    service.faults += [Fault(CHAT, 200, body=page)] * 9
    with pytest.raises(DataError, match="does not answer as OpenAI's API does: .* Check openai.base_url"):
        engine(service, tmp_path).sample([ask()])
    assert len(service.headers) == 3


@pytest.mark.parametrize("key", ["gsk_of_another_service", "0123abcd"])
def test_no_service_can_make_us_write_a_key_of_any_form(service, tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", f" {key}\n")
    service.faults.append(Fault(CHAT, 400, f"What is '{key}'?"))
    (reply,) = engine(service, tmp_path).sample([ask()])
    assert reply.error == "BadRequestError: What is '<key>'?"
    assert service.headers[0]["authorization"] == f"Bearer {key}"


def test_a_key_that_cannot_be_sent_is_refused_unseen(service, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-schl\u00fcssel")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds characters that no key has") as raised:
        engine(service, tmp_path).sample([ask()])
    assert "schl" not in str(raised.value) and not service.headers


def test_the_key_goes_where_the_config_says(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/elsewhere")
    with hosted.client(OpenAiConfig()) as client:
        assert str(client.base_url) == "https://api.openai.com/v1/"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (f"api_key_env={KEY}", "openai.api_key_env: must be the name of an environment variable"),
        (f"base_url=http://me:{KEY}@host/v1", "openai.base_url: must hold no user name or password"),
        ("base_url=localhost:8080", "openai.base_url: must be an address such as http://localhost:8080/v1, got 'local"),
    ],
)
def test_a_key_in_a_setting_is_refused_without_being_shown(override, said):
    with pytest.raises(ConfigError, match=said) as raised:
        config_.parse({"task": {"name": "arithmetic"}}, [f"openai.{override}"])
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (
            Fault(CHAT, 401, f"Incorrect API key provided: {KEY}"),
            ConfigError,
            "does not accept the key in OPENAI_API_KEY",
        ),
        (
            Fault(CHAT, 403, f"{KEY} may not"),
            ConfigError,
            "does not permit this with the key in OPENAI_API_KEY: <key> may",
        ),
        (
            Fault(CHAT, 404, "The model gpt-small does not exist."),
            DataError,
            "The model gpt-small does not exist. Check",
        ),
        (
            Fault(CHAT, 400, "Unsupported parameter: 'temperature'", "unsupported_parameter"),
            ConfigError,
            r"does not take temperature = 0\.5: Unsupported parameter: 'temperature'\..* openai\.omit=\[temperature\]",
        ),
        (
            Fault(CHAT, 429, "You exceeded your quota.", "insufficient_quota"),
            StageFailed,
            "quota of the key is used up",
        ),
    ],
)
def test_what_no_request_can_pass_ends_the_run_at_once(service, tmp_path, fault, kind, said):
    service.faults.append(fault)
    with pytest.raises(kind, match=said) as raised:
        engine(service, tmp_path, concurrency=1).sample([ask(n) for n in range(20)])
    assert len(service.asked) <= 1 and KEY not in str(raised.value)


def test_replies_that_came_before_the_end_are_kept_and_not_paid_for_again(service, tmp_path):
    service.faults += [Fault("/never", 500)]
    ours = engine(service, tmp_path, concurrency=1)
    ours.sample([ask(0), ask(1)])
    service.faults.append(Fault(CHAT, 401))
    with pytest.raises(ConfigError):
        ours.sample([ask(0), ask(2)])
    before = len(service.asked)
    replies = engine(service, tmp_path).sample([ask(0), ask(1), ask(2)])
    assert [reply.text for reply in replies] == [f"You said: question {n}" for n in range(3)]
    assert len(service.asked) == before + 1


def test_a_server_that_is_not_there_is_said_soon(monkeypatch, tmp_path):
    monkeypatch.setattr("maft.hosted.sampler.seeds.rng", lambda *names: NoWait())
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/v1 cannot be reached: .* Check openai.base_url"):
        OpenAi(OpenAiConfig(base_url="http://127.0.0.1:9/v1"), tmp_path).sample([ask()])


def test_a_missing_key_is_said_before_anything_is_sent(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment variable OPENAI_API_KEY is not set"):
        OpenAi(OpenAiConfig(), tmp_path).sample([ask()])


def test_what_a_service_cannot_do_is_refused(service, tmp_path):
    adapted = ask(agent=AgentRef(role="critic", index=0, model="m", adapter="/a/b"))
    with pytest.raises(DataError, match="critic_0 has the adapter /a/b, which a hosted service cannot load"):
        engine(service, tmp_path).sample([adapted])
    with pytest.raises(ConfigError, match="does not know top_k"):
        OpenAi(OpenAiConfig(), tmp_path).sample([ask(sampling=SamplingParams(top_k=3))])
    assert not service.asked


def test_the_key_is_sent_and_written_nowhere(service, tmp_path):
    ours = engine(service, tmp_path)
    ours.sample([ask()])
    assert service.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(ours) + str(vars(ours))
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


PRICES = {"prompt_price": 1000.0, "completion_price": 10_000.0, "training_price": 0.0}


def test_a_limit_stops_before_it_is_passed_and_holds_over_all_starts(service, tmp_path):
    # A reply costs 20 * 0.001 + 5 * 0.01 = 0.07, and could cost 0.17 before it is there.
    ours = engine(service, tmp_path, spending_limit=0.5, concurrency=1, **PRICES)
    with pytest.raises(StageFailed, match=r"could pass openai.spending_limit = 0.5"):
        ours.sample([ask(n) for n in range(20)])
    paid = len(service.asked)
    assert 4 <= paid <= 6 and paid * 0.07 <= 0.5
    with pytest.raises(StageFailed, match="spent"):
        engine(service, tmp_path, spending_limit=0.5, concurrency=1, **PRICES).sample([ask(n) for n in range(20)])
    assert len(service.asked) == paid
    more = engine(service, tmp_path, spending_limit=5, **PRICES).sample([ask(n) for n in range(20)])
    assert len(service.asked) == 20 and all(reply.error is None for reply in more)


def test_it_works_in_a_thread_and_beside_a_running_loop(service, tmp_path):
    ours = engine(service, tmp_path)
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.extend(r.text for r in ours.sample([ask(1)])))
    thread.start()
    thread.join()

    async def notebook() -> None:
        said.extend(reply.text for reply in ours.sample([ask(2)]))

    asyncio.run(notebook())
    assert said == ["You said: question 1", "You said: question 2"]


def test_the_gate_halves_after_a_refusal_and_opens_slowly():
    gate = Gate(16, 16.0)
    gate.too_many(0.01)
    gate.too_many(0.01)  # of the same moment
    assert gate.limit == 8
    time.sleep(0.02)
    gate.too_many(0.001)
    assert gate.limit == 4
    for _ in range(5):
        gate.succeeded()
    assert 5 < gate.limit < 6
    for _ in range(1000):
        gate.succeeded()
    assert gate.limit == 16


@pytest.fixture(scope="module")
def llama_server():
    """A real OpenAI-compatible server with a real model: llama.cpp's, with the packaged SmolLM2."""
    xllamacpp = pytest.importorskip("xllamacpp")
    from maft.models.packaged import packaged_gguf

    params = xllamacpp.CommonParams()
    params.model.path = str(packaged_gguf())
    params.n_ctx, params.n_parallel, params.port = 4096, 4, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


@pytest.mark.slow
def test_a_real_server_with_a_real_model_answers(llama_server, tmp_path):
    ours = OpenAi(OpenAiConfig(base_url=llama_server, concurrency=4), tmp_path)

    def request(seed: int, temperature: float, tokens: int = 24) -> Request:
        agent = AgentRef(role="generator", index=0, model="smollm2")
        messages = (Message(role="user", content="What is the capital of France?"),)
        sampling = SamplingParams(temperature=temperature, max_new_tokens=tokens)
        return Request(agent=agent, messages=messages, sampling=sampling, seed=seed)

    greedy, *drawn, cut = ours.sample(
        [request(1, 0.0), *(request(seed, 1.5) for seed in range(2, 6)), request(9, 0.0, 2)]
    )
    assert greedy.error is None and greedy.text.startswith(cut.text) and len(greedy.text) > len(cut.text)
    assert greedy.prompt_tokens > 10 and 1 < greedy.completion_tokens <= 24
    assert len({reply.text for reply in drawn}) > 1, "other seeds draw other replies"
    assert cut.finish_reason == "length" and cut.completion_tokens == 2
    again = OpenAi(OpenAiConfig(base_url=llama_server), tmp_path / "other").sample([request(3, 1.5)])
    assert again[0].text == drawn[1].text, "the same seed draws the same reply"


@pytest.mark.slow
def test_a_whole_debate_on_a_real_server(llama_server, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    Path("real.yaml").write_text(
        "task: {name: arithmetic, low: 1, high: 4, num_train: 2, num_eval: 2}\n"
        "sampling: {train: {generator: {max_new_tokens: 16}, critic: {max_new_tokens: 16}, "
        "summarizer: {max_new_tokens: 16}}}\n"
        f"engine: {{sampler: openai, trainer: 'null'}}\nopenai: {{base_url: '{llama_server}'}}\n"
    )
    code, _, err = call("debate", "real.yaml", "--quiet")
    assert code == 0, err
    from maft import files
    from maft.records import Debate

    held = files.read_records(Path("runs/real/iter_01/debates.jsonl"), Debate)
    assert len(held) == 2 and all(debate.error is None and len(debate.calls()) == 9 for debate in held)
    assert all(call_.reply.completion_tokens <= 16 for debate in held for call_ in debate.calls())


# Services as they are


def choice(**changes: object):
    """Return what changes the message, or with `finish_reason` the choice, of an answer."""

    def change(answer: dict) -> dict:
        first = answer["choices"][0]
        first.update({name: value for name, value in changes.items() if name in first})
        first["message"].update({name: value for name, value in changes.items() if name not in first})
        return answer

    return change


def answered(service: StandIn, folder: Path, change: object, **settings: object) -> Reply:
    service.faults += [Fault(CHAT, 200, change=change)] * 9
    return engine(service, folder, **settings).sample([ask()])[0]


@pytest.mark.parametrize("reason", ["stop", "eos", "eos_token", "end", "end_turn", "", None])
def test_the_ends_of_other_services_are_ends(service, tmp_path, reason):
    reply = answered(service, tmp_path, choice(finish_reason=reason))
    assert (reply.text, reply.finish_reason, reply.error) == ("You said: question 0", "stop", None)


@pytest.mark.parametrize("reason", ["content_filter", "tool_calls", "odd"])
def test_other_ends_are_errors(service, tmp_path, reason):
    reply = answered(service, tmp_path, choice(finish_reason=reason))
    assert reply.error == f"the service ended the reply: {reason}" and reply.text == ""


def test_content_in_parts_is_joined_and_half_a_character_is_replaced(service, tmp_path):
    parts = [
        {"type": "text", "text": "one "},
        {"type": "thinking", "thinking": ["no"]},
        {"type": "text", "text": "two"},
    ]
    assert answered(service, tmp_path, choice(content=parts)).text == "one two"
    service.faults.clear()
    torn = answered(service, tmp_path / "torn", choice(content="a \ud800 b"))
    assert torn.text == "a \ufffd b" and torn.to_json()
    assert engine(service, tmp_path / "torn").sample([ask()])[0] == torn, "it was kept"


def test_replies_that_are_all_reasoning_are_counted_with_the_remedy(service, tmp_path, caplog):
    service.faults += [Fault(CHAT, 200, change=choice(content="", finish_reason="length", reasoning_content="hm"))] * 3
    replies = engine(service, tmp_path).sample([ask(n) for n in range(4)])
    assert [reply.error for reply in replies] == [None] * 4
    (message,) = [message for message in caplog.messages if "reasoning" in message]
    assert message.startswith("3 of 4 replies are empty") and "max_new_tokens" in message


def test_tokens_that_are_not_counted_are_estimated_and_booked_and_said_once(service, tmp_path, caplog):
    service.faults += [Fault(CHAT, 200, change=lambda answer: answer | {"usage": None})] * 6
    ours = engine(service, tmp_path, spending_limit=100, **PRICES)
    replies = ours.sample([ask(n) for n in range(3)]) + ours.sample([ask(n) for n in range(3, 6)])
    assert all(reply.prompt_tokens > 0 and reply.completion_tokens > 0 for reply in replies)
    worst = (len("question 0") + 10) * 0.001 + 7 * 0.01
    kept = files.read_json(tmp_path / "spending.json")
    assert kept["usd"] == kept["estimated_usd"] == pytest.approx(6 * worst) and kept["under_way"] == 0
    assert len([message for message in caplog.messages if "does not count tokens" in message]) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": "the text"}, "the text."),
        ({"detail": "the text"}, "the text."),
        ({"detail": [{"loc": ["body", "messages"], "msg": "the text"}]}, "body.messages: the text."),
        ({"object": "error", "message": "the text"}, "the text."),
    ],
)
def test_the_servers_own_words_are_shown(service, tmp_path, body, said):
    service.faults.append(Fault(CHAT, 400, change=lambda _: body))
    assert engine(service, tmp_path).sample([ask()])[0].error == f"BadRequestError: {said}"


def test_an_error_with_status_200_is_shown_and_tried_again_where_it_is_a_limit(service, tmp_path):
    limit = {"error": {"message": "Rate limit exceeded", "code": 429}}
    service.faults += [Fault(CHAT, 200, change=lambda _: limit)] * 2
    assert engine(service, tmp_path).sample([ask()])[0].text == "You said: question 0"
    service.faults += [Fault(CHAT, 200, change=lambda _: {"error": {"message": "No such thing", "code": 400}})]
    assert engine(service, tmp_path).sample([ask(1)])[0].error == "NotAnAnswer: No such thing."


def test_a_service_that_wants_to_be_paid_ends_the_run_in_its_words(service, tmp_path):
    service.faults.append(Fault(CHAT, 402, "Insufficient Balance"))
    with pytest.raises(StageFailed, match="Insufficient Balance"):
        engine(service, tmp_path, concurrency=1).sample([ask(n) for n in range(9)])
    assert not service.asked


@pytest.mark.parametrize(
    "words",
    [
        "'max_tokens' is too large: 5000. This model supports at most 4096 completion tokens.",
        "top_p must be between 0 and 1",
        "max_tokens must be at least 16",
    ],
)
def test_a_value_out_of_range_is_no_refusal_of_the_parameter(service, tmp_path, words):
    service.faults.append(Fault(CHAT, 400, words))
    replies = engine(service, tmp_path, concurrency=1).sample([ask(n) for n in range(2)])
    assert words.rstrip(".") in replies[0].error and replies[1].error is None
    assert {"max_tokens", "top_p"} <= service.asked[0].keys()


REFUSALS = {
    "seed": {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
    "top_p": {
        "error": {"message": "Unsupported parameter: 'top_p'", "code": "unsupported_parameter", "param": "top_p"}
    },
    "max_tokens": {
        "error": {
            "message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "code": "unsupported_parameter",
            "param": "max_tokens",
        }
    },
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_parameter_that_is_refused_is_left_out_or_renamed_once_and_for_all(service, tmp_path, caplog, name):
    service.refuses = {name: REFUSALS[name]}
    ours = engine(service, tmp_path, concurrency=1)
    plain = SamplingParams(temperature=0.5, max_new_tokens=7)
    replies = ours.sample([ask(n, sampling=plain) for n in range(5)])
    assert [reply.error for reply in replies] == [None] * 5 and len(service.headers) == 6
    assert all(name not in asked for asked in service.asked)
    assert all(
        asked.get("max_completion_tokens" if name == "max_tokens" else "max_tokens") == 7 for asked in service.asked
    )
    assert len([message for message in caplog.messages if f"refuses {name}" in message]) == 1


def test_a_parameter_that_means_something_is_left_out_only_on_request(service, tmp_path):
    service.refuses = {"top_p": REFUSALS["top_p"]}
    with pytest.raises(ConfigError, match=r"does not take top_p = 0\.9: .* openai\.omit=\[top_p\]"):
        engine(service, tmp_path).sample([ask()])
    assert engine(service, tmp_path, omit=["top_p", "seed"], rename={"max_tokens": "limit"}).sample([ask()])[0].text
    assert service.asked[0].keys() == {"model", "messages", "temperature", "limit"}


def test_what_is_under_way_at_ctrl_c_is_waited_for_kept_and_booked(service, tmp_path, monkeypatch):
    started, closed, close = itertools.count(1), threading.Event(), Gate.close
    monkeypatch.setattr(Gate, "close", lambda gate: (close(gate), closed.set()))

    def late(asked):
        if next(started) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        assert closed.wait(60)
        return "late"

    service.say = late
    ours = engine(service, tmp_path, concurrency=4, spending_limit=100, **PRICES)
    with pytest.raises(KeyboardInterrupt):
        ours.sample([ask(n) for n in range(20)])
    assert len(service.asked) == 4
    assert files.read_json(tmp_path / "spending.json")["usd"] == pytest.approx(4 * 0.07)
    assert [reply.text for reply in engine(service, tmp_path).sample([ask(n) for n in range(4)])] == ["late"] * 4
    assert len(service.asked) == 4


def test_what_a_killed_process_had_under_way_is_booked_by_the_next(tmp_path):
    settings = OpenAiConfig(spending_limit=1.0, **PRICES)
    killed = Spending(settings, tmp_path)
    for _ in range(3):
        killed.reserve(0.2, "it")
    killed.settle(0.2, 0.05)
    assert Spending(settings, tmp_path).spent == pytest.approx(0.45) == hosted.spent(tmp_path)
    with pytest.raises(StageFailed, match="could pass"):
        Spending(settings, tmp_path).reserve(0.6, "it")


NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0}
CAMPAIGN = {
    "too many": Fault(CHAT, 429, headers=(("retry-after", "0"),)),
    "request timeout": Fault(CHAT, 408),
    "conflict": Fault(CHAT, 409),
    "refused": Fault(CHAT, 400, "too long"),
    "broken": Fault(CHAT, 500),
    "broken after the work": Fault(CHAT, 500, works=True),
    "bad gateway after the work": Fault(CHAT, 502, works=True),
    "overloaded": Fault(CHAT, 503),
    "gateway timeout after the work": Fault(CHAT, 504, works=True),
    "dropped before": Fault(CHAT, 0),
    "dropped after": Fault(CHAT, -1),
    "late": Fault(CHAT, 200, delay=0.25),
    "HTML": Fault(CHAT, 200, body="<html>A router</html>"),
    "nothing": Fault(CHAT, 200, body=""),
    "half an answer": Fault(CHAT, 200, body='{"choices": ['),
    "no choices": Fault(CHAT, 200, change=lambda answer: answer | {"choices": []}),
    "an error inside": Fault(CHAT, 200, change=lambda _: {"error": {"message": "upstream", "code": 502}}),
    "no usage": Fault(CHAT, 200, change=lambda answer: answer | {"usage": None}),
    "usage of nothing": Fault(CHAT, 200, change=lambda answer: answer | {"usage": NO_USAGE}),
    "usage in words": Fault(CHAT, 200, change=lambda answer: answer | {"usage": {"prompt_tokens": "20"}}),
    "filtered": Fault(CHAT, 200, change=choice(finish_reason="content_filter")),
    "half a character": Fault(CHAT, 200, change=choice(content="\ud800")),
    "in parts": Fault(CHAT, 200, change=choice(content=[{"type": "text", "text": "hm"}])),
}


@pytest.mark.parametrize("fault", CAMPAIGN.values(), ids=CAMPAIGN)
def test_the_limit_holds_whatever_goes_wrong(service, tmp_path, fault):
    """Every fourth request meets a fault; the service bills 0.07 for each answer that it has worked out."""
    assert len(CAMPAIGN) == 23
    handle, count = service.handle, iter(range(10_000))

    def sometimes(http: object, body: bytes) -> None:
        if next(count) % 4 == 3:
            service.faults.append(fault)
        handle(http, body)

    service.handle = sometimes
    for start in range(2):  # each start goes on with the money of the one before
        ours = engine(service, tmp_path, spending_limit=1.0, concurrency=1 + 6 * start, timeout=0.2, **PRICES)
        with pytest.raises(StageFailed, match="could pass openai.spending_limit"):
            ours.sample([ask(n) for n in range(40)])
    billed, kept = 0.07 * len(service.asked), files.read_json(tmp_path / "spending.json")
    worst = (len("question 00") + 10) * 0.001 + 7 * 0.01
    assert billed <= kept["usd"] + 1e-9 <= 1.0 + 1e-9 and kept["usd"] > 1.0 - 2 * worst
