"""All agents of a base model in one step: each becomes what it becomes alone."""

from pathlib import Path

import pytest
from tiny import CRITIC, GENERATOR, MIXED, make_job, slow

from maft.config import LoraConfig, TrainConfig
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


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> str:
    """A small model in which nothing is computed in float32 when it is loaded in float64."""
    import torch
    from tiny import build
    from transformers import AutoTokenizer, Starcoder2Config, Starcoder2ForCausalLM

    folder = tmp_path_factory.mktemp("exact")
    tokenizer = AutoTokenizer.from_pretrained(build(tmp_path_factory.mktemp("llama")))
    torch.manual_seed(0)
    config = Starcoder2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        sliding_window=None,
        embedding_dropout=0.0,
        residual_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Starcoder2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def learners(base, jobs: list[TrainJob], settings: TrainConfig = SETTINGS, objective=None) -> list:
    from maft import files
    from maft.trainers.dialogue_tokens import tokenize
    from maft.trainers.objectives import Sft, Unit
    from maft.trainers.stack import Learner

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
def test_one_agent_is_trained_as_trl_trains_it(tiny, tmp_path, monkeypatch):
    """The same examples in each step, the same losses, schedule and clipping."""
    from safetensors.torch import load_file

    from maft.trainers import sft_worker
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
        monkeypatch.setattr(sft_worker, "_in_packed_loop", lambda settings: False)
        work.train([job], settings, theirs.append)
        assert [step.loss for step in progress] == pytest.approx([step.loss for step in theirs], rel=2e-4)
        rates = [step.learning_rate for step in theirs]
        assert [step.learning_rate for step in progress] == pytest.approx(rates, rel=1e-6)
        assert [(s.step, s.num_steps, s.tokens) for s in progress] == [(s.step, s.num_steps, s.tokens) for s in theirs]
        file = load_file(job.output / "adapter_model.safetensors")
        assert file.keys() == ours.weights.keys()
        assert all((file[name] - ours.weights[name]).abs().max() < 1e-3 for name in file)
