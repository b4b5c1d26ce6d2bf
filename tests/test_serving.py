"""The server, through OpenAI's own client: names, answers, votes, streams, limits, failures; without a model."""

import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
from helpers import ENVIRONMENT, boxed
from served import client_error, served

import maft
from maft import files
from maft.config import EngineConfig
from maft.errors import ConfigError, DataError, UserError
from maft.records import Debate, Message, Problem, Reply, Request, Vote
from maft.report import transcript
from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.samplers.base import Streaming
from maft.samplers.local import LocalSampler
from maft.samplers.scripted import guess
from maft.serving import api
from maft.serving.app import Limits
from maft.serving.completions import CompletionRequest, shares
from maft.serving.engine import Engine, EngineFailed
from maft.serving.keep import keeping
from maft.serving.society import ServedSociety

QUESTION = "What is 2 + 3?"


def echo(request: Request) -> str:
    """Say who is asked, and what."""
    texts = [f"{message.role}={message.content}" for message in request.messages]
    return f"{request.agent.name} | {' | '.join(texts)} | {boxed(7)}"


@pytest.fixture(scope="module")
def guessing(finished_run):
    with served(finished_run, Scripted(guess, remember=False)) as server:
        yield server


@pytest.fixture(scope="module")
def echoing(finished_run):
    with served(finished_run, Scripted(echo)) as server:
        yield server


def refused(server, status: int, **body) -> str:
    """Post a body, and return the message of the error."""
    body = {"model": "debate", "messages": [{"role": "user", "content": QUESTION}]} | body
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert response.status_code == status, response.text
    return response.json()["error"]["message"]


def test_all_agents_and_votes_can_be_asked_by_name(guessing):
    names = [model.id for model in guessing.client.models.list()]
    assert names[:3] == ["debate", "vote", "generator_0"] and names[-1] == "base" and len(names) == 9
    assert guessing.client.models.retrieve("vote@12").id == "vote@12"
    for name, calls in {"debate": 9, "vote": 3, "vote@12": 12, "critic_1": 1, "base": 1}.items():
        assert guessing.ask(name).model_extra["maft"]["calls"] == calls
    with client_error("NotFoundError", match="generator_0"):
        guessing.ask("gpt-4o")
    with client_error("NotFoundError", match="multiple of the 3"):
        guessing.ask("vote@7")


def test_a_debate_is_answered_as_the_library_answers_it(guessing, finished_run):
    with maft.open(finished_run.path).society() as society:
        expected = society.ask(QUESTION)
    reply = guessing.client.chat.completions.with_raw_response.create(
        model="debate",
        messages=[{"role": "user", "content": QUESTION}],
        seed=finished_run.config.seed,
        extra_query={"trace": "1"},
    )
    answer = json.loads(reply.content)
    known = answer["maft"]
    assert known["answer"] == expected.text and known["agreement"] == round(expected.agreement, 4)
    assert Debate.model_validate(known["debate"]) == expected.debate
    calls = [call.reply for call in expected.debate.calls()]
    assert answer["usage"]["prompt_tokens"] == sum(call.prompt_tokens for call in calls)
    assert answer["usage"]["completion_tokens"] == sum(call.completion_tokens for call in calls)
    assert known["rounds"] == 2 and sum(vote["votes"] for vote in known["votes"]) + known["abstained"] == 3
    assert boxed(expected.text)[6:-1] in answer["choices"][0]["message"]["content"]
    assert "debate" not in guessing.ask("debate", seed=0).model_extra["maft"]


def test_the_seed_is_told_and_repeats_an_answer(guessing):
    first, other = guessing.ask("vote@12"), guessing.ask("vote@12")
    assert first.model_extra["maft"]["seed"] != other.model_extra["maft"]["seed"]
    again = guessing.ask("vote@12", seed=first.model_extra["maft"]["seed"])
    assert again.model_extra["maft"] == first.model_extra["maft"]
    many = guessing.ask("vote@12", seed=5, n=3)
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    alone = guessing.ask("vote@12", seed=6)
    assert many.choices[1].model_extra["maft"]["votes"] == alone.model_extra["maft"]["votes"]
    assert many.usage.total_tokens > 2 * alone.usage.total_tokens


