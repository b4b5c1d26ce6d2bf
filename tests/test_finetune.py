"""Who is finetuned on what, and who speaks afterwards."""

import json

import pytest
from helpers import run, settings

from maft import files
from maft.errors import ConfigError
from maft.method import learners
from maft.records import Example
from maft.runs import societies


def agents(folder, iteration: int) -> list[str]:
    return sorted(path.name for path in (folder.iteration(iteration) / "agents").iterdir())


def examples(folder, iteration: int, agent: str) -> list[Example]:
    return files.read_records(folder.examples(iteration, agent), Example)


def test_one_model_for_all_learns_from_everybody(tmp_path):
    ours = run(settings(tmp_path / "ours", "num_iterations=2"))
    one = run(settings(tmp_path / "one", "num_iterations=2", "society.one_model=true"))
    assert agents(one, 1) == agents(one, 2) == ["generator_0"]
    everybody = [e for agent in learners(ours.config) for e in examples(ours, 1, agent)]
    assert examples(one, 1, "generator_0") == everybody
    weights = {agent.adapter for agent in societies.after(one, 2).agents}
    assert weights == {str(one.agent(2, "generator_0").resolve())}
    first = json.loads((one.agent(2, "generator_0") / "adapter.json").read_text())
    assert first["init_adapter"] == "generator_0"
    counts = files.read_json(one.examples_summary(1))["generator_0"]
    assert counts["examples"] == len(everybody) == counts["first"] + counts["corrected"] + counts["kept"]


def test_without_critics_these_stay_as_they_were(tmp_path):
    folder = run(settings(tmp_path, "train.critics=false"))
    assert agents(folder, 1) == ["generator_0", "generator_1", "generator_2"]
    society = societies.after(folder, 1)
    assert all(agent.adapter for agent in society.generators)
    assert not any(agent.adapter for agent in society.critics)


@pytest.mark.parametrize(("limit", "first", "second"), [("2", 2, 2), ("[3, 1]", 3, 1)])
def test_no_agent_learns_from_more_examples_than_the_limit(tmp_path, limit, first, second):
    whole = run(settings(tmp_path / "whole", "num_iterations=2"))
    folder = run(settings(tmp_path / "limited", "num_iterations=2", f"curate.max_examples={limit}"))
    for iteration, most in ((1, first), (2, second)):
        summary = files.read_json(folder.examples_summary(iteration))
        for agent, counts in summary.items():
            used = examples(folder, iteration, agent)
            assert len(used) == counts["examples"] == counts["first"] + counts["corrected"] + counts["kept"] <= most
    for agent in learners(whole.config):
        there, used = examples(whole, 1, agent), examples(folder, 1, agent)
        assert len(used) == min(first, len(there)) and [e for e in there if e in used] == used
        left_out = files.read_json(folder.examples_summary(1))[agent]["over_limit"]
        assert left_out == len(there) - len(used)


def test_one_model_cannot_have_several_beginnings(tmp_path):
    several = {"one_model": True, "generators": ["a", "a", "b"]}
    with pytest.raises(ConfigError, match="one model for all agents, and society names several"):
        settings(tmp_path, society=several)
