"""The files that launch maft on clusters are what their tools read, and call maft with settings that exist."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ENVIRONMENT, run, settings

from maft import config
from maft.trainers import TrainJob, launch

ROOT = Path(__file__).parent.parent
HOME = ROOT / "recipes" / "cluster"
SBATCH = sorted(HOME.glob("*.sbatch"))
FILES = [path for path in sorted(HOME.iterdir()) if path.suffix not in (".md", ".py") and path.name != "config.yaml"]
KUBERNETES = "1.30"


@pytest.mark.parametrize("path", [*FILES, HOME / "README.md", HOME / "config.yaml"], ids=lambda path: path.name)
def test_it_is_said_that_no_cluster_has_run_it(path):
    assert "ot yet run on a cluster of GPUs" in " ".join(path.read_text().replace("\n#", "\n").split())


def calls() -> list[tuple[str, list[str]]]:
    """Return the arguments of every `maft run` in the files."""
    found = []
    for path in [*FILES, HOME / "README.md"]:
        text = re.sub(r"\\\n\s*", " ", path.read_text())
        lines = re.findall(r"^(?!\s*#)[^#\n]*?\bmaft run ([^\n#`]*)", text, re.M)
        found += [(path.name, shlex.split(line)) for line in lines]
    return found


@pytest.mark.parametrize(("file", "arguments"), calls(), ids=[name for name, _ in calls()])
def test_every_call_of_maft_loads(file, arguments):
    path, *overrides = [argument for argument in arguments if argument != "--dry-run"]
    known = config.known_keys()
    assert all(override.partition("=")[0] in known for override in overrides), overrides
    assert config.load(ROOT / path.removeprefix("/maft/"), overrides).engine.sampler == "vllm"


def test_every_launcher_calls_maft():
    launchers = {path.name for path in FILES if path.suffix in (".sbatch", ".yaml", ".sh")}
    assert {name for name, _ in calls()} >= launchers - {"accelerate.yaml", "torchrun.sh"}


def test_the_worker_reads_the_jobs_that_are_written_for_a_launcher(tmp_path):
    folder = run(settings(tmp_path))
    for agent in ("generator_1", "critic_0"):
        shutil.rmtree(folder.agent(1, agent))
    command = [sys.executable, HOME / "write_jobs.py", folder.path, tmp_path / "jobs.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 finetunings: generator_1, critic_0\n"
    request = json.loads((tmp_path / "jobs.json").read_text())
    assert config.TrainConfig.model_validate(request["settings"]) == folder.config.train
    jobs = [TrainJob.model_validate(job) for job in request["jobs"]]
    assert [job.output for job in jobs] == [folder.agent(1, "generator_1"), folder.agent(1, "critic_0")]


def test_the_config_of_accelerate_is_the_one_that_maft_writes_but_for_two_machines(tmp_path):
    tree = yaml.safe_load((HOME / "accelerate.yaml").read_text())
    ours = launch.accelerate_config(config.EngineConfig(num_train_processes=16, train_sharding="fsdp"), tmp_path)
    changed = {"num_machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": 29500}
    assert tree == ours | changed


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_accelerate_reads_its_config():
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(HOME / "accelerate.yaml"))
    assert (read.num_machines, read.num_processes, read.distributed_type.value) == (2, 16, "FSDP")
    assert read.fsdp_config["fsdp_version"] == 2


SLURM_OPTIONS = {
    *("job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "exclusive", "time"),
    *("requeue", "open-mode", "output", "partition", "account", "array"),
}


@pytest.mark.parametrize("path", [*SBATCH, *sorted(HOME.glob("*.sh"))], ids=lambda path: path.name)
def test_a_script_is_bash(path):
    assert path.read_text().startswith("#!/bin/bash\n")
    done = subprocess.run([shutil.which("bash") or "bash", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SBATCH, ids=lambda path: path.name)
def test_slurm_reads_the_options_of_a_batch_script(path):
    """It reads them up to the first command, and knows each by name."""
    head, _, script = path.read_text().partition("set -euo pipefail")
    assert "#SBATCH" not in script
    assert all(line.startswith("#") for line in head.splitlines())
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", head, re.M))
    assert len(options) == head.count("#SBATCH")
    assert options.keys() <= SLURM_OPTIONS
    assert options.keys() >= {"nodes", "gpus-per-node", "time"}
    assert re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", options["time"])
    assert options["nodes"].isdigit() and options["gpus-per-node"].isdigit()


def kubernetes() -> list[dict]:
    return list(yaml.safe_load_all((HOME / "kuberay.yaml").read_text()))


def pods() -> dict[str, dict]:
    cluster = kubernetes()[1]["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return {group.get("groupName", "head"): group["template"] for group in groups}


def test_the_ray_job_has_what_kuberay_asks_for():
    claim, job = kubernetes()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec.keys() <= {
        *("entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"),
    }
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["headGroupSpec"].keys() == {"rayStartParams", "template"}
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for pod in pods().values():
        claimed = [
            v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v
        ]
        assert claimed == [claim["metadata"]["name"]]
    image = (HOME / "Dockerfile").read_text()
    assert f"rayproject/ray:{cluster['rayVersion']}-" in image


@pytest.mark.parametrize("name", ["claim", *pods()])
def test_kubernetes_takes_the_volume_and_the_pods(name):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    made = kubernetes()[0] if name == "claim" else pod | pods()[name]
    kubernetes_validate.validate(made, KUBERNETES, strict=True)


def test_the_task_has_what_skypilot_asks_for():
    task = yaml.safe_load((HOME / "skypilot.yaml").read_text())
    assert task.keys() <= {"name", "num_nodes", "resources", "envs", "workdir", "file_mounts", "setup", "run"}
    assert re.fullmatch(r"[\w-]+:\d+", task["resources"]["accelerators"])
    for script in ("setup", "run"):
        done = subprocess.run(["bash", "-n", "-c", task[script]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


READ_BY_SKYPILOT = """
import json, sys, yaml, sky
from sky.utils import common_utils, schemas
tree = yaml.safe_load(open(sys.argv[1]))
common_utils.validate_schema(tree, schemas.get_task_schema(), "task: ")
task = sky.Task.from_yaml_config(tree)
print(json.dumps([task.num_nodes, [dict(resource.accelerators) for resource in task.resources]]))
"""


@pytest.mark.slow
def test_skypilot_reads_the_task(tmp_path):
    """SkyPilot wants other versions of our packages; `make test-sky` makes an environment for it."""
    python = os.environ.get("MAFT_SKY_PYTHON")
    if python is None:
        pytest.skip("MAFT_SKY_PYTHON does not name the Python of an environment with SkyPilot: make test-sky")
    done = subprocess.run(
        [python, "-c", READ_BY_SKYPILOT, HOME / "skypilot.yaml"],
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [2, [{"H100": 8}]]
