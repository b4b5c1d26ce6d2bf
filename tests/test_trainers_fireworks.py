"""Finetuning jobs through Fireworks' client, against a stand-in of the service on loopback."""

import json
from collections import Counter
from pathlib import Path

import pytest
from fireworks_stand_in import FireworksStandIn
from helpers import needs, settings
from openai_stand_in import KEY, Fault
from test_trainers_openai import a_killed_run_waits_for_the_same_job, each_job_is_submitted_once, job, sums

from maft import config as config_
from maft import engines, files
from maft.config import OpenAiConfig, TrainConfig
from maft.errors import ConfigError, DataError, StageFailed
from maft.hosted.trainer import HostedTrainer
from maft.records import Example

pytestmark = needs("fireworks")

MODEL = "accounts/fireworks/models/small"
DEPLOYMENT = "accounts/me/deployments/panel"
JOBS = "/accounts/me/supervisedFineTuningJobs"
PRICES = {"prompt_price": 0.0, "completion_price": 0.0, "training_price": 100.0}
SETTINGS = TrainConfig(num_epochs=3, learning_rate=1e-4, batch_size=4, warmup_ratio=0.25)


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("FIREWORKS_API_KEY", KEY)
    monkeypatch.setattr("maft.hosted.trainer.time.sleep", lambda seconds: None)
    with FireworksStandIn(sums) as made:
        yield made


def job_of(home, agent, **change):
    return job(home, agent, **{"base_model": MODEL} | change)


def train(service, home, *jobs, how=SETTINGS, **settings):
    from maft.hosted.jobs_fireworks import FireworksJobs

    hosted = OpenAiConfig(base_url=service.url, api_key_env="FIREWORKS_API_KEY", poll_seconds=0.001, **settings)
    HostedTrainer(FireworksJobs, hosted, home).train([j for j in jobs if not j.output.exists()], how, lambda step: None)


def model_of(home, agent):
    return files.read_json(home / f"agents/{agent}/hosted.json")["model"]


def test_every_agent_becomes_a_model_with_the_settings_of_train(service, tmp_path):
    train(service, tmp_path, job_of(tmp_path, "generator_0"), job_of(tmp_path, "critic_1"), **PRICES)
    (name, first), _ = service.jobs.items()
    asked = first["asked"]
    assert asked["baseModel"] == MODEL and "warmStartFrom" not in asked
    assert (asked["epochs"], asked["learningRate"], asked["batchSizeSamples"]) == (3, 1e-4, 4)
    assert asked["learningRateWarmupSteps"] == 2, "a quarter of three epochs of three steps"
    assert model_of(tmp_path, "generator_0") == f"accounts/me/models/{name.rpartition('/')[2]}"
    rows = [json.loads(line) for line in str(service.sets[asked["dataset"].rpartition("/")[2]]).splitlines()]
    assert [message.get("weight") for message in rows[0]["messages"]] == [None, 0, None, None]
    assert files.read_json(tmp_path / "spending.json")["usd"] == 0.5, "what the service bills"
    counted = files.read_json(tmp_path / "agents/generator_0/training.json")["tokens"]
    assert counted == round(3 * sum(len(json.dumps(row)) + 1 for row in rows) / 3), "estimated: it says no number"


def test_models_are_loaded_into_the_deployment_and_the_next_iteration_goes_on_from_them(service, tmp_path):
    train(service, tmp_path, job_of(tmp_path, "generator_0", base_model=f"{MODEL}#{DEPLOYMENT}"))
    model = model_of(tmp_path, "generator_0")
    name, _, deployment = model.partition("#")
    assert deployment == DEPLOYMENT and list(service.loaded) == [(name, DEPLOYMENT)]
    there = tmp_path / "next"
    train(service, there, job_of(there, "generator_0", base_model=model, iteration=2))
    second = list(service.jobs.values())[1]["asked"]
    assert second["warmStartFrom"] == name and "baseModel" not in second and len(service.loaded) == 2


def test_pairs_are_sent_as_preferences(service, tmp_path):
    made = job_of(tmp_path, "generator_0")
    pairs = [each.model_copy(update={"rejected": "5"}) for each in files.read_records(made.examples, Example)]
    files.write_records(made.examples, pairs)
    train(service, tmp_path, made, how=TrainConfig(objective="dpo", beta=0.3))
    ((name, first),) = service.jobs.items()
    assert "/dpoJobs/" in name and first["asked"]["lossConfig"] == {"method": "DPO", "dpo": {"beta": 0.3}}
    assert first["asked"]["trainingConfig"]["baseModel"] == MODEL
    assert model_of(tmp_path, "generator_0").startswith("accounts/me/models/maft-")


