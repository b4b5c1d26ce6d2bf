"""Engines for tests of a Ray cluster: scripted, and able to die or to fail at a given moment, once for all workers."""

import os
import signal
import time
from pathlib import Path

from maft.errors import DataError, MissingExtra, StageFailed
from maft.records import AgentRef
from maft.samplers import Scripted
from maft.samplers.scripted import guess
from maft.trainers import NullTrainer

TROUBLE = Path(os.environ.get("MAFT_TROUBLE", "/nonexistent"))
"""A folder with files whose names say what is to go wrong, and with traces of what has been done."""


def trouble(kind: str, agent: str = "") -> None:
    """Do what a file asks for; a file `once` is taken away first, so that only one worker finds it.

    In the file may stand to which agent or on which node it is to happen. `meet` waits until both nodes have had work
    of this kind: one that starts quickly could else do all of it.
    """
    import ray

    node = ray.get_runtime_context().get_node_id()
    (TROUBLE / f"met-{kind}-{node}").touch()
    for file in TROUBLE.glob(f"{kind}-*"):
        what, _, times = file.name.removeprefix(f"{kind}-").partition("-")
        try:
            if file.read_text() not in ("", agent, node):
                continue
            if times == "once":
                file.rename(TROUBLE / f"done-{file.name}")
        except FileNotFoundError:
            continue
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            (TROUBLE / f"hangs-{os.getpid()}").touch()
            time.sleep(60)
        if what == "wait":
            time.sleep(float(times or 0.2))
        if what == "meet":
            patience = time.monotonic() + 60
            while len(list(TROUBLE.glob(f"met-{kind}-*"))) < 2 and time.monotonic() < patience:
                time.sleep(0.02)
        if what == "refuse":
            raise DataError("model x does not exist. Give another one.")
        if what == "lack":
            raise MissingExtra("engine.sampler=x", "x")
        if what == "fail":
            raise StageFailed("training critic_0 failed (ended by SIGKILL, perhaps out of memory).")


class Engine(Scripted):
    def __init__(self) -> None:
        super().__init__(guess)

    def answer(self, requests, on_reply):
        adapters = {request.agent.adapter for request in requests} - {None}
        assert all((Path(adapter) / "adapter.json").exists() for adapter in adapters)
        trouble("sample")
        with (TROUBLE / "workers").open("a") as log:
            log.write(f"{os.getpid()} {len(requests)}\n")
        super().answer(requests, on_reply)


class Trainer(NullTrainer):
    def train(self, jobs, settings, on_progress):
        for job in jobs:
            trouble("train", job.agent)
            with (TROUBLE / "trained").open("a") as log:
                log.write(f"{job.agent} {os.getpid()}\n")
        super().train(jobs, settings, on_progress)


def engine(config) -> Engine:
    return Engine()


def trainer(config) -> Trainer:
    return Trainer()


def agent(adapter: str | None = None) -> AgentRef:
    return AgentRef(role="generator", index=0, model="m", adapter=adapter)
