"""All agents of a base model in one step: each becomes what it becomes alone."""

from pathlib import Path

import pytest
from tiny import CRITIC, GENERATOR, MIXED, dialogue, make_job, slow

from maft.config import LoraConfig, TrainConfig
from maft.config.training import RoleTraining
from maft.records import Example
from maft.trainers.base import TrainJob

SETTINGS = TrainConfig(
    num_epochs=3,
    batch_size=4,
    learning_rate=2e-2,
    warmup_ratio=0.2,
    weight_decay=0.1,
    max_grad_norm=0.5,
    lora=LoraConfig(rank=4),
)


def learners(base, jobs: list[TrainJob], settings: TrainConfig = SETTINGS, objective=None) -> list:
    from maft import files
    from maft.trainers.agent import Learner
    from maft.trainers.dialogue_tokens import tokenize
    from maft.trainers.objectives import Sft, Unit

    objective = objective or Sft()

    def tokens(messages, sampled):
        return tokenize(base.template, messages, "last", sampled)

    return [
        Learner(
            job,
            job.training(settings),
            objective,
            [Unit(e, objective.rows(e, tokens)) for e in files.read_records(job.examples, Example)],
        )
        for job in jobs
    ]


def trained(base, group: list, on_progress=lambda step: None) -> dict:
    """Train learners together; return what became of each."""
    from maft.trainers import together

    results: dict = {}
    together.train(base, group, on_progress, lambda learner, result: results.update({learner.job.agent: result}))
    return results


def society(folder: Path, model: str) -> list[TrainJob]:
    """Four agents with different numbers of examples, of different lengths, ranks and seeds."""
    return [
        make_job(folder, "generator_0", GENERATOR, model, seed=1),
        make_job(folder, "generator_1", GENERATOR[:3], model, seed=2, lora=LoraConfig(rank=2, alpha=3)),
        make_job(folder, "critic_0", MIXED, model, seed=3),
        make_job(folder, "critic_1", [CRITIC] * 9, model, seed=4),
    ]


@slow
def test_agents_trained_together_become_what_they_become_alone(exact, tmp_path):
    from maft.trainers.base_model import BaseModel

    base = BaseModel(exact, "float64")
    group = learners(base, society(tmp_path, exact))
    together = trained(base, group)
    assert list(together) == ["generator_1", "generator_0", "critic_0", "critic_1"], (
        "who needs fewer steps is done first"
    )
    for learner in group:
        (alone,) = trained(base, [learner]).values()
        result = together[learner.job.agent]
        assert result.losses == pytest.approx(alone.losses, rel=1e-9, abs=1e-12)
        assert result.weights.keys() == alone.weights.keys()
        for name, weight in alone.weights.items():
            assert (weight - result.weights[name]).abs().max() < 1e-9
        assert result.losses[-1] < result.losses[0]


@slow
def test_one_agent_is_trained_as_trl_trains_it(tiny, tmp_path):
    """The same examples in each step, the same losses, schedule and clipping."""
    from safetensors.torch import load_file

    from maft.trainers import agent, sft_worker
    from maft.trainers.base_model import BaseModel

    base = BaseModel(tiny, "float32")
    for number, changes in enumerate(
        (
            {},
            {"lr_schedule": "linear", "gradient_accumulation": 2, "batch_size": 2},
            {"lr_schedule": "constant", "num_epochs": 2, "batch_size": 3, "gradient_accumulation": 2},
        )
    ):
        settings = SETTINGS.model_copy(update=changes)
        job = make_job(tmp_path / str(number), "critic_0", MIXED, tiny)
        progress: list = []
        (ours,) = trained(base, learners(base, [job], settings), progress.append).values()
        theirs: list = []
        work = sft_worker.Work("float32")
        work.base = base
        work._train([agent.prepare(job, settings, base)], base, theirs.append, in_loop=False)
        assert [step.loss for step in progress] == pytest.approx([step.loss for step in theirs], rel=2e-4)
        rates = [step.learning_rate for step in theirs]
        assert [step.learning_rate for step in progress] == pytest.approx(rates, rel=1e-6)
        assert [(s.step, s.num_steps, s.tokens) for s in progress] == [(s.step, s.num_steps, s.tokens) for s in theirs]
        file = load_file(job.output / "adapter_model.safetensors")
        assert file.keys() == ours.weights.keys()
        assert all((file[name] - ours.weights[name]).abs().max() < 1e-3 for name in file)


