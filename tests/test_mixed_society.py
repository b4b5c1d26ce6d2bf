"""Societies whose agents are not alike: what can be said of each, and two real base models with other vocabularies."""

import json
from pathlib import Path

import pytest
import tiny as tiny_
import yaml
from helpers import ROOT, Quiet, boxed, run, settings
from test_models import write_adapter

from maft import comparison, engines, models, trainers
from maft import config as config_
from maft.diversity import measure as diversity
from maft.diversity.likelihood import Reading
from maft.errors import ConfigError, DataError
from maft.method import bases, learners
from maft.models.embedding import trigrams
from maft.pipeline import run as pipeline
from maft.records import Message, Request, SamplingParams
from maft.report import page, run_page, transcript
from maft.report.table import diversity_table
from maft.runs import societies, status
from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.samplers.scripted import guess

GREEDY = SamplingParams(temperature=0, max_new_tokens=6)


def mixed(runs: Path, *overrides: str, **sections):
    """Return a run of three agents, two of model a and one of model b, with settings of their own."""
    society = {
        "generators": ["a", {"model": "a", "sampling": {"temperature": 0.3}}, {"model": "b", "lora": {"rank": 64}}],
        "critics": ["a", {"model": "a"}, {"model": "b", "sampling": {"max_new_tokens": 99, "top_p": 0.5}}],
    }
    return settings(runs, *overrides, **{"society": society, "model": "base"} | sections)


def test_prompts_of_an_agent_are_not_for_the_tasks_of_eval_also(tmp_path):
    own = {"generators": [{"model": "a", "prompts": {"solve": "Add: {question}"}}, "a", "a"]}
    config = settings(tmp_path, society=own, eval={"also": [{"name": "gsm8k"}]})
    (other,) = RunFolder(tmp_path, config).others
    assert config.own("generator", 0).prompts and not other.config.own("generator", 0).prompts
    assert other.config.own("generator", 0).model == "a"


def test_the_config_in_the_docs_is_of_two_models_and_loads_again():
    text = (ROOT / "docs/society.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    config = config_.parse(yaml.safe_load(text))
    assert bases(config) == (config.model, "Qwen/Qwen2.5-0.5B-Instruct")
    assert [config.lora_of(role, 3).rank for role in ("generator", "critic")] == [32, 32]
    assert config.lora_of("generator", 2) == config.train.lora
    again = config_.parse(json.loads(config_.resolved(config)))
    assert again == config and not config_.differences(again, config)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            "{modle: x}",
            r"society.generators\[0\]: modle is not a setting of an agent, which has model, adapter, prompts, samp",
        ),
        ("{lora: {rnk: 3}}", r"society.generators\[0\]: lora.rnk is not a setting of an agent"),
        ("{lora: {rank: 0}}", r"society.generators\[0\]: lora.rank should be greater than or equal to 1, got 0"),
        ("{sampling: {temperature: -1}}", r"society.generators\[0\]: sampling.temperature should be .* 0, got -1"),
        ("5", r"society.generators\[0\]: an agent is a name, or a section with model, adapter, .*, got 5"),
    ],
)
def test_a_wrong_entry_is_named_with_its_place_and_what_is_allowed(tmp_path, entry, said):
    with pytest.raises(ConfigError, match=said):
        settings(tmp_path, f"society.generators=[{entry}, a, b]")


def test_each_agents_own_sampling_reaches_its_answers_and_no_summary(tmp_path):
    sampler = Scripted(guess)
    sampling = {"train": {"generator": {"temperature": 0.9}, "critic": {"top_k": 7}, "summarizer": {"top_k": 3}}}
    run(mixed(tmp_path, sampling=sampling), sampler)
    drawn = {request.agent.name: request.sampling for request in sampler.history}
    assert drawn == {
        "generator_0": SamplingParams(temperature=0.9),
        "generator_1": SamplingParams(temperature=0.3),
        "generator_2": SamplingParams(temperature=0.9),
        "critic_0": SamplingParams(top_k=7),
        "critic_1": SamplingParams(top_k=7),
        "critic_2": SamplingParams(top_k=7, top_p=0.5, max_new_tokens=99),
        "summarizer_0": SamplingParams(top_k=3),
    }
    assert {request.agent.model for request in sampler.history} == {"a", "b", "base"}