def test_an_agent_gets_the_messages_as_they_are(echoing):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "user", "content": "Quick!"},
    ]
    answer = echoing.ask("critic_1", messages=messages).choices[0].message.content
    assert answer.startswith("critic_1 | system=Be brief. | user=Hi | assistant=Hello | user=2 + 2?\n\nQuick! |")
    told = [request for request in echoing.engine._sampler.history if request.agent.name == "critic_1"][-1]
    assert told.sampling == echoing.society.rules.sampling.critic
    echoing.ask("critic_1", temperature=0, max_completion_tokens=5, top_p=0.5, extra_body={"top_k": -1})
    told = [request for request in echoing.engine._sampler.history if request.agent.name == "critic_1"][-1]
    assert (told.sampling.temperature, told.sampling.max_new_tokens, told.sampling.top_p) == (0, 5, 0.5)
    assert told.sampling.top_k == 0


def test_a_debate_continues_a_conversation(echoing, finished_run):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 7 * 8?"},
        {"role": "assistant", "content": "56"},
        {"role": "user", "content": "And half of it?"},
    ]
    answer = echoing.ask("debate", messages=messages, temperature=0.3, extra_query={"trace": "1"})
    debate = Debate.model_validate(answer.model_extra["maft"]["debate"])
    assert debate.system == "Be brief." and debate.question == "And half of it?"
    assert [message.content for message in debate.history] == ["What is 7 * 8?", "56"]
    assert [message.content for message in debate.dialogue(0)[:3]] == ["Be brief.", "What is 7 * 8?", "56"]
    heard = [r for r in echoing.engine._sampler.history if "56" in [m.content for m in r.messages]]
    assert len(heard) == 9, "summarisers hear the conversation, too"
    assert {r.sampling.temperature for r in heard} == {0.3}


def test_stop_texts_end_the_answer(echoing):
    choice = echoing.ask("generator_0", "one STOP two", stop=["STOP"]).choices[0]
    assert choice.message.content == "generator_0 | user=one " and choice.finish_reason == "stop"


def test_a_stream_ends_with_what_a_plain_answer_says(guessing):
    plain = guessing.ask("debate", seed=3)
    chunks = list(
        guessing.ask("debate", seed=3, stream=True, stream_options={"include_usage": True}, extra_query={"trace": "1"})
    )
    said = [chunk.model_extra["maft"]["said"] for chunk in chunks if "said" in (chunk.model_extra.get("maft") or {})]
    assert [one["agent"] for one in said if one["step"] == 1] == ["generator_0", "generator_1", "generator_2"]
    assert len(said) == 9
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-2].model_extra["maft"]["votes"]
    untraced = list(guessing.ask("debate", seed=3, stream=True))
    assert all(chunk.choices for chunk in untraced)


class Speaking(LocalSampler):
    """Says a text token by token; a token is the number of a letter."""

    text = "one STOP two ends"

    def load(self, model, chat): ...
    def unload(self): ...
    def run(self, take): ...

    def ready(self, model, requests=()):
        return SimpleNamespace(template=SimpleNamespace(decode=lambda tokens: "".join(map(chr, tokens))))

    def answer(self, requests, on_reply):
        for number, _ in enumerate(requests):
            for letter in self.text:
                self.on_tokens(number, [ord(letter)])
            on_reply(number, Reply(text=self.text, finish_reason="stop", completion_tokens=len(self.text)))


def test_an_agent_streams_as_it_speaks(finished_run):
    with served(finished_run, Speaking(EngineConfig())) as server:
        pieces = [chunk.choices[0].delta for chunk in server.ask("critic_0", stream=True)][:-1]
        assert "".join(piece.content for piece in pieces) == Speaking.text and len(pieces) > 10
        assert [piece.role for piece in pieces] == ["assistant"] + [None] * (len(pieces) - 1)
        pieces = [c.choices[0].delta.content or "" for c in server.ask("critic_0", stream=True, stop="STOP")]
        assert "".join(pieces) == "one "
        both = [chunk.choices[0] for chunk in server.ask("critic_0", stream=True, n=2)]
        for index in (0, 1):
            assert "".join(c.delta.content or "" for c in both if c.index == index) == Speaking.text


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"temperature": -1}, "temperature"),
        ({"n": 17}, "n"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"colour": "red"}, "colour"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "user"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}, "system"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_supported_is_refused_by_name(guessing, body, word):
    assert word in refused(guessing, 400, **body)


