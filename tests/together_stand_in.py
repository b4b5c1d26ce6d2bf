"""A server on loopback with the endpoints of Together's service that maft uses, for tests through Together's client.

Files go the way that the client takes: a redirect to storage, a PUT, and a call that says it is done. Jobs run through
the documented states. Faults work as in `openai_stand_in`.
"""

import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from openai_stand_in import StandIn

STATES = ("pending", "queued", "running", "compressing", "uploading", "completed")
TIME = "2026-11-26T20:00:00Z"


class TogetherStandIn(StandIn):
    """The service; a context manager."""

    price = 0.5
    """US dollars of each job, in its estimate and in its bill."""
    limits: dict[str, Any] = {  # noqa: RUF012
        "supports_full_training": True,
        "supports_vision": False,
        "supports_tools": False,
        "supports_reasoning": False,
        "merge_output_lora": True,
        "max_num_epochs": 20,
        "max_num_evals": 100,
        "max_num_checkpoints": 10,
        "max_learning_rate": 1.0,
        "min_learning_rate": 0.0,
        "min_max_seq_length": 8,
        "max_seq_length_sft": 8192,
        "max_seq_length_dpo": 8192,
        "default_gradient_accumulation_steps": 1,
        "full_training": {"max_batch_size": 32, "max_batch_size_dpo": 16, "min_batch_size": 8},
        "lora_training": {
            "max_batch_size": 32,
            "max_batch_size_dpo": 16,
            "min_batch_size": 8,
            "max_rank": 64,
            "default_rank": 8,
            "target_modules": ["q_proj"],
        },
    }

    def __init__(self, say: Any, states: tuple[str, ...] = STATES) -> None:
        super().__init__(say, states)
        self.names: dict[str, str] = {}
        """Of files whose content has not come yet."""
        self.nameless: set[str] = set()
        """Jobs whose model has no name."""

    def answer(self, http: Any, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if path == "/chat/completions":
            return super().answer(http, path, body)
        with self.lock:
            if path.startswith("/files") or path.startswith("/storage"):
                return self.on_files(http, path, body)
            if path == "/fine-tunes/models/limits":
                (model,) = parse_qs(urlsplit(http.path).query)["model_name"]
                if model == "unknown":
                    return 404, {"error": {"message": "model unknown is not found", "type": "x", "code": "x"}}, {}
                return 200, self.limits | {"model_name": model}, {}
            if path == "/fine-tunes/estimate-price":
                assert json.loads(body)["training_file"] in self.files
                answer = {"estimation_available": True, "allowed_to_proceed": True, "estimated_total_price": self.price}
                return 200, answer, {}
            if path == "/fine-tunes" and http.command == "POST":
                return 200, self.create(json.loads(body)), {}
            if path == "/fine-tunes":
                return 200, {"data": [self.shown(job) for job in self.jobs.values()]}, {}
            if match := re.fullmatch(r"/fine-tunes/([^/]+)(/events)?", path):
                if match[1] not in self.jobs:
                    return 404, {"error": {"message": "no such job", "type": "x", "code": "x"}}, {}
                job = self.jobs[match[1]]
                return 200, self.events(job) if match[2] else self.advance(job), {}
        return 404, {"error": {"message": f"no {path}", "type": "x", "code": "x"}}, {}

    def on_files(self, http: Any, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if path == "/files" and http.command == "GET":
            return 200, {"data": [self.file(name) for name in self.files]}, {}
        if path == "/files":
            filename = re.search(rb"maft-[^\r\n&\"]+?\.jsonl", body)
            assert filename, body
            name = f"file-{len(self.files) + len(self.names)}"
            self.names[name] = filename[0].decode()
            return 302, {}, {"Location": f"{self.url}/storage/{name}", "X-Together-File-Id": name}
        name = path.split("/")[2]
        if path.startswith("/storage"):
            self.files[name] = (self.names.pop(name), body.decode())
            return 200, {}, {}
        return 200, self.file(name), {}

    def file(self, name: str) -> dict[str, Any]:
        return super().file(name) | {"FileType": "jsonl", "Processed": True, "LineCount": 1}

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["training_file"] in self.files
        agent = re.search(r"(generator|critic)-\d+$", asked["suffix"])
        assert agent and len(asked["suffix"]) <= 40
        job = asked | {"id": f"ft-{len(self.jobs)}", "looked": 0}
        self.jobs[job["id"]] = job | {"ends": self.fails.pop(agent[0].replace("-", "_"), "completed")}
        return self.shown(self.jobs[job["id"]])

    def shown(self, job: dict[str, Any]) -> dict[str, Any]:
        status = self.states[min(job["looked"], len(self.states) - 1)]
        status = job["ends"] if status == "completed" else status
        done = status == "completed"
        base = job.get("model") or self.jobs[job["from_checkpoint"]].get("model")
        name = f"me/{base.split('/')[-1]}-{job['suffix']}-{job['id']}"
        return {
            "id": job["id"],
            "status": status,
            "user_id": "me",
            "created_at": TIME,
            "updated_at": TIME,
            "model": job.get("model"),
            "from_checkpoint": job.get("from_checkpoint"),
            "suffix": job["suffix"],
            "training_file": job["training_file"],
            "model_output_name": None if job["id"] in self.nameless else name,
            "adapter_output_name": None,
            "token_count": 1000 if done else None,
            "total_price": round(self.price * 1e9) if done else None,
        }

    def events(self, job: dict[str, Any]) -> dict[str, Any]:
        event = {"object": "fine-tune-event", "created_at": TIME, "type": "epoch_complete", "message": "an epoch"}
        events = [event | {"step": min(job["looked"], 4), "total_steps": 4}]
        if job["ends"] == "error":
            events.append(event | {"type": "job_error", "level": "error", "message": "the set is harmful"})
        return {"data": events}
