"""`maft run` with the real model: generators learn by KTO, critics by DPO."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, SMALL_ENGINE

from maft import engines
from maft.records import Message, Request, SamplingParams
from maft.runs import societies
from maft.runs.folder import RunFolder

AGENTS = [f"{role}_{n}" for role in ("generator", "critic") for n in range(2)]


@pytest.mark.slow
def test_an_iteration_of_kto_and_dpo_ends_with_trained_agents(tmp_path):
    """The debates are scripted, so that every agent has replies of both kinds; who learns and speaks is the real model."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from maft.cli import main; main()", "run"),
            str(ROOT / "recipes/kto_dpo_cpu/config.yaml"),
            *(f"runs_dir={tmp_path}", "name=run", "num_iterations=1", "task.num_train=5", "task.num_eval=1"),
            *("vote.min_agreement=plurality", "vote.label_from=all", "train.num_epochs=1", "train.learning_rate=1e-4"),
            *("train.generator.objective=kto", "train.critic.objective=dpo", "train.warmup_ratio=0"),
            *("debate.num_agents=2", "engine.sampler=scripted", *SMALL_ENGINE),
        ],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "run/iter_01"
    counts = json.loads((folder / "examples/summary.json").read_text())
    assert sum(counts[agent]["dissenting"] for agent in AGENTS) > 0
    for agent in AGENTS:
        home, role = folder / "agents" / agent, agent.partition("_")[0]
        summary = json.loads((home / "training.json").read_text())
        assert summary["objective"] == {"generator": "kto", "critic": "dpo"}[role] and summary["steps"] > 0
        assert f"objective {summary['objective']}, beta 0.1" in (home / "README.md").read_text()
        examples = [json.loads(line) for line in (folder / f"examples/{agent}.jsonl").read_text().splitlines()]
        assert all(("wanted" if role == "generator" else "rejected") in example for example in examples)
    trained = RunFolder.existing(tmp_path / "run")
    spoken = trained.config.engine.model_copy(update={"sampler": "openvino"})
    agents = {agent.name: agent for agent in societies.after(trained, 1).agents}
    asked = (Message(role="user", content="What is 2 + 3?"),)
    short = SamplingParams(temperature=0, max_new_tokens=4)
    requests = [
        Request(agent=agents[name], messages=asked, sampling=short, seed=0) for name in ("generator_0", "critic_0")
    ]
    with engines.opened(trained.config.model_copy(update={"engine": spoken})) as sampler:
        assert all(reply.text and reply.error is None for reply in sampler.sample(requests))


@pytest.mark.slow
def test_grpo_in_turns_ends_with_agents_that_learned_in_each(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from maft.cli import main; main()", "run"),
            str(ROOT / "recipes/grpo_cpu/config.yaml"),
            *(f"runs_dir={tmp_path}", "name=run", "num_iterations=1", "task.num_train=4", "task.num_eval=1"),
            *("debate.num_agents=2", "train.online_questions=2", "sampling.train.generator.max_new_tokens=40"),
            *SMALL_ENGINE,
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