@slow
def test_tokens_that_all_examples_begin_with_are_computed_once_and_change_nothing(exact, tmp_path, monkeypatch):
    from maft.trainers import together
    from maft.trainers.base_model import BaseModel

    base = BaseModel(exact, "float64")
    group = learners(base, society(tmp_path, exact))
    assert together.shared_beginning([row for unit in group[0].units for row in unit.rows]) > 10
    shared = trained(base, group)
    monkeypatch.setattr(together, "shared_beginning", lambda rows: 0)
    plain = trained(base, group)
    for agent, result in shared.items():
        assert result.losses == pytest.approx(plain[agent].losses, rel=1e-9)


def preferring(reference):
    """An objective of pairs, as somebody may write it: DPO."""
    from torch.nn import functional

    from maft.trainers.objectives import Objective

    class Pairs(Objective):
        def rows(self, example, tokenize):
            rejected = example.messages[-1].model_copy(update={"content": example.rejected})
            return tokenize(example.messages, None), tokenize((*example.messages[:-1], rejected), None)

        def size(self, unit):
            return 1.0

        def losses(self, scored):
            assert scored.reference is not None and not scored.reference.requires_grad
            gain = scored.sums(scored.logprobs - scored.reference).view(-1, 2)
            return -functional.logsigmoid(0.5 * (gain[:, 0] - gain[:, 1]))

    made = Pairs()
    made.reference = reference
    return made


@slow
@pytest.mark.parametrize("reference", ["base", "start"])
def test_an_objective_of_pairs_gets_both_rows_and_a_reference_in_any_parts(exact, tmp_path, monkeypatch, reference):
    import math

    from maft import files
    from maft.trainers import together
    from maft.trainers.base_model import BaseModel

    base = BaseModel(exact, "float64")
    jobs = society(tmp_path, exact)[:2]
    for job in jobs:
        pairs = [e.model_copy(update={"rejected": "No."}) for e in files.read_records(job.examples, Example)]
        files.write_records(job.examples, pairs)
    group = learners(base, jobs, objective=preferring(reference))
    whole = trained(base, group)
    assert whole["generator_0"].losses[0] == pytest.approx(math.log(2)), "it starts as the reference"
    assert whole["generator_0"].losses[-1] < 0.6
    monkeypatch.setattr(together, "CPU_TOKENS", 70)
    for agent, result in trained(base, group).items():
        assert result.losses == pytest.approx(whole[agent].losses, rel=1e-9)


@slow
def test_an_agent_whose_loss_is_no_number_is_named(tiny, tmp_path):
    from maft.errors import DataError
    from maft.trainers.base_model import BaseModel

    base = BaseModel(tiny, "float32")
    wild = SETTINGS.model_copy(update={"learning_rate": 1e30, "warmup_ratio": 0.0})
    group = learners(base, society(tmp_path, tiny)[:1]) + learners(base, society(tmp_path, tiny)[3:], wild)
    with pytest.raises(DataError, match=r"training critic_1: the loss is nan at step \d\. Use a smaller"):
        trained(base, group)
    again = trained(base, group[:1])
    assert again["generator_0"].losses[-1] < again["generator_0"].losses[0], "the base model is as it was"


@slow
def test_a_model_that_the_loop_cannot_train_is_trained_by_trl(tiny, tmp_path):
    """Gemma 2 caps its attention."""
    import torch
    from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

    from maft.trainers import sft_worker, together
    from maft.trainers.base_model import BaseModel

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = str(tmp_path / "gemma2")
    tokenizer.save_pretrained(folder)
    Gemma2ForCausalLM(config).save_pretrained(folder)
    jobs = [make_job(tmp_path, agent, GENERATOR, folder) for agent in ("generator_0", "generator_1")]
    with pytest.raises(together.Unsupported):
        trained(BaseModel(folder, "float32"), learners(BaseModel(folder, "float32"), jobs))
    sft_worker.Work("float32").train(jobs, SETTINGS.model_copy(update={"together": True}), lambda _: None)
    assert all((job.output / "adapter_model.safetensors").is_file() for job in jobs)


# Sessions and workers


def weights(job: TrainJob) -> dict:
    from safetensors.torch import load_file

    return load_file(job.output / "adapter_model.safetensors")


