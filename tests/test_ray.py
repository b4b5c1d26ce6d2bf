"""A real Ray cluster of two nodes on this machine: results as on one, and what is killed is made up for."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_engines
from helpers import ENVIRONMENT, ROOT, SMALL_ENGINE, run, run_files, settings

from maft import config as config_
from maft import engines, files
from maft.cluster.sampler import RaySampler
from maft.cluster.trainer import RayTrainer
from maft.config import ClusterConfig
from maft.errors import DataError, MissingExtra, StageFailed
from maft.method import learners, play
from maft.pipeline import rollouts
from maft.pipeline import run as pipeline
from maft.records import Debate
from maft.runs import societies, status
from maft.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")]

RECIPE = ROOT / "recipes" / "arithmetic_cpu" / "config.yaml"
HERE = Path(__file__).parent
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def trouble(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trouble")


@pytest.fixture(scope="module")
def cluster(trouble) -> Iterator[Any]:
    """Two nodes of one CPU each; the first also has the cluster's own services."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else they stand back behind everything on a busy machine
        patch.setenv("MAFT_TROUBLE", str(trouble))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), ENVIRONMENT["PYTHONPATH"]]))
        import ray
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        made.add_node(**NODE)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture(autouse=True)
def _no_trouble_at_first(trouble):
    for file in trouble.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict[str, bytes]:
    return content(run(settings(tmp_path_factory.mktemp("local"))))


def content(folder: RunFolder) -> dict[str, bytes]:
    return {name: data for name, data in run_files(folder.path).items() if name not in ("config.json", ".mirror.json")}


def on_cluster(cluster: Any, home: Path, *overrides: str, **section: Any) -> RunFolder:
    """Carry out a run with the engines of `ray_engines` on the cluster."""
    config = settings(home, *overrides, cluster={"ray": cluster.address, **section})
    sampler = RaySampler(config, ray_engines.engine)
    try:
        return run(config, sampler, RayTrainer(config, ray_engines.trainer))
    finally:
        sampler.release()


def traces(file: Path) -> list[list[str]]:
    return [line.split() for line in file.read_text().splitlines()]


def test_a_run_has_the_files_of_a_local_one_and_both_nodes_work(cluster, tmp_path, trouble):
    wanted = content(run(settings(tmp_path / "local", "num_iterations=2")))
    for kind in ("sample", "train"):
        (trouble / f"{kind}-meet").touch()
    assert content(on_cluster(cluster, tmp_path / "cluster", "num_iterations=2")) == wanted
    sampled, trained = traces(trouble / "workers"), traces(trouble / "trained")
    by_worker = {pid: sum(int(count) for who, count in sampled if who == pid) for pid, _ in sampled}
    assert len(by_worker) >= 2 and len({pid for _, pid in trained}) >= 2
    assert len(trained) == 12


@pytest.mark.parametrize("stage", ["sample", "train"])
def test_the_task_of_a_worker_that_is_killed_goes_to_another_one(cluster, tmp_path, local, trouble, stage):
    (trouble / f"{stage}-die-once").touch()
    assert content(on_cluster(cluster, tmp_path)) == local
    assert (trouble / f"done-{stage}-die-once").exists()


def test_an_owed_training_that_fails_is_tried_elsewhere(cluster, tmp_path, local, trouble):
    (trouble / "train-fail-once").write_text("critic_0")
    assert content(on_cluster(cluster, tmp_path)) == local


@pytest.mark.parametrize("stage", ["sample", "train"])
def test_a_node_that_dies_in_the_middle_loses_nothing(cluster, tmp_path, local, trouble, stage):
    victim = next(iter(cluster.worker_nodes))

    def kill() -> None:
        while not list(trouble.glob("hangs-*")):
            time.sleep(0.05)
        cluster.remove_node(victim, allow_graceful=False)

    (trouble / f"{stage}-hang-once").write_text(victim.node_id)
    (trouble / f"{stage}-meet").touch()
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert content(on_cluster(cluster, tmp_path)) == local
    thread.join(timeout=60)
    assert victim not in cluster.worker_nodes
    cluster.add_node(**NODE)