def test_what_changes_nothing_is_taken(guessing):
    more = {"user": "me", "tools": [], "response_format": {"type": "text"}, "frequency_penalty": 0, "store": False}
    assert guessing.ask("vote", extra_body=more).choices[0].message.content


def test_bad_bodies_get_one_line(guessing):
    url = f"{guessing.url}/v1/chat/completions"
    types = {"content-type": "application/json"}
    assert httpx.post(url, content=b"{", headers=types).status_code == 400
    assert httpx.post(url, content=b"[" * 100_000, headers=types).status_code == 400
    assert httpx.post(url, content=b"[1]", headers=types).status_code == 400
    assert httpx.post(url, content=b"{}").status_code == 415
    assert httpx.post(url, content=b"x" * (2**20 + 1), headers=types).status_code == 413
    chunked = (b"x" * 2**16 for _ in range(20))
    assert httpx.post(url, content=chunked, headers=types).status_code == 413
    assert httpx.get(url).status_code == 405 and "error" in httpx.get(f"{guessing.url}/v1/x").json()


def test_a_key_is_asked_for_and_never_shown(finished_run, caplog):
    with served(finished_run, Scripted(guess), key="s3cret", hosts=("127.0.0.1",)) as server:
        assert server.ask("vote").choices
        for headers in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "Bearer s3crét".encode("latin-1")}):
            for path in ("/v1/models", "/metrics"):
                response = httpx.get(f"{server.url}{path}", headers=headers)
                assert response.status_code == 401 and "s3c" not in response.text
        assert httpx.get(f"{server.url}/health").json()["status"] == "ready"
        assert httpx.get(f"{server.url}/health", headers={"host": "evil.example"}).status_code == 400
    assert "s3c" not in caplog.text


class Held(Streaming):
    """Answers when it is let."""

    def __init__(self):
        self.go, self.asked, self.inner = threading.Event(), 0, Scripted(guess)
        self.go.set()

    def answer(self, requests, on_reply):
        def wait(number, reply):
            self.asked += 1
            assert self.go.wait(20)
            return on_reply(number, reply)

        self.inner.answer(requests, wait)

    def release(self):
        pass


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_says_when_to_come_again(finished_run):
    sampler = Held()
    with served(finished_run, sampler, at_once=1, queue=1) as server:
        sampler.go.clear()
        threads = []
        for load in ((1, 0), (1, 1)):
            threads.append(threading.Thread(target=server.ask, args=("vote",)))
            threads[-1].start()
            until(lambda load=load: server.engine.load == load)
        with client_error("RateLimitError") as error:
            server.ask("vote")
        assert int(error.value.response.headers["retry-after"]) >= 1
        sampler.go.set()
        for thread in threads:
            thread.join()
        assert server.ask("vote").choices


def test_who_leaves_is_asked_for_no_further(finished_run):
    sampler = Held()
    with served(finished_run, sampler) as server:
        sampler.go.clear()
        before = sampler.asked
        with client_error("APITimeoutError"):
            server.ask("debate", timeout=0.3)
        until(lambda: server.engine.load == (1, 0))
        time.sleep(0.1)
        sampler.go.set()
        until(lambda: server.engine.load == (0, 0))
        assert sampler.asked - before == 3, "the first round was begun, the second is never asked"


def test_a_request_that_takes_too_long_is_ended(finished_run):
    sampler = Held()
    with served(finished_run, sampler, limits=Limits(timeout=0.2)) as server:
        sampler.go.clear()
        with client_error("InternalServerError", match=r"0\.2 s") as error:
            server.ask("vote")
        assert error.value.status_code == 504
        with client_error("APIError", match=r"0\.2 s"):
            list(server.ask("vote", stream=True))
        sampler.go.set()


class Mortal(Scripted):
    """Dies at the calls with given numbers, in the midst of a wave."""

    def __init__(self, *deaths: int, say=guess):
        super().__init__(say)
        self.deaths, self.count, self.released = set(deaths), 0, 0

    def _answer(self, request):
        self.count += 1
        if self.count in self.deaths:
            raise RuntimeError("the engine died")
        return super()._answer(request)

    def release(self):
        self.released += 1


