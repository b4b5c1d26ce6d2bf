"""`maft run` and `maft distil` with the real model, engine and trainer, small enough for CI."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, SMALL_ENGINE

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # TRL warns about many things

NUM_TRAIN, NUM_AGENTS = 6, 2
SMALL = [
    *SMALL_ENGINE,
    "num_iterations=1",
    f"task.num_train={NUM_TRAIN}",
    "task.num_eval=2",
    f"debate.num_agents={NUM_AGENTS}",
    "engine.batch_size=4",
    "vote.min_agreement=plurality",
    "train.num_epochs=1",
    "debate.summarizer=base",
    "sampling.train.generator.max_new_tokens=40",
    "sampling.train.critic.max_new_tokens=40",
    "sampling.train.summarizer.max_new_tokens=40",
]
AGENTS = [f"{role}_{n}" for role in ("generator", "critic") for n in range(NUM_AGENTS)]


def command(runs: Path, *more: str) -> list[str]:
    start = [sys.executable, "-c", "from maft.cli import main; main()"]
    return [
        *start,
        "run",
        str(ROOT / "recipes/arithmetic_cpu/config.yaml"),
        f"runs_dir={runs}",
        "name=e2e",
        *SMALL,
        *more,
    ]


def killed_once(runs: Path, there: str) -> None:
    """Start the run, and kill it as soon as there is such a file or folder in it."""
    started = subprocess.Popen(command(runs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while not list((runs / "e2e/iter_01").glob(there)) and started.poll() is None:
        assert time.monotonic() < deadline, f"{there} was not made in time"
        time.sleep(0.2)
    assert started.poll() is None, "the run ended before it could be killed"
    os.kill(started.pid, signal.SIGKILL)
    started.wait()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A run that was killed while it sampled and again while it trained, and then finished by the same command."""
    runs = tmp_path_factory.mktemp("runs")
    folder = runs / "e2e"
    debates = folder / "iter_01/debates.jsonl"
    killed_once(runs, "debates.jsonl")
    first = debates.read_bytes().splitlines()
    assert 1 <= len(first) < NUM_TRAIN, "the kill was to come between two debates"
    killed_once(runs, "agents/[!.]*")  # those with a dot are being written
    before = debates.read_bytes()
    assert before.count(b"\n") == NUM_TRAIN and set(first[:-1]) <= set(before.splitlines())
    done = subprocess.run(command(runs), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert debates.read_bytes() == before
    return folder, done.stdout


@pytest.fixture(scope="module")
def trained(finished) -> list[Path]:
    """The folders of the agents that had examples: what the others would have learned from was not drawn."""
    counts = json.loads((finished[0] / "iter_01/examples/summary.json").read_text())
    return [finished[0] / "iter_01/agents" / agent for agent in AGENTS if counts[agent]["examples"]]


def test_every_agent_with_examples_is_an_ordinary_peft_adapter_with_a_model_card(trained):
    assert {home.name.partition("_")[0] for home in trained} == {"generator", "critic"}
    assert sorted(trained[0].parent.iterdir()) == sorted(trained)
    for home in trained:
        assert json.loads((home / "adapter_config.json").read_text())["peft_type"] == "LORA"
        assert home.name in (home / "README.md").read_text()


def test_agents_are_trained_on_their_own_examples_and_end_up_different(trained):
    assert len({(home / "adapter_model.safetensors").read_bytes() for home in trained}) == len(trained) > 1


def test_agents_of_one_society_answer_differently(finished):
    folder, _ = finished
    debates = [json.loads(line) for line in (folder / "iter_01/debates.jsonl").read_text().splitlines()]
    first = [[turn["call"]["reply"]["text"] for turn in debate["turns"] if turn["round"] == 1] for debate in debates]
    assert sum(len(set(texts)) == NUM_AGENTS for texts in first) > len(first) / 2


def test_the_table_and_the_report_are_the_last_thing_printed(finished):
    folder, output = finished
    assert f"majority@{NUM_AGENTS}" in output and "maft" in output
    assert output.strip().splitlines()[-1].endswith("report.html")
    assert (folder / "report.html").stat().st_size > 10_000


def test_rows_hold_every_method_before_and_after(finished):
    folder, _ = finished
    call = [sys.executable, "-c", "from maft.cli import main; main()", "report", str(folder), "--json"]
    rows = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
    methods = {(row["iteration"], row["method"]) for row in rows}
    assert methods == {
        *((0, method) for method in ("base", f"majority@{NUM_AGENTS}", "debate")),
        *((1, method) for method in ("maft_single", f"maft_majority@{NUM_AGENTS}", "maft")),
    }
    assert all(row["n"] == 2 and 0 <= row["ci_low"] <= row["accuracy"] <= row["ci_high"] <= 1 for row in rows)


def test_the_society_is_taught_to_one_model_and_the_student_is_merged(finished, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("distil", str(finished[0]), "--json", "--quiet")
    assert code == 0, err
    made = json.loads(out)
    assert {"distil", "maft", "majority_ft"} <= {row["method"] for row in made["results"]}
    adapter = Path(made["student"]) / "iter_01/agents/generator_0"
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert call("merge", made["student"], "--output", "student", "--quiet")[0] == 0
    assert (tmp_path / "student/model.safetensors").exists()
