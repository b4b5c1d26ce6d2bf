"""A server on loopback with the endpoints of Fireworks' service that maft uses, for tests through Fireworks' client.

Names are the caller's, as at the service: what exists already is a conflict. Jobs run through the documented states,
and a model is loaded into a deployment in two looks. Faults work as in `openai_stand_in`.
"""

import json
import re
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qs, urlsplit

from openai_stand_in import StandIn

STATES = ("CREATING", "VALIDATING", "PENDING", "RUNNING", "WRITING_RESULTS", "COMPLETED")


def missing(what: str) -> tuple[int, Any, dict[str, str]]:
    return 404, {"code": 5, "message": f"{what} not found", "details": []}, {}


class FireworksStandIn(StandIn):
    """The service; a context manager."""

    accounts = ("me",)
    kinds: dict[str, str]
    """Of models that can be finetuned, by name."""

    def __init__(self, say: Any, states: tuple[str, ...] = STATES) -> None:
        super().__init__(say, states)
        self.url = self.url.removesuffix("/v1") + "/inference/v1"
        self.kinds = {"accounts/fireworks/models/small": "HF_BASE_MODEL"}
        self.sets: dict[str, str | None] = {}
        self.loaded: dict[tuple[str, str], int] = {}

    def answer(self, http: Any, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        path = path.removeprefix("/inference/v1")
        if path == "/chat/completions":
            return super().answer(http, path, body)
        query = {name: values[0] for name, values in parse_qs(urlsplit(http.path).query).items()}
        with self.lock:
            if path == "/accounts":
                return 200, {"accounts": [{"name": f"accounts/{name}"} for name in self.accounts]}, {}
            account, rest = re.fullmatch(r"/accounts/([^/]+)/(.*)", path).groups()  # type: ignore[union-attr]
            kind, _, name = rest.partition("/")
            full = f"accounts/{account}/{rest}"
            if kind == "models":
                return (200, {"name": full, "kind": self.kinds[full]}, {}) if full in self.kinds else missing(full)
            if kind == "datasets":
                return self.on_sets(http, account, name, body)
            if kind == "deployedModels":
                return self.on_deployed(http, body)
            if kind in ("supervisedFineTuningJobs", "dpoJobs") and http.command == "POST":
                return self.on_create(full, query, json.loads(body))
            if full not in self.jobs:
                return missing(full)
            self.jobs[full]["looked"] += 1
            return 200, self.shown(self.jobs[full]), {}

    def on_sets(self, http: Any, account: str, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if not name:
            name = json.loads(body)["datasetId"]
            if name in self.sets:
                return 409, {"code": 6, "message": "exists", "details": []}, {}
            self.sets[name] = None
        elif name.endswith(":upload"):
            head = f"Content-Type: {http.headers['content-type']}\r\n\r\n".encode()
            (part,) = BytesParser(policy=HTTP).parsebytes(head + body).iter_parts()
            self.sets[name.removesuffix(":upload")] = part.get_payload(decode=True).decode()
            return 200, {"id": name}, {}
        if name not in self.sets:
            return missing(name)
        state = "UPLOADING" if self.sets[name] is None else "READY"
        return 200, {"name": f"accounts/{account}/datasets/{name}", "state": state}, {}

    def on_create(self, kind: str, query: dict[str, str], asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        name = kind + "/" + query.get("supervisedFineTuningJobId", query.get("dpoJobId", ""))
        if name in self.jobs:
            return 409, {"code": 6, "message": "exists", "details": []}, {}
        assert self.sets[asked["dataset"].rpartition("/")[2]]
        agent = re.search(r"(generator|critic)-\d+", name)
        assert agent
        ends = self.fails.pop(agent[0].replace("-", "_"), "COMPLETED")
        self.jobs[name] = {"name": name, "looked": 0, "asked": asked, "ends": ends}
        return 200, self.shown(self.jobs[name]), {}

    def shown(self, job: dict[str, Any]) -> dict[str, Any]:
        state = self.states[min(job["looked"], len(self.states) - 1)]
        state = job["ends"] if state == "COMPLETED" else state
        output = job["asked"].get("outputModel") or job["asked"]["trainingConfig"]["outputModel"]
        if state == "COMPLETED":
            self.kinds[f"accounts/me/models/{output}"] = "HF_PEFT_ADDON"
        return job["asked"] | {
            "name": job["name"],
            "state": f"JOB_STATE_{state}",
            "status": {"code": "INVALID_ARGUMENT", "message": "the set is harmful"} if state == "FAILED" else {},
            "jobProgress": {"percent": 50},
            "estimatedCost": {"currencyCode": "USD", "units": "0", "nanos": 250_000_000},
        }

    def on_deployed(self, http: Any, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if http.command == "POST":
            asked = json.loads(body)
            assert asked["model"] in self.kinds and (asked["model"], asked["deployment"]) not in self.loaded
            self.loaded[asked["model"], asked["deployment"]] = 0
            return 200, asked | {"state": "DEPLOYING"}, {}
        rows = []
        for (model, deployment), looks in self.loaded.items():
            self.loaded[model, deployment] += 1
            rows.append({"model": model, "deployment": deployment, "state": "DEPLOYED" if looks else "DEPLOYING"})
        return 200, {"deployedModels": rows}, {}
