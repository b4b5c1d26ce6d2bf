"""What of a cluster needs none: shares, room, errors before anything starts."""

import pickle
import socket

import pytest
from helpers import settings, user

from maft import errors
from maft.cluster import connection
from maft.cluster.connection import Needs, Node
from maft.cluster.pool import cause_of_death, on_worker
from maft.cluster.sampler import divide
from maft.cluster.storage import Place
from maft.config import ClusterConfig, digest
from maft.errors import ConfigError, DataError, MaftError, MissingExtra
from maft.records import AgentRef, Request, SamplingParams


def request(question: str, adapter: str | None = None) -> Request:
    agent = AgentRef(role="generator", index=0, model="m", adapter=adapter)
    return Request(agent=agent, messages=(user(question),), sampling=SamplingParams(), seed=1)


def test_shares_are_equal_and_have_every_request_once():
    for num_requests in range(1, 30):
        for num_shares in range(1, 9):
            shares = divide([request(f"q{n // 3}", f"a{n % 3}") for n in range(num_requests)], num_shares)
            sizes = [len(share) for share in shares]
            assert sorted(n for share in shares for n in share) == list(range(num_requests))
            assert len(shares) == min(num_shares, num_requests) and max(sizes) - min(sizes) <= 1


def test_an_untrained_society_is_divided_by_question_and_neighbours_part():
    requests = [request(f"q{n // 3}") for n in range(12)]
    assert divide(requests, 2) == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]


def test_finetuned_agents_stay_together_so_that_no_engine_changes_weights_more_often_than_it_must():
    requests = [request(f"q{n // 3}", f"a{n % 3}") for n in range(24)]
    shares = divide(requests, 2)
    assert [sorted({requests[n].agent.adapter for n in share}) for share in shares] == [["a0", "a1"], ["a1", "a2"]]
    assert all(len({requests[n].agent.adapter for n in share}) == 1 for share in divide(requests, 3))


def test_there_is_room_for_what_fits_on_single_nodes():
    there = [Node("head", 0, 0, 0), Node("a", 64, 8, 500 * 10**9), Node("b", 64, 3, 100 * 10**9)]
    config = ClusterConfig(ray="auto")
    assert connection.needs(config, 2, there) == Needs(1, 2, 0)
    assert connection.room(config, Needs(1, 2, 0), there) == 5
    assert connection.room(config, Needs(32, 0, 90 * 10**9), there) == 3
    assert connection.room(config.model_copy(update={"num_workers": 2}), Needs(1, 1, 0), there) == 2


def test_a_worker_that_fits_nowhere_is_refused_with_the_figures():
    there = [Node("a", 64, 4, 0), Node("b", 8, 4, 0)]
    with pytest.raises(ConfigError, match=r"needs 1 CPU, 8 GPUs, and no node has that \(nodes: a: 64 CPUs, 4 GPUs; b:"):
        connection.room(ClusterConfig(ray="auto"), Needs(1, 8, 0), there)


def test_a_worker_has_as_many_threads_as_cpus_and_no_cluster_of_its_own(tmp_path):
    config = settings(tmp_path, cluster={"ray": "auto"})
    assert on_worker(config, Needs(4, 0, 0)).engine.num_threads == 4
    assert on_worker(config, Needs(1, 1, 0)).engine.num_threads is None
    assert on_worker(config, Needs(4, 0, 0)).cluster.ray is None


def test_the_cluster_is_no_part_of_what_a_run_is(tmp_path):
    assert digest(settings(tmp_path)) == digest(settings(tmp_path, cluster={"ray": "auto", "storage": "s3://b"}))


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_every_error_keeps_its_kind_between_processes(kind):
    error = kind("engine.sampler=vllm", "vllm") if kind is MissingExtra else kind("what to do")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error)) and issubclass(kind, MaftError)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (
            "The actor died unexpectedly before finishing this task. class_name: Host pid: 5 The actor is dead because "
            "its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits "
            "with a connection error code 2. End of file. Some common causes include: (1) the OOM killer.",
            "its process ended unexpectedly (Worker unexpectedly exits with a connection error code 2); perhaps it was "
            "killed for want of memory.",
        ),
        (
            "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 57) was "
            "13.84GB used / 23.54GB limit (0.587853)\nOOM kill reason: Memory usage 14859014144B exceeded threshold of "
            "7582950912B (30.0% of 25276502016B limit)\nSelected to kill: (Task: job ID=1, required resources={CPU: 1}, "
            "pid=9865, actual memory used=2.04GB, worker ID=b7)",
            "its node ran low on memory (13.84 of 23.54 GB in use, 2.04 GB of it by the worker), and Ray ended it.",
        ),
        (
            "The actor 12 is unavailable: The actor is temporarily unavailable: RpcError: Socket closed. The task may",
            "The actor 12 is unavailable: The actor is temporarily unavailable: RpcError: Socket closed.",
        ),
    ],
)
def test_the_cause_of_a_death_is_one_sentence(said, wanted):
    assert cause_of_death(RuntimeError(said)) == wanted


def test_weights_that_a_node_does_not_see_are_named(tmp_path):
    place = Place.of(settings(tmp_path))
    with pytest.raises(DataError, match="does not see .*critic_0.*runs_dir on a file system that they share"):
        place.here(AgentRef(role="critic", index=0, model="m", adapter=str(tmp_path / "run" / "critic_0")))


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_a_clean_error_at_once(tmp_path, call, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "config.json"
    config.write_text(settings(tmp_path).model_dump_json())
    code, _, complaints = call("run", str(config), f"cluster.ray=127.0.0.1:{port}", "--quiet")
    assert code == 2 and "no Ray cluster answers at" in complaints and f":{port}" in complaints
    assert "Nothing is lost" in complaints
    for nonsense in ("nowhere.invalid:1", "x", "ray://a:10001"):
        code, _, complaints = call("run", str(config), f"cluster.ray={nonsense}", "--quiet")
        assert code == 2 and f"cluster.ray = {nonsense}" in complaints and "Traceback" not in complaints
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert "no Ray cluster answers" in call("run", str(config), "cluster.ray=auto", "--quiet")[2]