FAULTS = {
    "too many": Fault(JOBS, 429, headers=(("retry-after", "0.01"),)),
    "dropped before": Fault(JOBS, 0),
    "dropped after the submission": Fault(JOBS, -1, method="POST"),
    "done, and said to have failed": Fault(JOBS, 502, method="POST", works=True),
    "dropped set": Fault("/accounts/me/datasets", -1, method="POST"),
    "refused upload": Fault("/accounts/me/datasets/maft", 503, method="POST"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_whatever_goes_wrong_on_the_way_no_job_is_submitted_twice(service, tmp_path, fault):
    each_job_is_submitted_once(service, train, tmp_path, fault, times=2, base_model=MODEL)


def test_a_killed_run_waits_for_the_same_job_with_or_without_its_note(service, tmp_path, monkeypatch):
    a_killed_run_waits_for_the_same_job(service, train, tmp_path, monkeypatch, base_model=MODEL)


def test_a_failed_job_is_named_and_submitted_under_another_name(service, tmp_path):
    service.fails = {"critic_0": "FAILED"}
    made = job_of(tmp_path, "critic_0")
    with pytest.raises(StageFailed, match="of critic_0 failed: the set is harmful"):
        train(service, tmp_path, made)
    train(service, tmp_path, made)
    first, second = service.jobs
    assert second == f"{first}-2" and model_of(tmp_path, "critic_0").endswith("-2")


def test_errors_are_said_in_the_services_words(service, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="accounts/fireworks/models/other not found"):
        train(service, tmp_path, job_of(tmp_path, "generator_0", base_model="accounts/fireworks/models/other"))
    with pytest.raises(ConfigError, match="is named accounts/ACCOUNT/models/MODEL"):
        train(service, tmp_path, job_of(tmp_path, "generator_0", base_model="small"))
    service.states = ("PAUSED",)
    with pytest.raises(StageFailed, match="is paused. Resume or cancel it"):
        train(service, tmp_path, job_of(tmp_path, "generator_0"))
    service.accounts = ("me", "us")
    with pytest.raises(ConfigError, match="2 accounts at Fireworks .me, us.*FIREWORKS_ACCOUNT_ID"):
        train(service, tmp_path, job_of(tmp_path, "generator_1"))
    with pytest.raises(StageFailed, match="finetuning generator_2 could cost"):
        monkeypatch.setenv("FIREWORKS_ACCOUNT_ID", "me")
        train(service, tmp_path, job_of(tmp_path, "generator_2"), spending_limit=0.01, **PRICES)
    monkeypatch.delenv("FIREWORKS_API_KEY")
    with pytest.raises(ConfigError, match="FIREWORKS_API_KEY is not set"):
        train(service, tmp_path, job_of(tmp_path, "generator_1"))


CONFIG = """
model: accounts/fireworks/models/small#accounts/me/deployments/panel
task: {{name: arithmetic, high: 6, num_train: 30, num_eval: 10}}
debate: {{num_agents: 2, summarizer: none}}
vote: {{min_agreement: plurality}}
curate: {{short_side: use_all}}
engine: {{sampler: openai, trainer: fireworks}}
openai: {{base_url: "{url}", poll_seconds: 0.05, prompt_price: 1, completion_price: 2, training_price: 3}}
"""


@pytest.mark.slow
def test_a_whole_run_goes_through_the_service(service, tmp_path, monkeypatch, call, no_page):
    monkeypatch.chdir(tmp_path)
    Path("hosted.yaml").write_text(CONFIG.format(url=service.url))
    assert config_.load(Path("hosted.yaml")).openai.api_key_env == "FIREWORKS_API_KEY"
    code, _, err = call("run", "hosted.yaml")
    assert code == 0, err
    spoken = Counter(asked["model"] for asked in service.asked)
    assert len(service.jobs) == 4 and len(spoken) == 5 and all(name.endswith(f"#{DEPLOYMENT}") for name in spoken)


def test_settings_that_the_service_does_not_take_are_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FIREWORKS_API_KEY", KEY)
    config = settings(tmp_path, engine={"sampler": "openai", "trainer": "fireworks"}, model="accounts/a/models/m")
    engines.make_trainer(config)
    (said,) = caplog.messages
    assert "values of fireworks hold" in said and "train.max_length" in said and "train.lora.alpha" in said
