"""Finetuning through Tinker's client, against a stand-in of the service on loopback."""

import gc
from collections import Counter
from pathlib import Path

import pytest
from helpers import needs
from openai_stand_in import KEY
from test_trainers_openai import job, killed, sums
from tinker_stand_in import TinkerStandIn

from maft import config as config_
from maft import files
from maft.config import OpenAiConfig, TrainConfig
from maft.errors import ConfigError, DataError, StageFailed
from maft.records import Example

pytestmark = [needs("tinker"), pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

PRICES = {"prompt_price": 0.0, "completion_price": 0.0, "training_price": 100.0}
SETTINGS = TrainConfig(num_epochs=3, batch_size=4, learning_rate=1e-3, lr_schedule="constant", warmup_ratio=0.0)
"""Three steps in each epoch of twelve examples."""


@pytest.fixture
def service(monkeypatch, tiny):
    monkeypatch.setenv("TINKER_API_KEY", f"tml-{KEY}")
    with TinkerStandIn(sums, str(tiny)) as made:
        yield made
    gc.collect()  # sockets that the client leaves open after a refused key, of which pytest would warn at its end


def train(service, home, *jobs, how=SETTINGS, **settings):
    from maft.hosted.tinker import TinkerTrainer

    hosted = OpenAiConfig(base_url=service.url, api_key_env="TINKER_API_KEY", **settings)
    steps = []
    TinkerTrainer(hosted, home).train([each for each in jobs if not each.output.exists()], how, steps.append)
    return steps


def model_of(home, agent):
    return files.read_json(home / f"agents/{agent}/hosted.json")["model"]


def test_every_agent_becomes_weights_of_its_own(service, tmp_path):
    steps = train(service, tmp_path, job(tmp_path, "generator_0"), job(tmp_path, "critic_1"))
    assert service.steps == 18 and [each.step for each in steps if each.agent == "critic_1"] == list(range(1, 10))
    assert steps[-1].loss == 1.5 and steps[-1].tokens > 0
    lora = service.made[0]["lora_config"]
    assert (lora["rank"], lora["train_unembed"]) == (SETTINGS.lora.rank, False)
    model = model_of(tmp_path, "critic_1")
    assert "/sampler_weights/maft-" in model and len(service.kept[model]) == 9
    adam, _ = service.kept[model][0]
    assert adam["learning_rate"] == 1e-3 and adam["grad_clip_norm"] == SETTINGS.max_grad_norm
    for _, examples in service.kept[model]:
        assert sum(sum(weights) for _, weights in examples) == pytest.approx(1), "a mean over all tokens with loss"
    tokens, weights = examples[0]
    assert len(tokens) == len(weights) and 0 < sum(weight > 0 for weight in weights) < len(tokens) / 2


def test_weighted_examples_make_a_weighted_mean_as_on_this_machine(service, tmp_path):
    made = job(tmp_path, "generator_0")
    examples = files.read_records(made.examples, Example)
    weighted = [each.model_copy(update={"weight": 0.2 + 0.4 * (n % 2)}) for n, each in enumerate(examples)]
    files.write_records(made.examples, weighted)
    train(service, tmp_path, made, how=TrainConfig(objective="weighted", batch_size=12, num_epochs=1))
    ((_, rows),) = service.kept[model_of(tmp_path, "generator_0")]
    sums = sorted(sum(weights) for _, weights in rows)
    assert sum(sums) == pytest.approx(1) and sums[-1] == pytest.approx(3 * sums[0])


def test_a_training_that_failed_goes_on_from_the_last_kept_step(service, tmp_path, monkeypatch):
    monkeypatch.setattr("maft.hosted.tinker.SAVE_STEPS", 2)
    service.stop_after = 5
    with pytest.raises(StageFailed, match="the machine caught fire.* Finished steps are kept; the same command"):
        train(service, tmp_path, job(tmp_path, "generator_0"), **PRICES)
    assert not (tmp_path / "agents/generator_0").exists()
    service.stop_after = None
    steps = train(service, tmp_path, job(tmp_path, "generator_0"), **PRICES)
    assert [each.step for each in steps] == [5, 6, 7, 8, 9], "the fifth was done and not kept"
    assert service.made[1]["optimizer"] is True and len(service.kept[model_of(tmp_path, "generator_0")]) == 9
    per_step = files.read_json(tmp_path / "spending.json")["usd"] / 11
    assert per_step == pytest.approx(steps[0].tokens / 5 * PRICES["training_price"] / 1e6, rel=0.2)


def test_a_kill_after_the_last_step_pays_for_none_again(service, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("maft.hosted.tinker.keep", killed)
        train(service, tmp_path, job(tmp_path, "generator_0"))
    train(service, tmp_path, job(tmp_path, "generator_0"))
    model = model_of(tmp_path, "generator_0")
    assert service.steps == 9 and model.replace("/sampler_weights/", "/weights/") in service.kept


def test_an_agent_that_fails_stops_the_others_which_keep_their_steps(service, tmp_path, monkeypatch):
    jobs = [job(tmp_path, "generator_0"), job(tmp_path, "critic_1", base_model="unknown")]
    long = SETTINGS.model_copy(update={"num_epochs": 300})
    with pytest.raises((DataError, StageFailed), match="base model unknown is not supported"):
        train(service, tmp_path, *jobs, how=long)
    done = service.steps
    assert done < 900
    monkeypatch.setattr("maft.hosted.tinker._Run._step", lambda *_: 1.0)
    steps = train(service, tmp_path, jobs[0], how=long)
    assert [each.step for each in steps] == list(range(done + 1, 901)), "none is paid again"


def test_why_training_ended_is_said_also_where_the_session_cannot_be_closed(service, tmp_path, monkeypatch, caplog):
    import tinker

    def refuse(*_: object) -> None:
        raise RuntimeError("the line is cut")

    monkeypatch.setattr(tinker.ServiceClient, "close", refuse)
    service.stop_after = 1
    with pytest.raises(StageFailed, match="the machine caught fire"):
        train(service, tmp_path, job(tmp_path, "generator_0"))
    assert "was not closed: the line is cut" in caplog.text


def test_examples_that_are_too_long_are_counted(service, tmp_path):
    made = job(tmp_path, "generator_0")
    first, *others = files.read_records(made.examples, Example)
    last = first.messages[-1].model_copy(update={"content": "4 " * 500})
    files.write_records(made.examples, [first.model_copy(update={"messages": (*first.messages[:-1], last)}), *others])
    train(service, tmp_path, made, how=SETTINGS.model_copy(update={"max_length": 400}))
    counts = files.read_json(made.output / "training.json")
    assert (counts["num_examples"], counts["num_dropped_too_long"]) == (12, 1)
    assert "on 11 of" in (made.output / "README.md").read_text()


def test_the_order_of_examples_is_that_of_the_seed(service, tmp_path):
    for home, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(service, tmp_path / home, job(tmp_path / home, "generator_0", seed=seed))
    kept = [service.kept[model_of(tmp_path / home, "generator_0")] for home in "abc"]
    assert kept[0] == kept[1] and all(len(weights) == 9 for weights in kept)


def test_the_next_iteration_goes_on_from_the_weights_of_the_last(service, tmp_path):
    train(service, tmp_path, job(tmp_path, "generator_0"))
    model, there = model_of(tmp_path, "generator_0"), tmp_path / "next"
    train(service, there, job(there, "generator_0", base_model=model, iteration=2))
    assert service.made[1]["path"] == model.replace("/sampler_weights/", "/weights/")
    assert service.made[1]["optimizer"] is False and len(service.kept[model_of(there, "generator_0")]) == 18


def test_a_limit_stops_before_a_step_that_could_pass_it(service, tmp_path):
    with pytest.raises(StageFailed, match="the next step of generator_0 could cost .* pass openai.spending_limit"):
        train(service, tmp_path, job(tmp_path, "generator_0"), spending_limit=0.05, **PRICES)
    spent = files.read_json(tmp_path / "spending.json")["usd"]
    assert 0 < spent <= 0.05 and 0 < service.steps < 9
    train(service, tmp_path, job(tmp_path, "generator_0"), spending_limit=9, **PRICES)
    assert service.steps == 9, "the steps before the limit were kept"
    assert (tmp_path / "agents/generator_0/hosted.json").exists()


def test_errors_are_said_in_the_services_words(service, tmp_path, monkeypatch):
    with pytest.raises((DataError, StageFailed), match="base model unknown is not supported"):
        train(service, tmp_path, job(tmp_path, "generator_0", base_model="unknown"))
    with pytest.raises(DataError, match="no examples of at most train.max_length = 3 tokens"):
        train(service, tmp_path, job(tmp_path, "generator_0"), how=TrainConfig(max_length=3))
    monkeypatch.setenv("TINKER_API_KEY", "tml-wrong")
    with pytest.raises(ConfigError, match="does not accept the key in TINKER_API_KEY"):
        train(service, tmp_path, job(tmp_path, "generator_0"))
    monkeypatch.setenv("TINKER_API_KEY", "sk-1")
    with pytest.raises(ConfigError, match="does not begin with tml-"):
        train(service, tmp_path, job(tmp_path, "generator_0"))
    monkeypatch.delenv("TINKER_API_KEY")
    with pytest.raises(ConfigError, match="TINKER_API_KEY is not set"):
        train(service, tmp_path, job(tmp_path, "generator_0"))


CONFIG = """
model: Qwen/small
task: {{name: arithmetic, high: 6, num_train: 30, num_eval: 10}}
debate: {{num_agents: 2, summarizer: none}}
vote: {{min_agreement: plurality}}
curate: {{short_side: use_all}}
engine: {{sampler: openai, trainer: tinker}}
openai: {{base_url: "{url}", prompt_price: 1, completion_price: 2, training_price: 3}}
"""


def test_a_whole_run_goes_through_the_service(service, tmp_path, monkeypatch, call, no_page):
    monkeypatch.chdir(tmp_path)
    Path("hosted.yaml").write_text(CONFIG.format(url=service.url))
    assert config_.load(Path("hosted.yaml")).openai.api_key_env == "TINKER_API_KEY"
    code, _, err = call("run", "hosted.yaml")
    assert code == 0, err
    spoken = Counter(asked["model"] for asked in service.asked)
    assert len(spoken) == 5 and spoken["Qwen/small"] and sum(name in service.kept for name in spoken) == 4
    assert "Spent on hosted models" in err