def test_transcripts_and_the_report_name_the_models_where_there_are_several(tmp_path, finished_run):
    folder = run(mixed(tmp_path))
    name = pipeline.questions(folder).train[0].id
    text = transcript.render(transcript.load(folder, name))
    assert "generator_1 (a)  " in text and "generator_2 (b)  " in text and "critic_2 (b)  " in text
    assert "scripted replies (no model)" in run_page.write_page(folder).read_text(encoding="utf-8")
    real = {"engine": folder.config.engine.model_copy(update={"sampler": "transformers"})}
    models_ = "a (generator 0, generator 1, critic 0, critic 1), b (generator 2, critic 2)"
    assert page.models(folder.config.model_copy(update=real)) == models_
    of_one = transcript.render(transcript.load(finished_run, pipeline.questions(finished_run).train[0].id))
    assert "generator_1  " in of_one


class Reader:
    """Reads with numbers that tell who read: likelihood is the place of the reader, KL ten times more for model b."""

    def __init__(self, settings):
        pass

    def read(self, agents, dialogues, on_read):
        (model,) = {agent.model for agent in agents}
        assert agents[-1].adapter is None and all(dialogue.messages[-1].role == "assistant" for dialogue in dialogues)
        places, scale = range(len(agents)), 10.0 if model == "b" else 1.0
        kl = tuple(tuple(scale * (n != m) for m in places) for n in places)
        on_read([Reading(nll=tuple(map(float, places)), kl=kl) for _ in dialogues])


@pytest.mark.parametrize(
    ("critics", "likelihood", "kl", "to_base"),
    [
        (["a", "a", "b"], 0.5, 1.0, 4.0),  # a pair of model a; each agent and its own base: 1, 1, 10
        (["a", "c", "b"], None, None, 4.0),
        (["b", "b", "b"], 1.0, 10.0, 10.0),
    ],
)
def test_only_agents_of_one_model_are_compared_token_by_token(tmp_path, monkeypatch, critics, likelihood, kl, to_base):
    monkeypatch.setattr(diversity, "embedder", lambda: ("character trigrams", trigrams))
    monkeypatch.setattr(diversity, "LikelihoodReader", Reader)
    folder = run(mixed(tmp_path, society={"critics": critics}))
    found = diversity.measure(folder, 2, Quiet())
    for one in found:
        assert (one.likelihood, one.kl, one.kl_to_base) == (likelihood, kl, pytest.approx(to_base))
        assert (one.num_read, one.num_models) == (2, len(set(critics)))
    assert ("likelihood and KL are of pairs of one model" in diversity_table(found)) == (len(set(critics)) > 1)


def test_agents_that_are_models_of_their_own_are_not_compared_token_by_token(tmp_path, monkeypatch):
    monkeypatch.setattr(diversity, "embedder", lambda: ("character trigrams", trigrams))
    monkeypatch.setattr(diversity, "LikelihoodReader", Reader)

    class Whole(trainers.NullTrainer):
        def train(self, jobs, settings, on_progress):
            super().train(jobs, settings, on_progress)
            for job in jobs:
                (job.output / "config.json").write_text("{}")

    before, after = diversity.measure(run(settings(tmp_path), trainer=Whole()), 2, Quiet())
    assert (before.num_read, before.num_models, before.likelihood) == (2, 1, pytest.approx(1.0))
    assert (after.num_read, after.num_models) == (0, 3)
    assert (after.likelihood, after.kl, after.kl_to_base) == (None, None, None)


