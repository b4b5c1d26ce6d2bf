"""`maft run` with the real model: generators learn by KTO, critics by DPO."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
AGENTS = [f"{role}_{n}" for role in ("generator", "critic") for n in range(3)]


@pytest.mark.slow
def test_an_iteration_of_kto_and_dpo_ends_with_trained_agents(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from maft.cli import main; main()", "run"),
            str(ROOT / "recipes/kto_dpo_cpu/config.yaml"),
            *(f"runs_dir={tmp_path}", "name=run", "num_iterations=1", "task.num_train=12", "task.num_eval=2"),
            *("vote.min_agreement=plurality", "vote.label_from=all", "train.num_epochs=1", "train.learning_rate=1e-4"),
            *("train.generator.objective=kto", "train.critic.objective=dpo"),
            *("sampling.train.generator.max_new_tokens=40", "sampling.train.critic.max_new_tokens=40"),
        ],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "run/iter_01"
    counts = json.loads((folder / "examples/summary.json").read_text())
    assert sum(counts[agent]["dissenting"] for agent in AGENTS) > 0
    trained = {agent for agent in AGENTS if counts[agent]["examples"]}
    assert any(agent.startswith("generator") for agent in trained) and any(a.startswith("critic") for a in trained)
    for agent in AGENTS:
        home = folder / "agents" / agent
        assert home.exists() == (agent in trained), "who has no example keeps its weights"
        if agent in trained:
            summary = json.loads((home / "training.json").read_text())
            role = agent.partition("_")[0]
            assert summary["objective"] == {"generator": "kto", "critic": "dpo"}[role] and summary["steps"] > 0
            assert f"objective {summary['objective']}, beta 0.1" in (home / "README.md").read_text()
            examples = [json.loads(line) for line in (folder / f"examples/{agent}.jsonl").read_text().splitlines()]
            assert all(("wanted" if role == "generator" else "rejected") in example for example in examples)


@pytest.mark.slow
def test_grpo_in_turns_ends_with_agents_that_learned_in_each(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from maft.cli import main; main()", "run"),
            str(ROOT / "recipes/grpo_cpu/config.yaml"),
            *(f"runs_dir={tmp_path}", "name=run", "num_iterations=1", "task.num_train=12", "task.num_eval=2"),
            *("debate.num_agents=2", "train.online_questions=6", "sampling.train.generator.max_new_tokens=64"),
        ],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "run/iter_01"
    trained = {
        agent: [(folder / f"online/iter_0{turn}/agents/{agent}").exists() for turn in (1, 2)] for agent in AGENTS[:2]
    }
    learned = {agent: turns for agent, turns in trained.items() if any(turns)}
    assert learned, "an agent with a question that it answered both rightly and wrongly"
    for agent, turns in learned.items():
        summary = json.loads((folder / "agents" / agent / "training.json").read_text())
        assert summary["objective"] == "grpo" and summary["turns"] == sum(turns)
        examples = [json.loads(line) for line in (folder / f"examples/{agent}.jsonl").read_text().splitlines()]
        assert {example["weight"] > 0 for example in examples} == {True, False}
        assert len(examples) == summary["num_examples"]
