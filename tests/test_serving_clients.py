"""lm-evaluation-harness, inspect-ai and LiteLLM, unmodified, in an environment of their own (make test-serve)."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers import boxed, settings
from served import served
from test_serving_completions import likelihoods
from tiny import slow

from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.samplers.transformers import Transformers

PYTHON = os.environ.get("MAFT_CLIENTS_PYTHON")


@slow
@pytest.mark.skipif(PYTHON is None, reason="needs the clients: make test-serve")
def test_three_clients_that_know_nothing_of_us(finished_run, tiny, tmp_path):
    sampler = ("engine.sampler=transformers", "engine.dtype=float32", f"model={tiny}")
    with RunFolder.open(settings(tmp_path, *sampler)) as folder:
        pass
    with (
        served(folder, Transformers(folder.config.engine)) as real,
        served(finished_run, Scripted(lambda request: boxed(5))) as scripted,
    ):
        script = Path(__file__).parent / "serving_clients.py"
        command = [PYTHON, script, real.url, scripted.url, tiny, tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        seen = json.loads(done.stdout.splitlines()[-1])
        one = scripted.ask("debate", seed=1).usage.total_tokens
        votes = scripted.ask("vote").usage.total_tokens + scripted.ask("vote", "1 + 1?").usage.total_tokens
    assert seen["chatty"] == 1.0 and seen["inspect"] == 0.5 and seen["inspect tokens"] == votes
    assert seen["litellm"] == seen["litellm stream"] == boxed(5) and seen["litellm tokens"] == one
    for question, choices, given in zip(
        ("What is 2 + 3? It is", "1 + 4? It is"), (("5", "six"), ("5", "x")), seen["likelihoods"], strict=True
    ):
        for choice, likelihood in zip(choices, given, strict=True):
            start = len(likelihoods(tiny, question)[0])
            assert likelihood == pytest.approx(sum(likelihoods(tiny, f"{question} {choice}")[1][start - 1 :]), abs=1e-3)