@pytest.mark.parametrize("stage", ["sample", "train"])
def test_workers_that_die_again_and_again_end_the_run_and_what_is_finished_is_kept(cluster, tmp_path, trouble, stage):
    (trouble / f"{stage}-die-always").write_text("critic_0" if stage == "train" else "")
    with pytest.raises(
        StageFailed, match="3 workers died over the same task, the last one was pid .* on .*memory"
    ) as end:
        on_cluster(cluster, tmp_path)
    advice = {"sample": "engine.cache_gb", "train": "gradient_checkpointing"}[stage]
    assert advice in str(end.value) and "run the same command again" in str(end.value)
    agents = {path.name for path in tmp_path.glob("run/iter_01/agents/*")}
    assert agents == (
        {f"{role}_{n}" for role in ("generator", "critic") for n in range(3)} - {"critic_0"}
        if stage == "train"
        else set()
    )
    assert not list(tmp_path.glob("run/iter_01/agents/.*"))


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [("refuse", DataError, "model x does not exist"), ("lack", MissingExtra, "engine.sampler=x")],
)
def test_an_error_of_a_worker_keeps_its_kind(cluster, tmp_path, trouble, what, kind, said):
    (trouble / f"sample-{what}-always").touch()
    with pytest.raises(kind, match=said):
        on_cluster(cluster, tmp_path)


def test_weights_go_by_way_of_the_storage(cluster, tmp_path, local, trouble):
    url = f"file://{tmp_path}/store"
    assert content(on_cluster(cluster, tmp_path / "a", storage=url)) == local
    shutil.rmtree(tmp_path / "a")
    (trouble / "workers").unlink()
    assert content(on_cluster(cluster, tmp_path / "b", storage=url)) == local
    assert not (trouble / "workers").exists()


DRIVER = """
import sys
import ray_engines
from maft import engines, report
from maft.cli import main
from maft.cluster.sampler import RaySampler
from maft.cluster.trainer import RayTrainer
engines.make_sampler = lambda config: RaySampler(config, ray_engines.engine)
engines.make_trainer = lambda config: RayTrainer(config, ray_engines.trainer)
report.table = lambda *_: "a table"
report.write_page = lambda folder: folder.path / "report.html"
main()
"""


@pytest.mark.parametrize(("done", "stored"), [("debates.jsonl", False), ("agents/critic_0", True)])
def test_a_driver_that_is_killed_resumes_with_what_the_workers_had_finished(
    cluster, tmp_path, local, trouble, done, stored
):
    file = tmp_path / "config.json"
    file.write_text(settings(tmp_path / "lost").model_dump_json())
    storage = [f"cluster.storage=file://{tmp_path}/store"] if stored else []
    command = [sys.executable, "-c", DRIVER, "run", str(file), f"cluster.ray={cluster.address}", "--quiet", *storage]
    (trouble / "sample-wait-0.3").touch()
    driver = subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "lost/run/iter_01" / done).exists() and driver.poll() is None:
        time.sleep(0.02)
    driver.kill()
    _, complaints = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, complaints
    if stored:
        shutil.rmtree(tmp_path / "lost")
    (trouble / "sample-wait-0.3").unlink()
    home = tmp_path / ("new" if stored else "lost")
    assert content(on_cluster(cluster, home, **({"storage": f"file://{tmp_path}/store"} if stored else {}))) == local


def test_the_real_model_debates_and_is_finetuned_on_two_nodes(cluster, tmp_path):
    small = ["num_iterations=1", "task.num_train=4", "task.num_eval=2", "train.num_epochs=1", *SMALL_ENGINE]
    small += ["debate.num_agents=2", "curate.short_side=use_all", "vote.min_agreement=plurality"]
    small += [f"sampling.train.{role}.max_new_tokens=40" for role in ("generator", "critic")]
    config = config_.load(RECIPE, [*small, f"runs_dir={tmp_path}", f"cluster.ray={cluster.address}"])
    with engines.opened(config) as sampler:
        folder = run(config, sampler, engines.make_trainer(config))
    assert status.complete(folder)
    counts = pipeline.num_examples(folder, 1)
    assert sum(counts.values()) > 0
    for agent in learners(config):
        home = folder.agent(1, agent)
        assert (home / "adapter_model.safetensors").exists() == (counts[agent] > 0)
        assert not counts[agent] or files.read_json(home / "training.json")["num_examples"] == counts[agent]
    alone = config.model_copy(update={"cluster": ClusterConfig()})
    problems = pipeline.questions(folder).eval
    rules = pipeline.debate_rules(folder, 0, societies.untrained(config), "eval")
    with engines.opened(alone) as sampler:
        held = rollouts.play_all([play(problem, rules) for problem in problems], sampler)
    assert held == files.read_records(folder.evaluation(0) / "debates.jsonl", Debate)