def test_two_folders_of_one_name_are_told_apart(tmp_path):
    folders = [tmp_path / place / "model" for place in "xy"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    several = mixed(tmp_path, society={"generators": [str(folders[0]), str(folders[1]), str(folders[1])]})
    assert list(societies.speakers(several)) == [*map(str, folders), "base"]
    one = mixed(tmp_path, "debate.num_rounds=1", society={"generators": [str(folders[0])] * 3})
    assert societies.speakers(one) == {"model": ["generator_0", "generator_1", "generator_2"]}


def test_jobs_have_their_own_base_and_adapter_and_bases_come_one_after_the_other(tmp_path):
    given = []

    class Trainer(trainers.NullTrainer):
        def train(self, jobs, settings, on_progress):
            given.extend((job.agent, job.base_model, job.training(settings).lora.rank) for job in jobs)
            super().train(jobs, settings, on_progress)

    run(mixed(tmp_path, "train.lora.rank=8"), trainer=Trainer())
    assert given == [
        *(("generator_0", "a", 8), ("generator_1", "a", 8), ("critic_0", "a", 8), ("critic_1", "a", 8)),
        *(("generator_2", "b", 64), ("critic_2", "b", 8)),
    ]


def test_vllm_divides_the_gpu_among_the_bases_and_has_room_for_the_largest_adapter(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "installed", lambda package: True)
    many = engines.make_sampler(mixed(tmp_path, "engine.sampler=vllm", "vllm.gpu_memory_utilization=0.9"))
    part, whole = many._make(3), many._make(1)
    assert (part.vllm.gpu_memory_utilization, whole.vllm.gpu_memory_utilization) == (pytest.approx(0.3), 0.9)
    assert part.rank == 64
    one = engines.make_sampler(mixed(tmp_path, "engine.sampler=vllm", society={}))
    assert (one.vllm.gpu_memory_utilization, one.rank) == (0.9, 16)


def test_an_adapter_is_no_base_of_its_own(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    begun = {"generators": [str(tmp_path / "first"), str(tmp_path / "second"), {"adapter": str(tmp_path / "first")}]}
    assert bases(mixed(tmp_path, society=begun)) == ("base",)
    assert bases(mixed(tmp_path)) == ("a", "b", "base")
    assert bases(mixed(tmp_path, "debate.summarizer=self")) == ("a", "b")


def test_one_model_may_answer_in_several_ways_and_not_be_several_models(tmp_path):
    ways = {"one_model": True, "generators": [{"sampling": {"temperature": t}} for t in (0.2, 0.6, 1.0)]}
    assert learners(mixed(tmp_path, society=ways)) == ("generator_0",)
    with pytest.raises(ConfigError, match="one model for all agents, and society names several"):
        mixed(tmp_path, "society.one_model=true")


def test_a_comparison_with_one_model_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="method single_agent_ft uses one model .* maft, maft_wo_summary"):
        comparison.begin(mixed(tmp_path), ("maft", "single_agent_ft"), (0,))
    assert not (tmp_path / "run").exists()
    comparison.begin(mixed(tmp_path), ("maft", "maft_wo_critic"), (0,))


@pytest.mark.parametrize("verb", ["run", "debate", "compare"])
def test_an_adapter_of_another_base_is_refused_before_a_model_is_loaded(home, call, monkeypatch, tiny, verb):
    def no_engine(config):
        raise AssertionError("an engine was asked for")

    monkeypatch.setattr(engines, "make_sampler", no_engine)
    (home / "base").symlink_to(tiny)
    write_adapter(home / "own", hidden=16, target_modules=["layers.0.self_attn.q_proj"])
    write_adapter(home / "other", hidden=8, target_modules=["layers.0.self_attn.q_proj"])
    more = ["--methods", "maft"] if verb == "compare" else []

    def begin(adapter: str) -> tuple[int, str, str]:
        entries = f"[base, base, {{model: base, adapter: {adapter}}}]"
        engine = ["engine.sampler=transformers", "name=mixed", "debate.num_rounds=1"]
        return call(verb, "sums.yaml", *engine, f"society.generators={entries}", "--quiet", *more)

    code, _, said = begin("other")
    assert code == 2 and "other does not fit model " in said and "shape [2, 8], and PEFT expects [2, 16]" in said
    assert begin("missing")[0] == 2 and not list(home.rglob("debates.jsonl"))
    with pytest.raises(AssertionError, match="an engine was asked for"):
        begin("own")


def test_a_model_that_is_an_adapter_is_refused(tmp_path):
    folder = str(write_adapter(tmp_path / "adapter"))
    with pytest.raises(DataError, match="is the folder of an adapter"):
        societies.untrained(mixed(tmp_path, society={"generators": [{"model": folder}, "a", "b"]}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one iteration, its debates scripted: a generator and a critic of each base are finetuned for real."""
    home = tmp_path_factory.mktemp("mixed")
    small = tiny_.build(home / "small")
    society = {
        "generators": [{"lora": {"rank": 4}}, {"model": small}],
        "critics": [{}, {"model": small, "lora": {"rank": 2, "alpha": 8}}],
    }
    few = ["debate.num_agents=2", "task.num_train=2", "task.num_eval=1", "train.num_epochs=1", "engine.num_threads=1"]
    config = settings(home / "runs", "engine.trainer=local", *few, society=society)
    return run(config, Scripted(lambda request: boxed(0)), engines.make_trainer(config)), small


@pytest.fixture(params=["transformers", "openvino"])
def config(request, trained):
    """The same run, to be sampled for real."""
    how = {"sampler": request.param, "dtype": "float32", "num_threads": 1, "cache_gb": 1}
    engine = trained[0].config.engine.model_copy(update=how)
    return trained[0].config.model_copy(update={"engine": engine})


@tiny_.slow
def test_each_agents_adapter_is_of_its_own_base_and_shape(trained):
    folder, small = trained
    shapes = {}
    for agent in societies.after(folder, 1).agents:
        home = Path(agent.adapter)
        assert json.loads((home / "training.json").read_text())["trained"]
        models.check_adapter(home, models.resolve(agent.model))
        with pytest.raises(DataError, match="is for"):
            models.check_adapter(home, models.resolve(small if agent.model == models.PACKAGED else models.PACKAGED))
        told = json.loads((home / "adapter_config.json").read_text())
        shapes[agent.name] = (agent.model, told["r"], told["lora_alpha"])
    assert shapes == {
        "generator_0": (models.PACKAGED, 4, 32),
        "generator_1": (small, 16, 32),
        "critic_0": (models.PACKAGED, 16, 32),
        "critic_1": (small, 2, 8),
    }


@tiny_.slow
def test_replies_come_from_the_right_base_and_each_base_is_loaded_once(config, trained, monkeypatch):
    from maft.samplers.openvino import OpenVino
    from maft.samplers.transformers import Transformers

    kind = {"transformers": Transformers, "openvino": OpenVino}[config.engine.sampler]
    loads: list[str] = []
    load = kind.load
    monkeypatch.setattr(kind, "load", lambda self, model, chat: (loads.append(model), load(self, model, chat)))
    society = societies.after(trained[0], 1)
    speakers = (*society.agents, society.summarizer)
    requests = [
        Request(agent=agent, messages=(Message(role="user", content=f"What is {n} + 3?"),), sampling=GREEDY, seed=0)
        for n in range(2)
        for agent in speakers
    ]
    with engines.opened(config) as sampler:
        replies, again = sampler.sample(requests), sampler.sample(requests[: len(speakers)])
    assert [r.text for r in replies[: len(speakers)]] == [r.text for r in again] and not any(r.error for r in replies)
    assert sorted(loads) == sorted(models.resolve(agent.model) for agent in society.generators)
    alone = kind(config.engine)
    for agent in sorted(speakers, key=lambda agent: agent.model):  # a base is loaded for all of its agents
        own = [n for n, request in enumerate(requests) if request.agent == agent]
        assert alone.sample([requests[n] for n in own]) == [replies[n] for n in own]
    alone.release()


@tiny_.slow
def test_a_whole_run_of_two_bases(config, tmp_path):
    short = {role: SamplingParams(max_new_tokens=6) for role in ("generator", "critic", "summarizer")}
    sampling = config.sampling.model_copy(update={"train": config.sampling.train.model_copy(update=short)})
    update = {"runs_dir": tmp_path, "name": "whole", "sampling": sampling}
    whole = config.model_copy(update=update)
    with engines.opened(whole) as sampler:
        folder = run(whole, sampler, engines.make_trainer(whole))
    assert status.complete(folder)
    for agent in societies.after(folder, 1).agents:
        if agent.adapter is not None:  # an agent without examples, as random weights may leave it, keeps its weights
            models.check_adapter(Path(agent.adapter), models.resolve(agent.model))
