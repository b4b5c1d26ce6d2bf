"""A server under load and faults: `python -m bench.serve [--requests 10000] [--clients 64] [--run FOLDER]`.

Without --run the engine is a script that dies every 2,000 calls and says in every reply who speaks and what was asked,
so that an answer by a wrong agent, a lost one and a doubled one are seen. One request in ten is a fault: a client that
leaves, one that sends slowly, a half-closed socket, bad JSON, a body of 100 MB. With --run the agents of a run answer:
questions one at a time, from all clients at once, and as `maft eval` debates.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from maft import engines
from maft.config import parse
from maft.pipeline import rollouts
from maft.records import Message, Reply, Request
from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.serving import http
from maft.serving.app import Limits, Server
from maft.serving.engine import Engine
from maft.serving.society import Question, ServedSociety

DEATHS = 2_000
CHAT = "/v1/chat/completions"
FAULTS = ("leaves", "leaves a stream", "sends slowly", "half-closed", "bad JSON")


class Mortal(Scripted):
    """Says who speaks and what was asked; dies every so often, before it answers."""

    def __init__(self) -> None:
        super().__init__(_say, remember=False)
        self.calls = self.replies = 0

    def _answer(self, request: Request) -> Reply:
        self.calls += 1
        if self.calls % DEATHS == 0:
            raise RuntimeError("the engine was killed")
        self.replies += request.messages[0].content != "What is 7 * 8?"  # that is the probe
        return super()._answer(request)


def _say(request: Request) -> str:
    asked = re.findall(r"#\d+", request.messages[-1].content)
    return f"{request.agent.name} {asked[-1] if asked else 'probe'} \\boxed{{{request.seed % 3}}}"


def serve(folder: Path) -> None:
    """Serve in this process until SIGTERM; print the address, and at the end what the engine has done."""
    society = ServedSociety(RunFolder.existing(folder))
    scripted = society.config.engine.sampler == "scripted"
    sampler: Any = Mortal() if scripted else engines.make_sampler(society.config)
    engine = Engine(sampler, society.probe, at_once=64, queue=512)
    engine.started.result()
    with http.listening("127.0.0.1", 0) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        http.run(Server(society, engine, limits=Limits(timeout=600)).app, listener, 20)
    engine.close()
    told = {"engine": engine.calls, "sampler": getattr(sampler, "replies", engine.calls), "restarts": engine.restarts}
    print(json.dumps(told), flush=True)


class Load:
    """Clients, and what they saw."""

    def __init__(self, url: str, process: int) -> None:
        self.url, self.process = url, process
        self.host, port = url.removeprefix("http://").split(":")
        self.port = int(port)
        self.seconds: list[float] = []
        self.memory: list[int] = []
        self.count: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.calls = 0

    async def run(self, requests: int, clients: int) -> None:
        """Make all requests."""
        numbers = iter(range(requests))
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=clients)) as client:

            async def one() -> None:
                for number in numbers:
                    draw = random.Random(number)
                    if number % 500 == 0:
                        self.memory.append(memory(self.process))
                        await self.fault(number, "100 MB")
                    elif draw.random() < 0.1:
                        await self.fault(number, draw.choice(FAULTS))
                    else:
                        await self.ask(client, number, draw)

            await asyncio.gather(*(one() for _ in range(clients)))

    async def ask(self, client: httpx.AsyncClient, number: int, draw: random.Random) -> None:
        """Ask one question until it is answered, and look whether the answer is the right one."""
        model = draw.choice(
            ["debate", "vote", "vote@6", "base", *(f"{r}_{n}" for r in ("generator", "critic") for n in range(3))]
        )
        question, stream = f"Question #{number}: what is it?", draw.random() < 0.3
        body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        started = time.monotonic()
        while True:
            response = await client.post(f"{self.url}{CHAT}?trace=1", json=body)
            self.count[f"status {response.status_code}"] += 1
            answer = _assembled(response.text) if stream and response.status_code == 200 else response.json()
            if response.status_code == 200 and "error" not in answer:
                break
            self.count["asked again"] += 1
            await asyncio.sleep(0.1)
        self.seconds.append(time.monotonic() - started)
        self.check(model, number, question, answer)

    def check(self, model: str, number: int, question: str, answer: dict[str, Any]) -> None:
        """Note what is wrong with an answer."""
        text, known = answer["choices"][0]["message"]["content"], answer["maft"]
        usage = answer["usage"]
        self.calls += known["calls"]
        if "debate" in known:
            turns = [*known["debate"]["turns"], *known["debate"]["samples"]]
            calls = [call for turn in turns for call in (turn["summary"], turn["call"]) if call]
            speakers = [call["agent"] for call in calls]
            said = [call["reply"]["text"] for call in calls]
            expected = [sum(call["reply"][f"{kind}_tokens"] for call in calls) for kind in ("prompt", "completion")]
        else:
            speakers, said = [model.replace("base", "generator_0")], [text]
            expected = [len(question.split()), len(text.split())]
        if any(not words.startswith(f"{who} #{number} ") for who, words in zip(speakers, said, strict=True)):
            self.wrong.append(f"#{number} {model}: answered by another: {said}")
        if len(speakers) != known["calls"] or [usage["prompt_tokens"], usage["completion_tokens"]] != expected:
            self.wrong.append(f"#{number} {model}: usage {usage}, expected {expected} of {len(speakers)} calls")

    async def fault(self, number: int, kind: str) -> None:
        """Do what clients should not do."""
        self.count[kind] += 1
        body = json.dumps(
            {
                "model": "debate",
                "stream": kind == "leaves a stream",
                "messages": [{"role": "user", "content": f"Question #{number}"}],
            }
        )
        if kind == "bad JSON":
            body = body[:-2]
        length = 100 * 2**20 if kind == "100 MB" else len(body)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\n"
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(f"{head}content-length: {length}\r\n\r\n".encode())
            if kind == "sends slowly":
                for start in range(0, len(body), 40):
                    writer.write(body[start : start + 40].encode())
                    await asyncio.sleep(0.05)
            elif kind == "100 MB":
                for _ in range(100):
                    writer.write(b"x" * 2**20)
                    await writer.drain()
            else:
                writer.write(body.encode())
            if kind == "half-closed":
                writer.write_eof()
            if kind in ("leaves", "leaves a stream"):
                await asyncio.sleep(0.01)
                return
            line = await asyncio.wait_for(reader.readline(), 60)
            self.count[f"{kind}: {line.decode().strip()[9:] or 'closed'}"] += 1
        except ConnectionError:
            self.count[f"{kind}: closed"] += 1
        finally:
            writer.close()


def _assembled(text: str) -> dict[str, Any]:
    """Return a stream as a plain answer."""
    answer: dict[str, Any] = {"choices": [{"message": {"content": ""}}]}
    for line in text.splitlines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line[6:])
        for choice in event.get("choices", ()):
            answer["choices"][0]["message"]["content"] += choice["delta"].get("content") or ""
            if choice["finish_reason"]:
                answer["maft"] = event["maft"]
        answer |= {name: event[name] for name in ("usage", "error") if event.get(name)}
    return answer


def memory(process: int) -> int:
    """Return the resident MiB of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


