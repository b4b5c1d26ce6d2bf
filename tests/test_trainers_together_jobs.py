"""Finetuning jobs through Together's client, against a stand-in of the service on loopback."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from helpers import needs
from openai_stand_in import KEY, Fault
from test_trainers_openai import a_killed_run_waits_for_the_same_job, each_job_is_submitted_once, job, sums
from together_stand_in import TogetherStandIn

from maft import config as config_
from maft import files
from maft.config import OpenAiConfig, TrainConfig
from maft.errors import ConfigError, DataError, StageFailed
from maft.hosted.jobs_together import TogetherJobs
from maft.hosted.trainer import HostedTrainer
from maft.records import Example

pytestmark = needs("together")

JOBS = "/fine-tunes"
PRICES = {"prompt_price": 0.0, "completion_price": 0.0, "training_price": 1.0}
SETTINGS = TrainConfig(num_epochs=3, learning_rate=1e-4, lr_schedule="constant", batch_size=8)


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("TOGETHER_API_KEY", KEY)
    monkeypatch.setattr("maft.hosted.trainer.time.sleep", lambda seconds: None)
    with TogetherStandIn(sums) as made:
        yield made


def train(service, home, *jobs, how=SETTINGS, **settings):
    hosted = OpenAiConfig(base_url=service.url, api_key_env="TOGETHER_API_KEY", poll_seconds=0.001, **settings)
    steps = []
    HostedTrainer(TogetherJobs, hosted, home).train(
        [each for each in jobs if not each.output.exists()], how, steps.append
    )
    return steps


def test_every_agent_becomes_a_model_with_the_settings_of_train(service, tmp_path):
    steps = train(service, tmp_path, job(tmp_path, "generator_0"), job(tmp_path, "critic_1"), **PRICES)
    first, second = service.jobs.values()
    assert first["model"] == "gpt-small" and second["suffix"].endswith("-1-critic-1")
    assert first["n_epochs"] == 3 and first["learning_rate"] == 1e-4 and first["batch_size"] == 8
    assert first["lr_scheduler"] == {"lr_scheduler_type": "linear", "lr_scheduler_args": {"min_lr_ratio": 1.0}}
    assert first["training_type"]["type"] == "Lora" and first["training_type"]["lora_r"] == SETTINGS.lora.rank
    assert first["training_method"] == {"method": "sft", "train_on_inputs": False}
    hosted = files.read_json(tmp_path / "agents/critic_1/hosted.json")
    assert hosted["model"] == f"me/gpt-small-{second['suffix']}-ft-1" and hosted["job"] == "ft-1"
    rows = [json.loads(line) for line in service.files[second["training_file"]][1].splitlines()]
    assert [message.get("weight") for message in rows[0]["messages"]] == [None, 0, None, None]
    assert any(step.num_steps == 4 for step in steps)
    assert files.read_json(tmp_path / "spending.json")["usd"] == 1.0, "what the service bills"


def test_the_next_iteration_goes_on_from_the_job_of_the_last(service, tmp_path):
    train(service, tmp_path, job(tmp_path, "generator_0"))
    model = files.read_json(tmp_path / "agents/generator_0/hosted.json")["model"]
    there = tmp_path / "next"
    train(service, there, job(there, "generator_0", base_model=model, iteration=2))
    assert service.jobs["ft-1"]["from_checkpoint"] == "ft-0" and "model" not in service.jobs["ft-1"]


def test_pairs_are_sent_as_preferences(service, tmp_path):
    made = job(tmp_path, "generator_0")
    files.write_records(
        made.examples,
        [each.model_copy(update={"rejected": "5"}) for each in files.read_records(made.examples, Example)],
    )
    train(service, tmp_path, made, how=TrainConfig(objective="dpo", beta=0.3, batch_size=8))
    ((_, text),) = service.files.values()
    assert set(json.loads(text.splitlines()[0])) == {"input", "preferred_output", "non_preferred_output"}
    method = service.jobs["ft-0"]["training_method"]
    assert (method["method"], method["dpo_beta"]) == ("dpo", 0.3)


FAULTS = {
    "too many": Fault(JOBS, 429, headers=(("retry-after", "0.01"),)),
    "dropped before": Fault(JOBS, 0),
    "the service's fault": Fault(JOBS, 500, method="POST"),
    "dropped after the submission": Fault(f"{JOBS}", -1, method="POST"),
    "done, and said to have failed": Fault(JOBS, 502, method="POST", works=True),
    "dropped upload": Fault("/storage", -1),
    "dropped redirect": Fault("/files", -1, method="POST"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_whatever_goes_wrong_on_the_way_no_job_is_submitted_twice(service, tmp_path, fault):
    each_job_is_submitted_once(service, train, tmp_path, fault, times=3)


def test_a_killed_run_waits_for_the_same_job_with_or_without_its_note(service, tmp_path, monkeypatch):
    a_killed_run_waits_for_the_same_job(service, train, tmp_path, monkeypatch)


def test_a_finished_job_that_names_no_model_is_not_waited_for_for_good(service, tmp_path):
    service.nameless = {"ft-0"}
    with pytest.raises(StageFailed, match="succeeded, but names no model"):
        train(service, tmp_path, job(tmp_path, "generator_0"))
    train(service, tmp_path, job(tmp_path, "generator_0"))
    assert files.read_json(tmp_path / "agents/generator_0/hosted.json")["job"] == "ft-1"


def test_the_services_own_estimate_stops_a_job_that_could_pass_the_limit(service, tmp_path):
    jobs = [job(tmp_path, f"generator_{n}") for n in range(3)]
    with pytest.raises(StageFailed, match="finetuning generator_1 could cost 0.5000 USD"):
        train(service, tmp_path, *jobs, spending_limit=0.9, **PRICES)
    assert len(service.jobs) == 1
    train(service, tmp_path, *jobs, spending_limit=1.5, **PRICES)
    assert len(service.jobs) == 3 and files.read_json(tmp_path / "spending.json")["usd"] == 1.5


def test_errors_are_said_in_the_services_words(service, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="model unknown is not found"):
        train(service, tmp_path, job(tmp_path, "generator_0", base_model="unknown"))
    with pytest.raises(ConfigError, match="batch size of 64 is higher .* Change it in train"):
        train(service, tmp_path, job(tmp_path, "generator_0"), how=TrainConfig(batch_size=64))
    service.fails = {"critic_0": "error"}
    with pytest.raises(StageFailed, match="job ft-0 of critic_0 failed: the set is harmful"):
        train(service, tmp_path, job(tmp_path, "critic_0"))
    service.faults.append(Fault(JOBS, 401))
    with pytest.raises(ConfigError, match="does not accept the key in TOGETHER_API_KEY"):
        train(service, tmp_path, job(tmp_path, "generator_1"))
    monkeypatch.delenv("TOGETHER_API_KEY")
    with pytest.raises(ConfigError, match="TOGETHER_API_KEY is not set"):
        train(service, tmp_path, job(tmp_path, "generator_1"))


def test_the_service_that_finetunes_is_the_one_that_is_sampled():
    tree = {"task": {"name": "arithmetic"}, "engine": {"sampler": "openai", "trainer": "together"}}
    config = config_.parse(tree)
    assert config.openai.base_url == "https://api.together.ai/v1" and config.openai.api_key_env == "TOGETHER_API_KEY"
    other = config_.parse(tree | {"openai": {"base_url": "http://localhost:1/v1", "api_key_env": "MINE"}})
    assert (other.openai.base_url, other.openai.api_key_env) == ("http://localhost:1/v1", "MINE")
    assert config_.parse(json.loads(config_.resolved(config))) == config
    for refused, words in {"train.objective=kto": "sft and dpo only", "train.method=qlora": "lora and full"}.items():
        with pytest.raises(ConfigError, match=words):
            config_.parse(tree, [refused])


def test_a_missing_key_is_said_before_anything_is_asked(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOGETHER_API_KEY", raising=False)
    Path("hosted.yaml").write_text(CONFIG.format(url="http://127.0.0.1:9/v1"))
    code, _, err = call("run", "hosted.yaml", "--quiet")
    assert code == 2 and "the environment variable TOGETHER_API_KEY is not set" in err and "Traceback" not in err


CONFIG = """
model: meta/small
task: {{name: arithmetic, high: 6, num_train: 30, num_eval: 10}}
debate: {{num_agents: 2, summarizer: none}}
vote: {{min_agreement: plurality}}
curate: {{short_side: use_all}}
engine: {{sampler: openai, trainer: together}}
openai: {{base_url: "{url}", poll_seconds: 0.05, prompt_price: 1, completion_price: 2, training_price: 3}}
"""


@pytest.mark.slow
def test_a_whole_run_goes_through_the_service(service, tmp_path, monkeypatch, call, no_page):
    monkeypatch.chdir(tmp_path)
    Path("hosted.yaml").write_text(CONFIG.format(url=service.url))
    code, _, err = call("run", "hosted.yaml", "--dry-run")
    assert code == 0 and re.search(r"at most [\d.,]+ USD; no limit is set", err) and not service.headers
    code, _, err = call("run", "hosted.yaml")
    assert code == 0, err
    spoken = Counter(asked["model"] for asked in service.asked)
    assert (
        len(service.jobs) == 4 and len(spoken) == 5 and sum(name.startswith("me/small-maft-") for name in spoken) == 4
    )
    written = b"".join(file.read_bytes() for file in Path("runs").rglob("*") if file.is_file())
    assert KEY.encode() not in written and KEY not in err