def test_an_engine_that_dies_is_started_again_and_no_reply_is_lost_or_doubled(finished_run):
    with served(finished_run, Scripted(guess)) as server:
        expected = server.ask("debate", seed=4)
    sampler = Mortal(7 + 5)  # after seven probes, the second summary
    with served(finished_run, sampler) as server:
        answer = server.ask("debate", seed=4)
        assert answer.usage == expected.usage and answer.choices[0].message == expected.choices[0].message
        assert server.engine.restarts == 1 and sampler.released == 1
        assert server.engine.calls == 9
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_request_that_kills_the_engine_twice_is_given_up(finished_run):
    sampler = Mortal(8, 8 + 1 + 7)
    with served(finished_run, sampler) as server:
        with client_error("InternalServerError", match="failed twice") as error:
            server.ask("debate")
        assert error.value.status_code == 503
        assert server.ask("debate").choices


def test_another_adapter_after_a_restart_is_refused(finished_run, monkeypatch):
    monkeypatch.setattr("maft.serving.engine.RETRY_SECONDS", 0.05)
    names = ["right"]
    sampler = Mortal(8, say=lambda request: f"{names[-1]} {request.agent.name}")
    with served(finished_run, sampler) as server:
        names.append("wrong")
        with client_error("InternalServerError", match="as before"):
            server.ask("generator_0")
        assert httpx.get(f"{server.url}/health").status_code == 503
        with client_error("InternalServerError"):
            server.ask("generator_0")
        names.append("right")
        until(lambda: server.engine.state == "ready")
        assert server.ask("generator_0").choices[0].message.content == "right generator_0"


def test_an_agent_that_cannot_be_loaded_is_found_at_the_start(finished_run):
    bad = Reply(text="", finish_reason="error", error="no such adapter")
    society = ServedSociety(finished_run)
    engine = Engine(Scripted(lambda request: bad if request.agent.name == "critic_2" else "hi"), society.probe)
    with pytest.raises(DataError, match="critic_2.*no such adapter"):
        engine.started.result()
    with pytest.raises(UserError, match="newest are 2"):
        ServedSociety(finished_run, 3)


def test_a_question_that_fails_is_an_error_of_the_client(finished_run):
    def say(request: Request) -> str | Reply:
        long = len(request.messages[-1].content) > 500
        return Reply(text="", finish_reason="error", error="too long for the context") if long else guess(request)

    with served(finished_run, Scripted(say)) as server:
        for model in ("generator_0", "debate"):
            with client_error("BadRequestError", match="too long for the context"):
                server.ask(model, "x" * 600)


def test_an_error_in_a_protocol_ends_its_dialogue_only():
    def bad():
        yield []
        raise ValueError("no")

    def good():
        return "fine"
        yield

    engine = Engine(Scripted(guess), lambda sampler: None)
    with pytest.raises(ValueError, match="no"):
        engine.submit(bad()).result.result(5)
    assert engine.submit(good()).result.result(5) == "fine"
    engine.close()
    assert engine.state == "closed" and engine.load == (0, 0)


def test_the_engine_goes_on_when_its_only_client_leaves_before_the_first_wave():
    def good():
        return "fine"
        yield

    engine = Engine(Scripted(guess), lambda sampler: None)
    for _ in range(5):
        ticket = engine.submit(good())
        time.sleep(0.005)  # the engine waits 0.02 s for more to begin with
        engine.leave(ticket)
        time.sleep(0.05)
    assert engine.submit(good()).result.result(5) == "fine"
    engine.close()


def test_an_engine_that_loses_requests_is_noticed():
    class Forgetful:
        def answer(self, requests, on_reply): ...
        def sample(self, requests, on_reply=None):
            return [Reply(text="x", finish_reason="stop") for _ in requests][:0] if requests else []

        def release(self): ...

    def ask():
        yield [object()]

    engine = Engine(Forgetful(), lambda sampler: None)
    with pytest.raises((EngineFailed, AssertionError)):
        engine.submit(ask()).result.result(5)
    engine.close()