def under_load(requests: int, clients: int, home: Path) -> None:
    """Run the load against a scripted society, and print what it saw."""
    tree = {"name": "run", "runs_dir": str(home), "task": {"name": "arithmetic"}, "debate": {"summarizer": "none"}}
    with RunFolder.open(parse(tree | {"engine": {"sampler": "scripted", "trainer": "null"}})) as folder:
        pass
    command = [sys.executable, "-m", "bench.serve", "--serve", str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=(home / "log").open("w"), text=True) as server:
        assert server.stdout is not None
        load = Load(server.stdout.readline().strip(), server.pid)
        started = time.monotonic()
        try:
            asyncio.run(load.run(requests, clients))
        except BaseException:
            server.kill()
            print((home / "log").read_text()[-5000:], file=sys.stderr)
            raise
        seconds = time.monotonic() - started
        server.send_signal(signal.SIGTERM)
        told = json.loads(server.stdout.readline())
        server.wait(30)
    load.seconds.sort()
    p50, p99 = (load.seconds[int(len(load.seconds) * share)] for share in (0.5, 0.99))
    print(f"{requests:,} requests of {clients} clients in {seconds:.0f} s: {len(load.seconds):,} answered")
    print(f"seconds to an answer: p50 {p50:.3f}, p99 {p99:.3f}; memory of the server in MiB: {load.memory}")
    print(f"engine: {told['engine']:,} calls, {told['sampler']:,} replies of the sampler, {told['restarts']} restarts")
    print(f"calls in answers: {load.calls:,}; the others are of clients that left")
    print("; ".join(f"{name} {count}" for name, count in sorted(load.count.items())))
    print(f"wrong: {len(load.wrong)}", *load.wrong[:5], sep="\n")
    assert not load.wrong and told["engine"] == told["sampler"] and server.returncode == 0


def with_a_model(folder: Path, clients: int) -> None:
    """Compare one request at a time, all clients at once, and the rollouts of `maft eval`, with the agents of a run."""
    society = ServedSociety(RunFolder.existing(folder))
    few = max(1, clients // 8)
    texts = [
        f"What is {n % 9 + 1} * {n // 9 + 1}?" for n in range(few + 2 * clients)
    ]  # each asked once: no cache helps
    questions = [Question("debate", (Message(role="user", content=text),), 0, {}) for text in texts]
    sampler = engines.make_sampler(society.config)
    engine = Engine(sampler, society.probe, at_once=clients)
    engine.started.result()
    times: dict[str, float] = {}
    for name, asked in (("one at a time", questions[:few]), ("all at once", questions[few:-clients])):
        started = time.monotonic()
        tickets = []
        for question in asked:
            tickets.append(engine.submit(society.dialogue(question)))
            if name == "one at a time":
                tickets[-1].result.result()
        for ticket in tickets:
            ticket.result.result()
        times[name] = len(asked) / (time.monotonic() - started)
    started = time.monotonic()
    rollouts.play_all([society.dialogue(question) for question in questions[-clients:]], sampler)  # type: ignore[misc]
    times["maft eval"] = clients / (time.monotonic() - started)
    engine.close()
    print(f"debates a second: {', '.join(f'{name} {rate:.3f}' for name, rate in times.items())}")
    ratios = [times["all at once"] / times[name] for name in ("one at a time", "maft eval")]
    print(f"all at once is {ratios[0]:.1f} times one at a time, and {ratios[1]:.0%} of maft eval")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--run", type=Path, help="a finished run, whose agents answer")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
    elif given.run:
        with_a_model(given.run, given.clients)
    else:
        with tempfile.TemporaryDirectory() as home:
            under_load(given.requests, given.clients, Path(home))


if __name__ == "__main__":
    main()
