"""The Ray cluster: the connection to it, and how many workers it has room for."""

import logging
import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

from maft.config import ClusterConfig
from maft.errors import ConfigError, MissingExtra

SECONDS_TO_ANSWER = 5.0
GB = 10**9


class Needs(NamedTuple):
    """The resources of a node that one worker reserves."""

    cpus: int
    gpus: int
    memory: int
    """Bytes; 0 reserves no memory."""

    def __str__(self) -> str:
        counts = [f"{number} {what}{'s' * (number != 1)}" for number, what in ((self.cpus, "CPU"), (self.gpus, "GPU"))]
        return ", ".join(counts + ([f"{self.memory / GB:g} GB of memory"] if self.memory else []))


class Node(NamedTuple):
    """A living node of the cluster, with its total resources."""

    name: str
    cpus: int
    gpus: int
    memory: int

    def room(self, needs: Needs) -> int:
        """Return how many workers fit."""
        pairs = ((self.cpus, needs.cpus), (self.gpus, needs.gpus), (self.memory, needs.memory))
        return min(has // wanted for has, wanted in pairs if wanted)


def connect(address: str) -> None:
    """Join the cluster at `auto`, `local` or host:port, unless that is done.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: no cluster answers there, or one of another version.
    """
    # otherwise Ray would try for a quarter of an hour, and send usage statistics
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray._private import worker
    except ImportError:
        raise MissingExtra("cluster.ray", "ray") from None
    if ray.is_initialized():
        return
    worker._worker_logs_enabled = False  # otherwise Ray prints forty lines about a dead worker to standard output
    where = address if address == "local" else _reachable(address)
    try:
        ray.init(
            where,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({"include_dashboard": False} if where == "local" else {}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        message = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"cluster.ray = {address}: {where} cannot be joined: {message} Ray and Python must have the same versions "
            "on all nodes."
        ) from None


def _reachable(address: str) -> str:
    """Return host:port, after checking that a server listens there."""
    if "://" in address:
        raise ConfigError(f"cluster.ray = {address} is not the address of a node; maft must run on one. {_ALLOWED}")
    from ray._private import services

    try:
        target = str(services.canonicalize_bootstrap_address(address))
    except ConnectionError:
        raise ConfigError(
            "cluster.ray = auto: this machine is not part of a Ray cluster. Start one with `ray start --head`, join "
            "one with `ray start --address=HOST:6379`, or set cluster.ray=local to use this machine alone."
        ) from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"cluster.ray = {address} is no address: {error}. {_ALLOWED}") from None
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"cluster.ray = {address}: no Ray cluster answers at {target} ({error}). Is `ray start --head` running "
            "there, and the port open? Nothing is lost; run the same command again once it answers."
        ) from None
    return target


_ALLOWED = "Give auto, local, or host:port of the head node, such as 10.0.0.1:6379."


def nodes() -> list[Node]:
    """Return the living nodes that can have workers."""
    import ray

    living = []
    for node in ray.nodes():
        has = node["Resources"]
        cpus, gpus, memory = (int(has.get(kind, 0)) for kind in ("CPU", "GPU", "memory"))
        if node["Alive"] and (cpus or gpus):
            living.append(Node(node["NodeManagerHostname"], cpus, gpus, memory))
    return living


def needs(settings: ClusterConfig, gpus: int, nodes: Sequence[Node]) -> Needs:
    """Return what a worker reserves on these nodes; `gpus` are those of an engine, if the nodes have any.

    >>> needs(ClusterConfig(), 2, [Node("a", 64, 8, 0), Node("head", 8, 0, 0)])
    Needs(cpus=1, gpus=2, memory=0)
    >>> needs(ClusterConfig(), 2, [Node("a", 16, 0, 0), Node("b", 12, 0, 0)])
    Needs(cpus=12, gpus=0, memory=0)
    """
    if settings.gpus_per_worker is not None:
        gpus = settings.gpus_per_worker
    elif not any(node.gpus for node in nodes):
        gpus = 0
    cpus = settings.cpus_per_worker or (1 if gpus else min((node.cpus for node in nodes if node.cpus), default=1))
    return Needs(cpus, gpus, int((settings.memory_gb_per_worker or 0) * GB))


def room(settings: ClusterConfig, needs: Needs, nodes: Sequence[Node]) -> int:
    """Return the number of workers: as many as fit, and at most `num_workers`.

    Raises:
        ConfigError: not one fits on any node.
    """
    fit = sum(node.room(needs) for node in nodes)
    if fit == 0:
        has = "; ".join(f"{node.name}: {Needs(*node[1:])}" for node in nodes) or "none"
        raise ConfigError(
            f"a worker of cluster.ray = {settings.ray} needs {needs}, and no node has that (nodes: {has}). "
            "Set cluster.cpus_per_worker, cluster.gpus_per_worker and cluster.memory_gb_per_worker to what one node "
            "has, or add nodes."
        )
    return min(fit, settings.num_workers or fit)
