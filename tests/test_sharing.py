"""Finetuned agents merged into their base, and pushed to a stand-in of the hub."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import run, settings
from hub_stand_in import WRITER, Hub
from safetensors.numpy import save

from maft import models
from maft.trainers.folder import appearing_whole

# What huggingface_hub gives to httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SUMMARY = {
    "init_adapter": None,
    "num_examples": 7,
    "num_dropped_too_long": 1,
    "tokens": 700,
    "completion_tokens": 70,
    "losses": [1.5, 0.5],
    "versions": {"maft": "0.1.0", "peft": "0.21.2"},
}
RANK = 2


class Adapters:
    """A trainer that draws an adapter for the tests' tiny model for each agent; it says where its base was loaded."""

    def train(self, jobs, settings, on_progress):
        for job in jobs:
            rng = np.random.default_rng(job.seed)
            with appearing_whole(job.output) as folder:
                (folder / "adapter_model.safetensors").write_bytes(save(lora(rng)))
                shape = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
                where = {"base_model_name_or_path": os.path.abspath(job.base_model), "task_type": "CAUSAL_LM"}
                (folder / "adapter_config.json").write_text(json.dumps(shape | where))
                (folder / "training.json").write_text(json.dumps(SUMMARY | {"agent": job.agent}))
                (folder / "README.md").write_text("the trainer's")
                (folder / "notes.log").write_text(f"trained in {folder}")


def lora(rng) -> dict:
    def pair(module: str, width: int, layer: int) -> dict:
        name = f"base_model.model.model.layers.{layer}.{module}"
        return {
            f"{name}.lora_A.weight": rng.normal(size=(RANK, 16)).astype("float32"),
            f"{name}.lora_B.weight": rng.normal(size=(width, RANK)).astype("float32"),
        }

    return {k: v for n in range(2) for k, v in (pair("self_attn.q_proj", 16, n) | pair("mlp.up_proj", 32, n)).items()}


def finished(runs: Path, *overrides: str, **sections):
    return run(settings(runs, "debate.num_agents=2", *overrides, **sections), trainer=Adapters())


@pytest.fixture(scope="module")
def society(tmp_path_factory):
    """A finished run of four agents whose base is the packaged model, as far as it says."""
    return finished(tmp_path_factory.mktemp("runs"), "num_iterations=2", model=models.PACKAGED)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, in place of the hub, for a user who is logged in."""
    with Hub() as stand_in:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stand_in.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield stand_in


def test_a_society_is_pushed_with_a_folder_for_each_agent_below_one_card(society, hub, call):
    code, out, err = call("push", str(society.path), "me/sums")
    assert (code, err) == (0, "") and f"{hub.url}/me/sums" in out
    sent = hub.files("me/sums")
    mine = ("README.md", "adapter_config.json", "adapter_model.safetensors", "training.json")
    names = ("generator_0", "generator_1", "critic_0", "critic_1")
    assert set(sent) == {"README.md", *(f"{agent}/{file}" for agent in names for file in mine)}
    for agent in names:
        weights = society.agent(2, agent) / "adapter_model.safetensors"
        assert sent[f"{agent}/adapter_model.safetensors"] == weights.read_bytes()
        assert agent in sent[f"{agent}/README.md"].decode()
    assert hub.repos["me/sums"].messages == ["Iteration 2 of run: generator_0, generator_1, critic_0, critic_1"]
    assert not hub.repos["me/sums"].private
