"""A server on loopback with the endpoints of OpenAI's service that maft uses, for tests through the official client.

It answers chat completions with a function of the question, takes files, and runs finetuning jobs through the
documented states; it loads and unloads adapters as vLLM's server does. Faults are put in a queue: each is given, once, to the next request for its path.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

STATES = ("validating_files", "queued", "running", "running", "succeeded")
KEY = "sk-secret-of-the-tests"


class Fault(NamedTuple):
    """What the next request for a path gets instead of an answer."""

    path: str
    status: int
    """0 drops the connection; -1 does the work, then drops it; 200 answers as ever, after `delay`."""
    message: str = "no"
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    method: str | None = None
    """`GET` or `POST`; None is either."""
    delay: float = 0.0
    body: str | None = None
    """Sent, with status 200, in place of an answer."""
    change: Callable[[dict[str, Any]], Any] | None = None
    """Changes the answer before it is sent."""
    works: bool = False
    """Does the work, and bills it, before a status that says otherwise."""


class StandIn:
    """The service; a context manager."""

    def __init__(self, say: Callable[[dict[str, Any]], str], states: tuple[str, ...] = STATES) -> None:
        self.say = say
        self.states = states
        self.faults: list[Fault] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.files: dict[str, tuple[str, str]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.fails: dict[str, str] = {}
        """By agent: how its next job ends, `failed` or `cancelled`."""
        self.adapters: dict[str, str] | None = None
        """Paths by name, where adapters can be loaded."""
        self.adapter_names: list[str] = []
        """Every name that was ever given."""
        self.refuses: dict[str, dict[str, Any]] = {}
        """By parameter: the body of the error 400 that a request with it gets."""
        self.most_at_once = 0
        self._at_once = 0
        self.lock = threading.RLock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

            def do_GET(self) -> None:
                outer.handle(self, b"")

            def do_POST(self) -> None:
                outer.handle(self, self.rfile.read(int(self.headers["content-length"] or 0)))

            do_PUT = do_POST

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None: ...

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> "StandIn":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def handle(self, http: Any, body: bytes) -> None:
        path = http.path.partition("?")[0].removeprefix("/v1")
        with self.lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.headers.append({name.lower(): value for name, value in http.headers.items()})
            fits = (f for f in self.faults if path.startswith(f.path) and f.method in (None, http.command))
            fault = next(fits, None)
            if fault:
                self.faults.remove(fault)
        try:
            if fault:
                time.sleep(fault.delay)
            if fault is None or fault.status in (-1, 200):
                status, content, headers = self.answer(http, path, body)
                content = fault.change(content) if fault and fault.change else content
            else:
                if fault.works:
                    self.answer(http, path, body)
                error = {"message": fault.message, "code": fault.code, "type": "error", "param": None}
                status, content, headers = fault.status, {"error": error}, dict(fault.headers)
                content = fault.change(content) if fault.change else content
            if fault and fault.status <= 0:
                http.close_connection = True
                http.connection.close()
                return
            page = fault.body if fault else None
            raw = isinstance(content, bytes)
            data = content if raw else (json.dumps(content) if page is None else page).encode()
            kind = "application/x-protobuf" if raw else "text/html" if page and page[0] == "<" else "application/json"
            http.send_response(status)
            for name, value in {
                **headers,
                "content-type": kind,
                "content-length": len(data),
            }.items():
                http.send_header(name, str(value))
            http.end_headers()
            http.wfile.write(data)
        finally:
            with self.lock:
                self._at_once -= 1

    def answer(self, http: Any, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if path == "/chat/completions":
            for name, error in self.refuses.items():
                if name in json.loads(body):
                    return 422 if "detail" in error else 400, error, {}
            return 200, self.completion(json.loads(body)), {}
        with self.lock:
            if self.adapters is not None and path in ("/load_lora_adapter", "/unload_lora_adapter"):
                return self.adapter(path, json.loads(body))
            if path == "/files" and body:
                return 200, self.upload(http, body), {}
            if path == "/files":
                return 200, {"object": "list", "has_more": False, "data": [self.file(name) for name in self.files]}, {}
            if path == "/fine_tuning/jobs" and body:
                return 200, self.create(json.loads(body)), {}
            if path == "/fine_tuning/jobs":
                return (
                    200,
                    {"object": "list", "has_more": False, "data": [self.shown(j) for j in self.jobs.values()]},
                    {},
                )
            if found := re.fullmatch(r"/fine_tuning/jobs/([^/]+)(/events)?", path):
                job = self.jobs[found[1]]
                return 200, self.events(job) if found[2] else self.advance(job), {}
        return 404, {"error": {"message": f"no {path}", "code": None, "type": "error", "param": None}}, {}

    def adapter(self, path: str, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        assert self.adapters is not None
        name = asked["lora_name"]
        if path == "/load_lora_adapter":
            if name in self.adapter_names:
                return 400, {"error": {"message": f"{name} was used before", "code": 400, "type": "error"}}, {}
            self.adapter_names.append(name)
            self.adapters[name] = asked["lora_path"]
            return 200, f"Success: LoRA adapter '{name}' added successfully.", {}
        if name not in self.adapters:
            return 404, {"error": {"message": f"{name} is not loaded", "code": 404, "type": "error"}}, {}
        del self.adapters[name]
        return 200, f"Success: LoRA adapter '{name}' removed successfully.", {}

    def completion(self, asked: dict[str, Any]) -> dict[str, Any]:
        said = self.say(asked)
        with self.lock:
            self.asked.append(asked)
        return {
            "id": "chat",
            "object": "chat.completion",
            "created": 1,
            "model": asked["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "logprobs": {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": []}]}
                    if asked.get("logprobs")
                    else None,
                    **({"token_ids": [7]} if asked.get("return_token_ids") else {}),
                    "message": {"role": "assistant", "content": said},
                }
            ],
            "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
        }

    def upload(self, http: Any, body: bytes) -> dict[str, Any]:
        head = f"Content-Type: {http.headers['content-type']}\r\n\r\n".encode()
        parts = {p.get_param("name", header="content-disposition"): p for p in BytesParser(policy=HTTP).parsebytes(head + body).iter_parts()}  # fmt: skip
        name = f"file-{len(self.files)}"
        self.files[name] = (parts["file"].get_filename(), parts["file"].get_payload(decode=True).decode())
        return self.file(name)

    def file(self, name: str) -> dict[str, Any]:
        filename, text = self.files[name]
        return {
            "id": name,
            "object": "file",
            "bytes": len(text),
            "created_at": 1,
            "filename": filename,
            "purpose": "fine-tune",
            "status": "processed",
        }

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        number = len(self.jobs)
        agent = asked["metadata"]["agent"]
        job = asked | {"id": f"ftjob-{number}", "looked": 0, "ends": self.fails.pop(agent, "succeeded")}
        self.jobs[job["id"]] = job
        return self.shown(job)

    def advance(self, job: dict[str, Any]) -> dict[str, Any]:
        job["looked"] += 1
        return self.shown(job)

    def shown(self, job: dict[str, Any]) -> dict[str, Any]:
        status = self.states[min(job["looked"], len(self.states) - 1)]
        status = job["ends"] if status == "succeeded" else status
        done = status == "succeeded"
        return {
            "id": job["id"],
            "object": "fine_tuning.job",
            "created_at": 1,
            "model": job["model"],
            "training_file": job["training_file"],
            "status": status,
            "fine_tuned_model": f"ft:{job['model'].split(':')[-1]}:{job['suffix']}:{job['id']}" if done else None,
            "trained_tokens": 1000 if done else None,
            "error": {"code": "x", "message": "the set is harmful", "param": None} if status == "failed" else None,
            "hyperparameters": {},
            "organization_id": "org",
            "result_files": [],
            "seed": job["seed"],
            "metadata": job["metadata"],
        }

    def events(self, job: dict[str, Any]) -> dict[str, Any]:
        step = min(job["looked"], 4)
        event = {
            "id": "e",
            "object": "fine_tuning.job.event",
            "created_at": 1,
            "level": "info",
            "message": f"Step {step}/4",
            "type": "metrics",
            "data": {"step": step, "total_steps": 4, "train_loss": 1.0},
        }
        return {"object": "list", "has_more": False, "data": [event]}