def test_debates_are_kept_as_a_run_that_can_be_shown(finished_run, tmp_path):
    kept = tmp_path / "kept"
    for _ in range(2):  # a second server adds to what is there
        with keeping(kept, finished_run, 2) as keeper, served(finished_run, Scripted(guess), keeper=keeper) as server:
            answers = [server.ask("debate"), server.ask("vote@6"), server.ask("generator_0")]
    folder = RunFolder.existing(kept)
    problems = files.read_records(folder.problems("train"), Problem)
    debates = files.read_records(folder.debates(3), Debate)
    votes = files.read_records(folder.votes(3), Vote)
    assert [p.id for p in problems] == [d.problem_id for d in debates] == [v.problem_id for v in votes]
    assert len(debates) == 4 and [len(d.calls()) for d in debates] == [9, 6, 9, 6]
    assert [v.label for v in votes[2:]] == [a.model_extra["maft"]["answer"] for a in answers[:2]]
    assert problems[2].id.startswith(answers[0].id.removeprefix("chatcmpl-"))
    text = transcript.render(transcript.load(folder, problems[0].id))
    told = transcript.load(folder, problems[0].id)
    talk = (Message(role="user", content="What is 1 + 1?"), Message(role="assistant", content="Two.\x1b[J"))
    after_a_talk = transcript.render(told._replace(debate=told.debate.model_copy(update={"history": talk})))
    assert "| user: What is 1 + 1?\n| assistant: Two.\\x1b[J\n" in after_a_talk
    assert QUESTION in text and "agents finetuned twice" in text and "Pseudo-label" in text
    with keeping(kept, finished_run, 2), pytest.raises(DataError, match="in use"), keeping(kept, finished_run, 2):
        pass


def test_prometheus_is_told(guessing):
    guessing.ask("vote")
    refused(guessing, 400, n=0)
    text = httpx.get(f"{guessing.url}/metrics").text
    assert 'maft_requests_total{model="vote",status="200"}' in text and "maft_engine_ready 1.0" in text
    assert 'status="400"' in text and 'model="vote"' in text and "maft_waiting_dialogues 0.0" in text


def test_a_half_closed_socket_does_no_harm(guessing):
    host, port = guessing.url.removeprefix("http://").split(":")
    for text in (b"", b"POST /v1/chat/completions HTTP/1.1\r\n", b"\x00\xff" * 50):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(5)
            while connection.recv(1024):
                pass
    assert guessing.ask("vote").choices