@slow
def test_a_session_holds_the_optimiser_of_jobs_that_ask_for_it(tiny, tmp_path):
    """Two jobs of one epoch each are one of two epochs, if the order of examples is the same."""
    import torch

    from maft.config import EngineConfig
    from maft.trainers.sft import SftTrainer

    how = SETTINGS.model_copy(update={"lr_schedule": "constant", "warmup_ratio": 0.0, "batch_size": 8, "num_epochs": 1})
    make = lambda name, **changes: make_job(tmp_path / name, "critic_0", GENERATOR, tiny, seed=5, **changes)  # noqa: E731
    once = make("once")
    results = {}
    trainer = SftTrainer(EngineConfig(dtype="float32", num_threads=1))
    with trainer.open() as session:
        session.train([once], how.model_copy(update={"num_epochs": 2}), lambda _: None)
        for keep in (True, False):
            first = make(f"first {keep}", keep_optimizer=keep)
            session.train([first], how, lambda _: None)
            second = make(f"second {keep}", keep_optimizer=keep, init_adapter=first.output)
            session.train([second], how, lambda _: None)
            results[keep] = weights(second)
        assert len(session.workers) == 1 and session.workers[0].num_calls == 5
        process = session.workers[0].process
        process.kill()
        process.wait()
        after = make("after a crash")
        session.train([after], how, lambda _: None)
        assert session.workers[0].process is not process and after.output.is_dir()
    assert session.workers[0].process is None
    wanted = weights(once)
    assert all(torch.allclose(results[True][name], wanted[name], atol=1e-5) for name in wanted)
    assert not all(torch.allclose(results[False][name], wanted[name], atol=1e-5) for name in wanted)


@slow
def test_workers_side_by_side_make_what_one_makes(tiny, tmp_path):
    import torch

    from maft.config import EngineConfig
    from maft.trainers.sft import SftTrainer

    made = {}
    for threads in (1, 2):
        jobs = society(tmp_path / str(threads), tiny)
        seen: list = []
        with SftTrainer(EngineConfig(dtype="float32", num_threads=threads)).open() as session:
            session.train(jobs, SETTINGS, seen.append)
            assert len(session.workers) == threads
        assert {step.agent for step in seen if step.step == step.num_steps} == {job.agent for job in jobs}
        made[threads] = [weights(job) for job in jobs]
    for one, two in zip(made[1], made[2], strict=True):
        assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


@slow
def test_what_one_worker_cannot_do_stops_no_other(tiny, tmp_path):
    from maft.config import EngineConfig
    from maft.errors import DataError
    from maft.trainers.sft import SftTrainer

    good, bad = society(tmp_path, tiny)[:2]
    wrong = SETTINGS.model_copy(update={"critic": RoleTraining(objective="nothing.py:Nothing")})
    bad = bad.model_copy(update={"role": "critic"})
    with pytest.raises(DataError, match="objective nothing.py:Nothing cannot be loaded"):
        SftTrainer(EngineConfig(dtype="float32", num_threads=2)).train([bad, good], wrong, lambda _: None)
    assert good.output.is_dir() and not bad.output.exists()


@slow
def test_a_file_of_the_working_folder_is_no_library(tiny, tmp_path, monkeypatch):
    from maft.config import EngineConfig
    from maft.trainers.sft import SftTrainer

    for name in ("trl", "peft", "accelerate"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    monkeypatch.chdir(tmp_path)
    job = make_job(tmp_path, "critic_0", GENERATOR, tiny)
    SftTrainer(EngineConfig(dtype="float32", num_threads=1)).train([job], SETTINGS, lambda _: None)
    assert job.output.is_dir()


@slow
def test_one_step_is_done_at_its_learning_rate(exact, tmp_path):
    from maft.trainers.base_model import BaseModel

    base, how = BaseModel(exact, "float64"), SETTINGS.model_copy(update={"num_epochs": 1, "batch_size": 8})
    seen: list = []
    trained(base, learners(base, society(tmp_path, exact)[:1], how), seen.append)
    assert [(step.num_steps, step.learning_rate) for step in seen] == [(1, how.learning_rate)]


@pytest.mark.slow
def test_a_row_longer_than_a_window_of_attention_is_left_to_trl(tiny, tmp_path):
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    from maft.trainers.sft_worker import Work

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=64, **shape)
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    tokenizer.save_pretrained(tmp_path / "mistral")
    dialogues = [*GENERATOR[:4], dialogue("Go on.", "word " * 60)]
    job = make_job(tmp_path, "generator_0", dialogues, model=str(tmp_path / "mistral"))
    Work("float32").train([job], TrainConfig(num_epochs=1, batch_size=8), lambda step: None)
    assert (job.output / "adapter_model.safetensors").exists()


@slow
def test_the_bench_trains_random_weights_one_after_the_other_and_together(monkeypatch):
    from bench import training

    monkeypatch.setattr(training, "SETTINGS", training.SETTINGS.model_copy(update={"batch_size": 1}))
    monkeypatch.setattr(training.models, "usable_dtype", lambda _: "float32")
    figures = training.bench_training(training.random_base(training.TINY), num_agents=2, num_examples=3, trl=False)
    assert len(figures["alone"]["loss"]) == 2 and "trl" not in figures
    assert figures["together"]["loss"] == pytest.approx(sum(figures["alone"]["loss"]) / 2, abs=0.05)
