"""The examples of docs/extending.md are whole, short, and carry a run."""

import json
import re

import pytest
from helpers import ROOT, Quiet, settings

from maft import engines
from maft.pipeline import run as pipeline
from maft.planning.plan import at_most
from maft.runs import manifest
from maft.runs.folder import RunFolder

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
NAMED = re.findall(r"`([a-z.]+)=(\w+\.py:\w+)`", PAGE)


def test_every_example_is_named_by_a_setting_and_short():
    assert [name.partition(":")[0] for _, name in NAMED] == list(EXAMPLES)
    assert all(len(code.splitlines()) < 40 for code in EXAMPLES.values())


@pytest.mark.parametrize(("key", "name"), NAMED, ids=[key for key, _ in NAMED])
def test_an_example_carries_a_run_and_is_recorded(key, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, code in EXAMPLES.items():
        (tmp_path / file).write_text(code, encoding="utf-8")
    sections = {"task": {"name": name, "num_train": 2, "num_eval": 2}} if key == "task.name" else {}
    chosen = settings(tmp_path, f"{key}={name}", **sections)
    assert "Plan: " in at_most(chosen)
    with RunFolder.open(chosen) as folder:
        manifest.write(folder)
        with engines.opened(chosen) as sampler:
            pipeline.run(folder, sampler, engines.make_trainer(chosen), Quiet())
    assert folder.evaluated(1)
    assert list(json.loads(folder.manifest.read_text())["parts"]) == [name]