def test_neighbours_of_one_role_become_one_message():
    messages = [api.ChatMessage(role=role, content=role) for role in ("developer", "system", "user", "user")]
    assert [m.content for m in api.conversation(messages)] == ["developer\n\nsystem", "user\n\nuser"]


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_finishes_what_has_begun(finished_run, tmp_path):
    command = [sys.executable, "-m", "maft", "serve", str(finished_run.path), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as server:
        url = server.stdout.readline().strip()
        body = {"model": "vote@255", "n": 16, "messages": [{"role": "user", "content": QUESTION}]}
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(httpx.post, f"{url}/v1/chat/completions", json=body, timeout=30)
            until(lambda: not (httpx.get(f"{url}/health").json()["active"] == 0 and not answer.done()), 20)
            server.send_signal(signal.SIGTERM)
            assert answer.result().json()["usage"]["completion_tokens"] > 0
        assert server.wait(20) == 0 and "Stopped, after" in server.stderr.read()


def test_the_command_refuses_what_would_be_open_to_others(call, finished_run, monkeypatch):
    run = str(finished_run.path)
    code, _, err = call("serve", run, "--host", "0.0.0.0")
    assert code == 2 and "--api-key-env" in err
    code, _, err = call("serve", run, "--api-key-env", "sk-given-by-mistake")
    assert code == 2 and "--api-key-env" in err and "mistake" not in err
    code, _, err = call("serve", run, "--iteration", "9")
    assert code == 2 and "not finetuned" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = call("serve", run, "--port", str(taken.getsockname()[1]))
    assert code == 2 and "in use" in err


def chat(monkeypatch, call, run, *lines: str) -> str:
    """Type lines into `maft chat`, and return what it prints."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    code, out, err = call("chat", str(run), "--seed", "0")
    assert code == 0, err
    return out


def test_a_talk_shows_who_says_what_and_the_vote(call, finished_run, monkeypatch, tmp_path):
    saved = tmp_path / "talk.jsonl"
    lines = [
        QUESTION,
        "/vote 6",
        "And 4 more?",
        "/agent critic_1",
        "Sure?",
        f"/save {saved}",
        "/new",
        "/nothing",
        "/quit",
    ]
    out = chat(monkeypatch, call, finished_run.path, *lines)
    assert "generator_0" in out and "Round 2: critic_0" in out and "Vote: " in out and "9 calls" in out
    assert "6 calls" in out and "1 calls" in out and "there is no command /nothing" in out
    records = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [record["model"] for record in records] == ["debate", "vote@6", "critic_1"]
    assert [record["seed"] for record in records] == [0, 1, 2]
    debate = Debate.model_validate(records[1]["debate"])
    assert [message.content for message in debate.history] == [QUESTION, records[0]["text"]]
    with maft.open(finished_run.path).society() as society:
        assert records[0]["answer"] == society.ask(QUESTION).text


def test_a_talk_survives_mistakes(call, finished_run, monkeypatch, tmp_path):
    out = chat(
        monkeypatch, call, finished_run.path, "/agent critic_9", "/vote 7", "/save", f"/save {tmp_path}", "/help"
    )
    assert "there is no model 'critic_9'" in out and "multiple of the 3" in out and "needs the name" in out
    assert "Is a directory" in " ".join(out.split()) and "/debate  " in out


def test_a_finished_run_is_no_folder_for_debates(finished_run):
    with pytest.raises(ConfigError, match="is a finished run"), keeping(finished_run.path, finished_run, 1):
        pass


class Particular(Streaming):
    """Refuses to draw from the likeliest tokens only, as a hosted service does, and takes all that waits at once."""

    def __init__(self):
        self.inner, self.released = Scripted(guess), 0

    def answer(self, requests, on_reply):
        if any(request.sampling.top_k for request in requests):
            raise ConfigError("the service does not know top_k")
        self.inner.answer(requests, on_reply)

    def release(self):
        self.released += 1


def test_a_parameter_that_the_engine_refuses_fails_its_own_request_only(finished_run, monkeypatch):
    monkeypatch.setattr("maft.serving.engine.LINGER", 0.5)
    sampler = Particular()
    with served(finished_run, sampler) as server, ThreadPoolExecutor(4) as threads:
        well = [threads.submit(server.ask, "debate", seed=1) for _ in range(3)]
        bad = threads.submit(server.ask, "generator_0", extra_body={"top_k": 5})
        with client_error("BadRequestError", match="does not know top_k"):
            bad.result()
        assert len({answer.result().choices[0].message.content for answer in well}) == 1
        assert server.engine.restarts == 0 and sampler.released == 0


def test_requests_of_many_choices_leave_places_to_others(finished_run):
    def talk(name: str):
        yield [Request(agent=agent, messages=(Message(role="user", content=name),), sampling=how, seed=0)]
        ended.append(name)

    society = ServedSociety(finished_run)
    agent, how, ended = society.agents["generator_0"], society.sampling("generator_0", {}), []
    sampler = Held()
    sampler.go.clear()
    engine = Engine(sampler, lambda _: None, at_once=2)
    tickets = [engine.submit(talk("many"), group="many") for _ in range(6)]
    until(lambda: engine.load == (2, 4))
    tickets += [engine.submit(talk("one"), group="one")]
    sampler.go.set()
    for ticket in tickets:
        ticket.result.result(10)
    assert "one" in ended[:4], "the second request does not wait for all of the first"
    engine.close()


def test_an_address_of_the_new_protocol_is_known(finished_run):
    hosts = ("127.0.0.1", "localhost", "::1")
    with served(finished_run, Scripted(guess), hosts=hosts) as server:
        for host in ("[::1]:8000", "localhost:1", "LOCALHOST", "127.0.0.1"):
            assert httpx.get(f"{server.url}/health", headers={"host": host}).status_code == 200, host
        for host in ("[::2]:8000", "evil.example", "[", "localhost.evil.example"):
            response = httpx.get(f"{server.url}/health", headers={"host": host})
            assert response.status_code == 400 and "is not served here" in response.json()["error"]["message"]


def test_idle_connections_lock_nobody_out(finished_run):
    with served(finished_run, Scripted(guess), at_once=1, queue=1) as server:
        idle = [socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) for _ in range(100)]
        idle[0].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: ")
        assert server.ask("vote").choices
        for connection in idle:
            connection.close()


def test_connections_without_a_request_are_closed(finished_run, monkeypatch):
    monkeypatch.setattr("maft.serving.http.IDLE_SECONDS", 0.2)
    with served(finished_run, Scripted(guess)) as server:
        for text in (b"", b"GET /health HTTP/1.1\r\nhost: ", b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
                connection.sendall(text)
                connection.settimeout(5)
                while connection.recv(1024):
                    pass
        assert server.ask("vote").choices


def counted(server) -> dict[str, float]:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("maft_request")}


def test_streams_and_faults_of_ours_are_counted_by_how_they_ended(finished_run, monkeypatch):
    sampler = Held()
    with served(finished_run, sampler, limits=Limits(timeout=0.3)) as server:
        assert list(server.ask("vote", stream=True))
        sampler.go.clear()
        with client_error("APIError", match=r"0\.3 s"):
            list(server.ask("debate", stream=True))
        sampler.go.set()
        monkeypatch.setattr(api.ChatRequest, "questions", lambda self, seed: 1 / 0)
        with client_error("InternalServerError"):
            server.ask("base")
        numbers = counted(server)
    assert numbers['maft_requests_total{model="vote",status="200"}'] == 1
    assert numbers['maft_requests_total{model="debate",status="504"}'] == 1
    assert numbers['maft_requests_total{model="base",status="500"}'] == 1
    assert numbers['maft_request_seconds_count{model="vote"}'] == 1
    assert 'maft_request_seconds_count{model="debate"}' not in numbers


def test_the_limit_of_a_reply_holds_where_a_client_names_none(finished_run):
    with served(finished_run, Scripted(echo), limits=Limits(max_tokens=5)) as server:
        server.ask("debate")
        server.ask("critic_1", max_tokens=3)
        asked = [request.sampling.max_new_tokens for request in server.engine._sampler.history]
    assert set(asked[7:]) == {3, 5}, "after seven probes"


def test_a_key_may_have_any_letters(finished_run):
    with served(finished_run, Scripted(guess), key="s3crét") as server:
        for sent, status in {"s3crét".encode(): 200, "s3crét".encode("latin-1"): 401, b"s3cret": 401}.items():
            headers = {"authorization": b"Bearer " + sent}
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == status


def test_nothing_is_as_good_as_no_word(guessing):
    nothing = {"max_tokens": None, "stop": None, "n": None, "tools": None, "temperature": None, "best_of": None}
    assert guessing.ask("vote", extra_body=nothing).choices
    body = {"model": "base", "prompt": ["x"] * 200, "n": 2} | dict.fromkeys(("echo", "max_tokens", "suffix", "stop"))
    response = httpx.post(f"{guessing.url}/v1/completions", json=body)
    assert response.status_code == 400 and "200 prompts times n = 2" in response.json()["error"]["message"]
    body |= {"prompt": "x", "n": None}
    response = httpx.post(f"{guessing.url}/v1/completions", json=body)
    assert response.status_code == 400 and "does not work with this engine" in response.json()["error"]["message"]


def test_the_texts_of_a_request_are_written_in_shares():
    asked = CompletionRequest(model="base", prompt=["x"] * 40, n=3)
    parts = shares(asked)
    assert [place for part in parts for place in part] == list(range(40)) and len(parts) == 8
    assert shares(CompletionRequest(model="base", prompt=[[1], [2]])) == [range(2)]


def test_an_interrupt_stops_an_answer_and_not_the_talk(call, finished_run, monkeypatch):
    from maft.serving.talk import Talk

    show, interrupts = Talk._say, [1]

    def interrupted(self, question, said):
        if interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        show(self, question, said)

    monkeypatch.setattr(Talk, "_say", interrupted)
    out = chat(monkeypatch, call, finished_run.path, QUESTION, "/agent base", "And now?")
    assert "Stopped." in out and "1 calls" in out and "Vote: " not in out


def test_a_file_of_others_is_not_overwritten(call, finished_run, monkeypatch, tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.write_text("theirs")
    out = chat(monkeypatch, call, finished_run.path, f"/save {theirs}", f"/save {ours}", f"/save {ours}")
    assert theirs.read_text() == "theirs" and "exists, and is not of this talk" in " ".join(out.split())
    assert out.count("0 answers in") == 2
