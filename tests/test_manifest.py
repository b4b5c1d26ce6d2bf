"""What a manifest says of the machine and of the models."""

import json

from helpers import ROOT, run, settings

from maft import models
from maft.runs import manifest


def test_a_machine_without_git_and_gpus_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    manifest.commit.cache_clear()
    folder = run(settings(tmp_path))
    start = json.loads(folder.manifest.read_text())["starts"][0]
    assert start["commit"] is None and start["gpus"] == []


def test_a_checkout_names_its_commit():
    manifest.commit.cache_clear()
    assert not (ROOT / ".git").exists() or manifest.commit()


def test_gpus_are_named(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB, 580.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert manifest.machine()["gpus"] == ["NVIDIA H100, 81559 MiB, 580.1"]


def test_a_models_revision_is_its_content_and_the_hubs_commit(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"one")
    first = models.revision(str(folder))
    assert models.revision(str(folder)) == first
    (folder / "model.safetensors").write_bytes(b"two")
    assert models.revision(str(folder)) != first
    commit = tmp_path / "hub" / "models--org--name" / "snapshots" / "c0ffee"
    commit.mkdir(parents=True)
    (commit / "config.json").write_text("{}")
    (commit.parent.parent / "refs").mkdir()
    (commit.parent.parent / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert models.revision("org/name") == "c0ffee"
    assert models.revision("org/other") is None and models.revision("gpt-4o") is None


def test_the_manifest_names_the_revision_of_each_model(tmp_path):
    folder = run(settings(tmp_path))
    assert list(json.loads(folder.manifest.read_text())["models"]) == ["smollm2-135m-instruct"]
