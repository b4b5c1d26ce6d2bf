"""Finetuning jobs through the official client, against a stand-in of the service on loopback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, dialogues, needs
from openai_stand_in import KEY, Fault, StandIn

from maft import config as config_
from maft import engines, files
from maft.config import OpenAiConfig, TrainConfig
from maft.errors import ConfigError, DataError, StageFailed
from maft.hosted.jobs_openai import OpenAiJobs
from maft.hosted.service import Spending
from maft.hosted.trainer import HostedTrainer, _Service
from maft.records import Debate, Example, Message
from maft.trainers.base import TrainJob, TrainProgress

pytestmark = needs("openai")

JOBS = "/fine_tuning/jobs"


def sums(asked: dict) -> str:
    """Answer sums rightly seven times out of eight."""
    left, sign, right = asked["messages"][0]["content"].partition("What is ")[2].partition("?")[0].split()
    value = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[sign]
    return f"It is \\boxed{{{value + (asked['seed'] % 8 == 0)}}}."


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with StandIn(sums) as made:
        yield made


def job(home: Path, agent: str, num_examples: int = 12, **change: object) -> TrainJob:
    examples = home / "examples" / f"{agent}.jsonl"
    wrong, right = (Message(role="assistant", content=text) for text in ("3", "4"))
    question = Message(role="user", content="2 + 2?")
    made = [
        Example(
            iteration=1, problem_id=str(n), agent=agent, kind="corrected", messages=(question, wrong, question, right)
        )
        for n in range(num_examples)
    ]
    files.write_records(examples, made)
    whole = TrainJob(
        agent=agent,
        role=agent.partition("_")[0],
        iteration=1,
        examples=examples,
        num_examples=num_examples,
        base_model="gpt-small",
        init_adapter=None,
        output=home / "agents" / agent,
        seed=2**40 + 1,
    )
    return whole.model_copy(update=change)


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def each_job_is_submitted_once(service, train, home: Path, fault, times: int, **change: object) -> None:
    """Train one agent after one fault, another after two in a row, and so on."""
    for faults in range(1, times + 1):
        service.faults += [fault] * faults
        there = home / str(faults)
        train(service, there, job(there, "generator_0", seed=faults, **change))
        assert (there / "agents/generator_0/hosted.json").exists() and len(service.jobs) == faults
        service.faults.clear()


def a_killed_run_waits_for_the_same_job(service, train, home: Path, monkeypatch, **change: object) -> None:
    """Kill a training twice while its job runs, and take away its note."""
    made = job(home, "generator_0", **change)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(HostedTrainer, "_goes_on", killed)
            with pytest.raises(KeyboardInterrupt):
                train(service, home, made)
        (home / "agents/.generator_0.job.json").unlink()
    train(service, home, made)
    assert len(service.jobs) == 1


def train(service: StandIn, home: Path, *jobs: TrainJob, **settings: object) -> list[TrainProgress]:
    told: list[TrainProgress] = []
    how = OpenAiConfig(base_url=service.url, poll_seconds=0.001, **settings)
    owed = [one for one in jobs if not one.output.exists()]
    HostedTrainer(OpenAiJobs, how, home).train(owed, TrainConfig(), told.append)
    return told


def test_every_agent_becomes_a_model_of_its_own(service, tmp_path):
    told = train(service, tmp_path, job(tmp_path, "generator_0"), job(tmp_path, "critic_1"))
    assert len(service.jobs) == len(service.files) == 2
    first, second = service.jobs.values()
    assert (
        first["model"] == "gpt-small"
        and first["suffix"] == "maft-1-generator-0"
        and second["suffix"] == "maft-1-critic-1"
    )
    assert first["method"]["supervised"]["hyperparameters"] == {
        "n_epochs": 2,
        "batch_size": 1,
        "learning_rate_multiplier": 1.0,
    }
    hosted = json.loads((tmp_path / "agents/critic_1/hosted.json").read_text())
    assert hosted["model"] == "ft:gpt-small:maft-1-critic-1:ftjob-1" and hosted["job"] == "ftjob-1"
    assert "gpt-small" in (tmp_path / "agents/critic_1/README.md").read_text()
    assert {step.agent for step in told} == {"generator_0", "critic_1"} and any(step.num_steps == 4 for step in told)


def test_only_the_last_reply_is_learned(service, tmp_path):
    train(service, tmp_path, job(tmp_path, "critic_0"))
    ((_, text),) = service.files.values()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [message.get("weight") for message in rows[0]["messages"]] == [None, 0, None, None]
    assert len(dialogues(text, "openai")) == 12


@pytest.mark.parametrize(
    ("num_examples", "said"), [(9, "critic_0 has 9 examples in .* finetunes on 10 at least"), (0, "has 0 examples")]
)
def test_a_set_that_the_service_refuses_is_refused_before_anything_is_sent(service, tmp_path, num_examples, said):
    with pytest.raises(DataError, match=said):
        train(service, tmp_path, job(tmp_path, "generator_0"), job(tmp_path, "critic_0", num_examples))
    assert not service.files and not service.jobs


FAULTS = {
    "too many": Fault(JOBS, 429, headers=(("retry-after", "0.01"),)),
    "the service's fault": Fault(JOBS, 500, headers=(("retry-after", "0.01"),)),
    "dropped before": Fault(JOBS, 0),
    "dropped after": Fault(JOBS, -1),
    "dropped after the submission": Fault(JOBS, -1, method="POST"),
    "refused submission": Fault(JOBS, 500, method="POST"),
    "dropped upload": Fault("/files", -1, method="POST"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_whatever_goes_wrong_on_the_way_no_job_is_submitted_twice(service, tmp_path, fault, monkeypatch):
    monkeypatch.setattr("maft.hosted.trainer.time.sleep", lambda seconds: None)
    each_job_is_submitted_once(service, train, tmp_path, fault, times=4)


@pytest.mark.parametrize(("end", "said"), [("failed", "failed: the set is harmful"), ("cancelled", "was cancelled")])
def test_a_job_that_ends_badly_is_named_and_its_siblings_are_kept(service, tmp_path, end, said):
    service.fails = {"critic_0": end}
    jobs = [job(tmp_path, agent) for agent in ("generator_0", "critic_0", "critic_1")]
    with pytest.raises(StageFailed, match=f"the job ftjob-1 of critic_0 {said}.* 2 of 3 agents are finetuned and kept"):
        train(service, tmp_path, *jobs)
    train(service, tmp_path, *jobs)
    assert Counter(one["metadata"]["agent"] for one in service.jobs.values()) == {
        "generator_0": 1,
        "critic_0": 2,
        "critic_1": 1,
    }
    assert all(one.output.exists() for one in jobs)


def test_what_was_submitted_is_taken_over_even_if_the_note_was_lost(service, tmp_path, monkeypatch):
    ours = [job(tmp_path, agent) for agent in ("generator_0", "critic_0")]

    with monkeypatch.context() as patch:
        patch.setattr(HostedTrainer, "_goes_on", killed)
        with pytest.raises(KeyboardInterrupt):
            train(service, tmp_path, *ours)
    for note in (tmp_path / "agents").glob(".*.job.json"):
        note.unlink()
    train(service, tmp_path, *ours)
    assert len(service.jobs) == len(service.files) == 2


def test_what_was_submitted_is_taken_over_even_where_the_limit_allows_no_more(service, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Spending, "book", killed)
        with pytest.raises(KeyboardInterrupt):
            train(service, tmp_path, job(tmp_path, "generator_0"), **PRICES)
    train(service, tmp_path, job(tmp_path, "generator_0"), spending_limit=0.0, **PRICES)
    assert len(service.jobs) == 1


def test_a_run_folder_may_be_moved_while_jobs_are_under_way(service, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    with monkeypatch.context() as patch:
        patch.setattr(HostedTrainer, "_goes_on", killed)
        with pytest.raises(KeyboardInterrupt):
            train(service, here, job(here, "generator_0"))
    here.rename(there)
    train(service, there, job(there, "generator_0"))
    assert len(service.jobs) == len(service.files) == 1


PRICES = {"prompt_price": 0.0, "completion_price": 0.0, "training_price": 100.0}


@pytest.mark.parametrize("moment", ["the job is submitted", "it is booked"])
def test_money_is_booked_once_whenever_the_kill_comes(service, tmp_path, monkeypatch, moment):
    start = _Service.start

    def killed_after(*words: object) -> None:
        start(*words)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((Spending, "book", killed) if moment == "it is booked" else (_Service, "start", killed_after)))
        with pytest.raises(KeyboardInterrupt):
            train(service, tmp_path, job(tmp_path, "generator_0"), **PRICES)
    with monkeypatch.context() as patch:  # booked, but not noted: the job is taken over and booked again
        patch.setattr("maft.hosted.trainer.files.write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            train(service, tmp_path, job(tmp_path, "critic_0"), **PRICES)
    both = [job(tmp_path, agent) for agent in ("generator_0", "critic_0")]
    with monkeypatch.context() as patch:
        patch.setattr(HostedTrainer, "_goes_on", killed)
        with pytest.raises(KeyboardInterrupt):
            train(service, tmp_path, *both, **PRICES)
    estimate = sum(len(text.encode()) / 3 * 2 * 100 / 1e6 for _, text in service.files.values())
    assert files.read_json(tmp_path / "spending.json")["usd"] == pytest.approx(estimate), "before any job has ended"
    train(service, tmp_path, *both, **PRICES)
    assert len(service.jobs) == 2
    # The service says that each of them took 1000 tokens; that replaces the estimate.
    assert files.read_json(tmp_path / "spending.json")["usd"] == pytest.approx(2 * 1000 * 100 / 1e6)


def test_a_server_that_is_not_there_or_speaks_otherwise_is_the_users(service, tmp_path, monkeypatch):
    monkeypatch.setattr("maft.hosted.trainer.time.sleep", lambda seconds: None)
    away = HostedTrainer(OpenAiJobs, OpenAiConfig(base_url="http://127.0.0.1:9/v1"), tmp_path)
    with pytest.raises(DataError, match="http://127.0.0.1:9/v1 cannot be reached: .* Check openai.base_url"):
        away.train([job(tmp_path, "generator_0")], TrainConfig(), print)
    service.faults += [Fault("/files", 200, body="<html>A router</html>")] * 9
    with pytest.raises(DataError, match="does not answer as OpenAI's API does"):
        train(service, tmp_path, job(tmp_path, "generator_0"))
    assert not service.jobs


def test_an_unknown_model_and_a_wrong_key_are_the_users(service, tmp_path):
    service.faults.append(Fault(JOBS, 400, "Model gpt-small is not available for fine-tuning."))
    with pytest.raises(DataError, match="refuses the finetuning: Model gpt-small is not available"):
        train(service, tmp_path, job(tmp_path, "generator_0"))
    service.faults.append(Fault("/files", 401))
    with pytest.raises(ConfigError, match="does not accept the key"):
        train(service, tmp_path, job(tmp_path, "generator_1"))


def test_a_limit_stops_before_a_job_that_could_pass_it(service, tmp_path):
    jobs = [job(tmp_path, f"generator_{n}") for n in range(3)]
    with pytest.raises(StageFailed, match="finetuning generator_1 could cost .* could pass openai.spending_limit"):
        train(service, tmp_path, *jobs, spending_limit=0.2, **PRICES)
    assert len(service.jobs) == 1
    train(service, tmp_path, *jobs, spending_limit=3.0, **PRICES)
    assert len(service.jobs) == 3
    assert files.read_json(tmp_path / "spending.json")["usd"] == pytest.approx(0.3)


CONFIG = """
model: gpt-small
num_iterations: 2
task: {{name: arithmetic, high: 6, num_train: 30, num_eval: 10}}
debate: {{num_agents: 2, summarizer: none}}
vote: {{min_agreement: plurality}}
curate: {{short_side: use_all}}
engine: {{sampler: openai, trainer: openai}}
openai: {{base_url: "{url}", poll_seconds: 0.05, prompt_price: 1, completion_price: 2, training_price: 3}}
"""


@pytest.mark.slow
def test_a_whole_run_goes_through_the_service(service, tmp_path, monkeypatch, call, no_page):
    monkeypatch.chdir(tmp_path)
    Path("hosted.yaml").write_text(CONFIG.format(url=service.url))
    code, out, err = call("run", "hosted.yaml", "--dry-run")
    assert code == 0 and not service.headers
    most = float(re.search(r"at most ([\d.,]+) USD; no limit is set", err)[1].replace(",", ""))
    code, out, err = call("run", "hosted.yaml")
    assert code == 0, err
    usd = files.read_json(Path("runs/hosted/spending.json"))["usd"]
    assert usd == pytest.approx((len(service.asked) * (20 * 1 + 5 * 2) + 8 * 1000 * 3) / 1e6) and usd < most
    assert f"Spent on hosted models: {usd:.4f} USD" in err
    assert Counter(one["metadata"]["iteration"] for one in service.jobs.values()) == {"1": 4, "2": 4}
    second = [one["model"] for one in service.jobs.values() if one["metadata"]["iteration"] == "2"]
    assert all(model.startswith("ft:gpt-small:maft-1-") for model in second) and len(set(second)) == 4
    spoken = Counter(asked["model"] for asked in service.asked)
    assert spoken["gpt-small"] == 10 * 4 + 30 * 4 and len(spoken) == 9
    debates = files.read_records(Path("runs/hosted/iter_02/debates.jsonl"), Debate)
    assert {turn.call.reply.prompt_tokens for debate in debates for turn in debate.turns} == {20}
    written = b"".join(file.read_bytes() for file in Path("runs").rglob("*") if file.is_file())
    assert KEY.encode() not in written and KEY not in out + err


@pytest.mark.slow
def test_killed_after_a_submission_it_goes_on_without_paying_twice(tmp_path, monkeypatch):
    """kill -9 of a real process, again and again while jobs run."""
    with StandIn(sums, states=("validating_files", *("running",) * 12, "succeeded")) as service:
        (tmp_path / "hosted.yaml").write_text(CONFIG.format(url=service.url))
        environment = ENVIRONMENT | {"OPENAI_API_KEY": KEY}
        start = [sys.executable, "-c", "from maft.cli import main; main()", "run", "hosted.yaml", "--quiet"]
        for wanted in (1, 4, 8):
            process = subprocess.Popen(
                start, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            deadline = time.monotonic() + 300
            while len(service.jobs) < wanted and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        done = subprocess.run(start, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        agents = Counter((one["metadata"]["iteration"], one["metadata"]["agent"]) for one in service.jobs.values())
        assert len(agents) == 8 and set(agents.values()) == {1}
        asked = Counter(json.dumps(one, sort_keys=True) for one in service.asked)
        assert sum(count > 1 for count in asked.values()) <= 3 * 16  # only what was under way at a kill
    assert config_.load(tmp_path / "runs/hosted").num_iterations == 2


def test_prices_are_asked_for_where_they_are_needed(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    Path("hosted.yaml").write_text(CONFIG.format(url="http://127.0.0.1:9/v1"))
    code, _, err = call("run", "hosted.yaml", "--dry-run", "openai.training_price=null")
    assert code == 0 and "for an estimate in US dollars" in err
    code, _, err = call("run", "hosted.yaml", "openai.training_price=null", "openai.spending_limit=3")
    assert code == 2 and "openai.spending_limit needs openai.prompt_price" in err


@pytest.mark.parametrize("engines", [("openai", "local"), ("openai", "null"), ("scripted", "openai")])
@pytest.mark.parametrize("verb", ["run", "compare"])
def test_engines_that_cannot_take_turns_are_refused_before_anything_is_paid(
    service, tmp_path, monkeypatch, call, verb, engines
):
    monkeypatch.chdir(tmp_path)
    Path("hosted.yaml").write_text(CONFIG.format(url=service.url))
    code, _, err = call(verb, "hosted.yaml", f"engine.sampler={engines[0]}", f"engine.trainer={engines[1]}")
    assert code == 2 and f"engine.sampler = {engines[0]} cannot sample agents that" in err
    assert not service.headers and not Path("runs").exists()


def test_a_missing_key_and_an_unreachable_server_are_clean_errors_of_a_run(service, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    Path("hosted.yaml").write_text(CONFIG.format(url="http://127.0.0.1:9/v1"))
    code, _, err = call("run", "hosted.yaml", "--quiet")
    assert code == 2 and "http://127.0.0.1:9/v1 cannot be reached" in err and "Traceback" not in err
    monkeypatch.delenv("OPENAI_API_KEY")
    code, _, err = call("run", "hosted.yaml", "--quiet", "name=other", "openai.base_url=null")
    assert code == 2 and "the environment variable OPENAI_API_KEY is not set" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_run_stopped_by_its_limit_goes_on_with_a_higher_one(service, tmp_path, monkeypatch, call, no_page):
    monkeypatch.chdir(tmp_path)
    Path("hosted.yaml").write_text(CONFIG.format(url=service.url))
    code, _, err = call("run", "hosted.yaml", "--quiet", "openai.spending_limit=0.012")
    assert code == 1 and "could pass openai.spending_limit = 0.012" in err
    assert files.read_json(Path("runs/hosted/spending.json"))["usd"] <= 0.012
    code, _, err = call("run", "hosted.yaml", "--quiet", "openai.spending_limit=9")
    assert code == 0, err
    agents = Counter((one["metadata"]["iteration"], one["metadata"]["agent"]) for one in service.jobs.values())
    assert len(agents) == 8 and set(agents.values()) == {1}
    assert len({json.dumps(one, sort_keys=True) for one in service.asked}) == len(service.asked)


def test_a_job_that_is_paused_or_forgotten_is_said_and_the_way_out(service, tmp_path):
    service.states = ("running", "paused")
    with pytest.raises(StageFailed, match=r"the job ftjob-0 of generator_0 is paused\. Resume or cancel it"):
        train(service, tmp_path, job(tmp_path, "generator_0"))
    service.faults += [Fault(f"{JOBS}/ftjob-0", 404, "no such job")]
    with pytest.raises(StageFailed, match="does not know the job ftjob-0 of generator_0 any more"):
        train(service, tmp_path, job(tmp_path, "generator_0"))
    service.jobs.clear()
    service.states = ("succeeded",)
    train(service, tmp_path, job(tmp_path, "generator_0"))
    assert (tmp_path / "agents/generator_0/hosted.json").exists()


def test_success_without_a_model_is_a_failure(service, tmp_path):
    service.states = ("succeeded",)
    service.faults += [Fault(f"{JOBS}/", 200, change=lambda job: job | {"fine_tuned_model": None})]
    with pytest.raises(StageFailed, match="the job ftjob-0 of generator_0 succeeded, but names no model"):
        train(service, tmp_path, job(tmp_path, "generator_0"))
    assert not (tmp_path / "agents/generator_0").exists()
    nameless = {"data": [service.shown(service.jobs["ftjob-0"]) | {"fine_tuned_model": None}]}
    service.faults += [Fault(JOBS, 200, method="GET", change=lambda listed: listed | nameless)] * 2
    train(service, tmp_path, job(tmp_path, "generator_0"))
    assert set(service.jobs) == {"ftjob-0", "ftjob-1"} and (tmp_path / "agents/generator_0").exists()


@pytest.mark.parametrize("path", ["/files", JOBS, f"{JOBS}/ftjob"])
def test_a_page_of_html_is_said_in_a_line(service, tmp_path, monkeypatch, path):
    monkeypatch.setattr("maft.hosted.trainer.time.sleep", lambda seconds: None)
    service.faults += [Fault(path, 200, body="<html>A router</html>")] * 30
    with pytest.raises((DataError, StageFailed), match=r"does not answer") as raised:
        train(service, tmp_path, job(tmp_path, "generator_0"), max_retries=2)
    assert "\n" not in str(raised.value)


def test_the_end_of_finetuning_at_openai_is_said_at_the_start(caplog):
    engines.make_trainer(
        config_.parse({"task": {"name": "arithmetic"}, "engine": {"sampler": "openai", "trainer": "openai"}})
    )
    assert "6 January 2027" in caplog.text and "14 January 2027" in caplog.text


def test_pairs_are_sent_as_preferences(service, tmp_path):
    made = job(tmp_path, "generator_0")
    pairs = [each.model_copy(update={"rejected": "5"}) for each in files.read_records(made.examples, Example)]
    files.write_records(made.examples, pairs)
    how = OpenAiConfig(base_url=service.url, poll_seconds=0.001)
    HostedTrainer(OpenAiJobs, how, tmp_path).train([made], TrainConfig(objective="dpo", beta=0.3), print)
    ((_, text),) = service.files.values()
    row = json.loads(text.splitlines()[0])
    assert row["input"]["messages"][-1]["role"] == "user"
    assert (row["preferred_output"][0]["content"], row["non_preferred_output"][0]["content"]) == ("4", "5")
    assert service.jobs["ftjob-0"]["method"]["dpo"]["hyperparameters"]["beta"] == 0.3
