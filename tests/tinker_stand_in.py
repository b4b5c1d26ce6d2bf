"""A server on loopback with the endpoints of Tinker's API that training uses, for tests through Tinker's client.

Every call is a future that is asked for once more before it is ready. Weights are a list of the steps that made them, so that a
test can say what a model has learned and from where it went on.
"""

import json
from typing import Any

from openai_stand_in import StandIn


class TinkerStandIn(StandIn):
    """The service; a context manager."""

    def __init__(self, say: Any, tokenizer: str) -> None:
        super().__init__(say)
        self.root = self.url.removesuffix("/v1")
        self.url = f"{self.root}/oai/api/v1"
        self.tokenizer = tokenizer
        self.models: dict[str, list[Any]] = {}
        """By model: steps, each with its learning rate and the tokens and weights of its examples."""
        self.made: list[dict[str, Any]] = []
        """Requests that made a model."""
        self.kept: dict[str, list[Any]] = {}
        """Steps by the path under which weights are kept."""
        self.steps = 0
        """Of all models, paid for."""
        self.stop_after: int | None = None
        """Steps after which every further one fails."""
        self.pending: dict[str, list[Any]] = {}
        self.futures: dict[str, Any] = {}
        self.asked_before: set[str] = set()

    def answer(self, http: Any, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if path.endswith("/chat/completions"):
            return super().answer(http, "/chat/completions", body)
        name = path.removeprefix("/api/v1/")
        if http.headers.get("x-api-key") == "tml-wrong":
            return 401, {"detail": "no such key"}, {}
        with self.lock:
            if name == "forward_backward":
                return 200, self.future(self.backward(body)), {}
            asked = json.loads(body or b"{}")
            if name in ("client/config", "client/dynamic_config", "telemetry", "session_heartbeat"):
                return 200, {"status": "accepted", "type": "session_heartbeat"} if "/" not in name else {}, {}
            if name == "create_session":
                return 200, {"type": "create_session", "session_id": f"session{len(self.made)}"}, {}
            if name.endswith("/finish"):
                return 200, None, {}
            if name == "retrieve_future":
                return 200, self.retrieved(asked["request_id"]), {}
            if name == "get_info":
                data = {"arch": "x", "model_name": "small", "tokenizer_id": self.tokenizer}
                return 200, {"type": "get_info", "model_id": asked["model_id"], "model_data": data}, {}
            return 200, self.future(getattr(self, name)(asked)), {}

    def future(self, result: Any) -> dict[str, Any]:
        name = f"request-{len(self.futures)}"
        self.futures[name] = result
        return {"request_id": name}

    def retrieved(self, name: str) -> Any:
        if name not in self.asked_before:
            self.asked_before.add(name)
            return {"type": "try_again", "request_id": name, "queue_state": "active"}
        return self.futures[name]

    def create_model(self, asked: dict[str, Any]) -> Any:
        if asked["base_model"] == "unknown":
            return {"error": "base model unknown is not supported", "category": "user"}
        return self.model(asked, [])

    def load_weights(self, asked: dict[str, Any]) -> Any:
        return self.model(asked, self.kept[asked["path"]]) | {"type": "load_weights", "path": asked["path"]}

    def model(self, asked: dict[str, Any], steps: list[Any]) -> dict[str, Any]:
        name = f"{asked['session_id']}:train:{asked['model_seq_id']}"
        self.made.append(asked)
        self.models[name] = list(steps)
        return {"type": "create_model", "model_id": name}

    def backward(self, body: bytes) -> Any:
        import numpy as np
        from tinker.proto import tinker_public_pb2 as proto

        asked = proto.ForwardBackwardRequest()
        asked.ParseFromString(body)
        if self.stop_after is not None and self.steps >= self.stop_after:
            return {"error": "the machine caught fire", "category": "server"}
        self.pending[asked.model_id] = [
            (
                [int(token) for token in np.frombuffer(each.loss_fn_inputs["target_tokens"].dense, dtype=np.int64)],
                [float(weight) for weight in np.frombuffer(each.loss_fn_inputs["weights"].dense, dtype=np.float32)],
            )
            for each in asked.data
        ]
        return proto.ForwardBackwardOutput(metrics={"loss:sum": 1.5}).SerializeToString()

    def optim_step(self, asked: dict[str, Any]) -> Any:
        if asked["model_id"] not in self.pending:
            return {"error": "no gradient", "category": "user"}
        self.steps += 1
        self.models[asked["model_id"]].append((asked["adam_params"], self.pending.pop(asked["model_id"])))
        return {"type": "optim_step", "metrics": {}}

    def save_weights(self, asked: dict[str, Any]) -> Any:
        return self.save(asked, "weights") | {"type": "save_weights"}

    def save_weights_for_sampler(self, asked: dict[str, Any]) -> Any:
        return self.save(asked, "sampler_weights") | {"type": "save_weights_for_sampler"}

    def save(self, asked: dict[str, Any], kind: str) -> dict[str, Any]:
        path = f"tinker://{asked['model_id']}/{kind}/{asked['path']}"
        self.kept[path] = list(self.models[asked["model_id"]])
        return {"path": path}
