"""Objectives: their losses are those of a few lines of torch, and of TRL's trainers."""

import math
from pathlib import Path

import pytest
from tiny import CRITIC, GENERATOR, dialogue, make_job, slow

from maft import files
from maft.config import LoraConfig, TrainConfig
from maft.errors import DataError
from maft.records import Example
from maft.trainers import objectives
from maft.trainers.base import TrainJob
from maft.trainers.dialogue_tokens import IGNORED, DialogueTokens
from maft.trainers.objectives import Unit

SETTINGS = TrainConfig(
    num_epochs=2,
    batch_size=3,
    learning_rate=2e-2,
    lr_schedule="constant",
    warmup_ratio=0.0,
    max_grad_norm=0.5,
    lora=LoraConfig(rank=4),
    beta=0.3,
)


def judged(job: TrainJob, weight=lambda n: 0.5 + 0.25 * (n % 2)) -> TrainJob:
    """Let every example of a job be a pair, wanted or unwanted, and of a weight of its own."""
    examples = files.read_records(job.examples, Example)
    changed = [
        e.model_copy(update={"wanted": n % 3 != 1, "rejected": f"No, {n}.", "weight": weight(n)})
        for n, e in enumerate(examples)
    ]
    files.write_records(job.examples, changed)
    return job


def trained(base, jobs, settings: TrainConfig):
    """Train jobs together in this process; return what became of each agent."""
    from maft.trainers import agent, together

    results: dict = {}
    learners = [agent.prepare(job, settings, base) for job in jobs]
    together.train(base, learners, lambda _: None, lambda learner, r: results.update({learner.job.agent: r}))
    return results


def units(number: int) -> list[Unit]:
    """Rows of two prompt tokens and two response tokens."""
    made = []
    for n in range(number):
        example = Example(iteration=1, problem_id=str(n), agent="a", kind="first", messages=GENERATOR[n])
        row = DialogueTokens([10 + n, 20 + n, 30 + n, 40 + n], [IGNORED, IGNORED, 30 + n, 40 + n])
        made.append(Unit(example, (row,)))
    return made


def test_a_mismatched_row_is_a_prompt_with_the_response_to_the_question_before():
    rows = [unit.mismatched for unit in objectives.mismatch(units(3), 2048)]
    assert [row.input_ids for row in rows] == [[10, 20, 32, 42], [11, 21, 30, 40], [12, 22, 31, 41]]
    assert all(row.labels == [IGNORED, IGNORED, *row.input_ids[2:]] for row in rows)


def test_a_mismatched_response_is_of_another_question():
    a, b, c = units(3)
    same = b._replace(example=b.example.model_copy(update={"problem_id": a.example.problem_id}))
    rows = [unit.mismatched for unit in objectives.mismatch([a, same, c], 2048)]
    assert [row.input_ids[2:] for row in rows] == [[32, 42], [32, 42], [31, 41]]


def test_a_mismatched_row_is_no_longer_than_an_example_may_be():
    rows = [unit.mismatched for unit in objectives.mismatch(units(3), 3)]
    assert [row.input_ids for row in rows] == [[10, 20, 32], [11, 21, 30], [12, 22, 31]]


@pytest.mark.parametrize(("name", "match"), [("kto", "without `wanted`"), ("dpo", "without `rejected`")])
def test_examples_of_another_shape_are_refused(name, match):
    with pytest.raises(DataError, match=match):
        objectives.make(name).rows(units(1)[0].example, lambda messages, sampled: DialogueTokens([], []))


def test_a_pair_has_the_sampled_tokens_of_both_responses():
    seen = []
    example = units(1)[0].example.model_copy(
        update={"messages": CRITIC, "token_ids": ((1,), (2,)), "rejected": "No.", "rejected_token_ids": (3,)}
    )
    objectives.make("dpo").rows(example, lambda messages, sampled: seen.append((messages[-1].content, sampled)))
    assert seen == [("It is \\boxed{7}.", ((1,), (2,))), ("No.", ((1,), (3,)))]


def plain(base, job: TrainJob, settings: TrainConfig) -> list[float]:
    """Return the loss of each step, by PEFT and a few lines of torch, one row at a time."""
    import torch
    from torch.nn.functional import logsigmoid

    from maft.trainers import agent, stack

    learner = agent.prepare(job, settings, base)
    model = base.trainable(job, learner.training)
    beta = settings.beta

    def score_tokens(row: DialogueTokens):
        ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels)[1:]
        logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        learned = labels != IGNORED
        return logits[learned].gather(-1, labels[learned][:, None])[:, 0]

    def score(row: DialogueTokens):
        return score_tokens(row).sum()

    rows = [[*unit.rows, *([unit.mismatched] if unit.mismatched else [])] for unit in learner.units]
    with torch.no_grad():
        reference = [[score(row) for row in of_unit] for of_unit in rows]
        reference_tokens = [score_tokens(unit[0]) for unit in rows]

    def loss(batch: list[int]):
        examples = [learner.units[n].example for n in batch]
        gains = [[score(row) - ref for row, ref in zip(rows[n], reference[n], strict=True)] for n in batch]
        name = settings.objective
        if name == "dpo":
            each = [-e.weight * logsigmoid(beta * (a - b)) for e, (a, b) in zip(examples, gains, strict=True)]
            return sum(each) / len(each)
        if name == "kto":
            kl = torch.stack([mismatched for _, mismatched in gains]).mean().detach().clamp(min=0)
            each = [
                e.weight * (1 - torch.sigmoid(beta * (gain - kl if e.wanted else kl - gain)))
                for e, (gain, _) in zip(examples, gains, strict=True)
            ]
            return sum(each) / len(each)
        if name == "grpo":
            total = 0.0
            for n, e in zip(batch, examples, strict=True):
                ratio = (score_tokens(rows[n][0]) - reference_tokens[n]).exp()
                total -= torch.minimum(ratio * e.weight, ratio.clamp(0.8, 1.2) * e.weight).sum()
            return total / sum(learner.units[n].rows[0].num_completion_tokens for n in batch)
        weights = [e.weight if name == "weighted" else 1.0 for e in examples]
        counts = [learner.units[n].rows[0].num_completion_tokens for n in batch]
        total = sum(w * -score(learner.units[n].rows[0]) for w, n in zip(weights, batch, strict=True))
        return total / sum(w * count for w, count in zip(weights, counts, strict=True))

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    losses = []
    for batch in stack.steps(len(learner.units), learner.training, job.seed):
        value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(value))
    base.restore(model)
    return losses


@slow
@pytest.mark.parametrize("objective", ["sft", "weighted", "kto", "dpo", "grpo"])
def test_losses_are_those_of_a_few_lines_of_torch_from_the_adapter_it_starts_from(
    exact, tmp_path, monkeypatch, objective
):
    from maft.trainers import together
    from maft.trainers.base_model import BaseModel, save_adapter

    base = BaseModel(exact, "float64")
    first = make_job(tmp_path, "generator_1", GENERATOR[:3], exact, seed=5)
    result = trained(base, [first], SETTINGS)["generator_1"]
    first.output.mkdir(parents=True)
    save_adapter(result.config, result.weights, first.output)

    settings = SETTINGS.model_copy(update={"objective": objective})
    job = make_job(tmp_path, "critic_0", [*GENERATOR, CRITIC], exact, init_adapter=first.output)
    judged(job, *([lambda n: 1.0 - n % 2 * 1.5] if objective == "grpo" else []))
    wanted = plain(base, job, settings)
    monkeypatch.setattr(together, "CPU_TOKENS", 150)
    ours = trained(base, [job], settings)["critic_0"].losses
    assert len(ours) == 6 and ours == pytest.approx(wanted, rel=1e-9)
    assert ours[-3:] != pytest.approx(ours[:3], rel=1e-3)


@slow
@pytest.mark.parametrize("objective", ["weighted", "kto", "dpo", "grpo"])
def test_agents_trained_together_become_what_they_become_alone(exact, tmp_path, objective):
    from maft.trainers.base_model import BaseModel

    base, settings = BaseModel(exact, "float64"), SETTINGS.model_copy(update={"objective": objective})
    jobs = [
        judged(make_job(tmp_path, "generator_0", GENERATOR, exact, seed=1)),
        judged(make_job(tmp_path, "generator_1", GENERATOR[:4], exact, seed=2, lora=LoraConfig(rank=2, alpha=3))),
        judged(make_job(tmp_path, "critic_0", [CRITIC] * 5, exact, seed=3)),
    ]
    together = trained(base, jobs, settings)
    for job in jobs:
        (alone,) = trained(base, [job], settings).values()
        assert together[job.agent].losses == pytest.approx(alone.losses, rel=1e-9)
        for name, weight in alone.weights.items():
            assert (weight - together[job.agent].weights[name]).abs().max() < 1e-9


@slow
def test_equal_weights_are_no_weights(exact, tmp_path):
    from maft.trainers.base_model import BaseModel

    base = BaseModel(exact, "float64")
    losses = []
    for objective in ("sft", "weighted"):
        job = make_job(tmp_path / objective, "generator_0", GENERATOR, exact)
        examples = files.read_records(job.examples, Example)
        files.write_records(job.examples, [e.model_copy(update={"weight": 0.4}) for e in examples])
        (result,) = trained(base, [job], SETTINGS.model_copy(update={"objective": objective})).values()
        losses.append(result.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


PAIRS = [dialogue(f"What is {n} + {n}?", f"It is \\boxed{{{2 * n}}}.") for n in range(4)]


def by_trl(kind: str, model: str, job: TrainJob, settings: TrainConfig, scratch: Path) -> list[float]:
    """Return the losses of TRL's own trainer, all examples in each step."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig as PeftLora
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    examples = files.read_records(job.examples, Example)
    rows = []
    for e in examples:
        prompt, (answer,) = [m.model_dump() for m in e.messages[:-1]], [m.model_dump() for m in e.messages[-1:]]
        unwanted = [{"role": "assistant", "content": e.rejected}]
        if kind == "dpo":
            rows.append({"prompt": prompt, "chosen": [answer], "rejected": unwanted})
        else:
            rows.append({"prompt": prompt, "completion": [answer], "label": e.wanted})
    more = {"kto": {"train_sampling_strategy": "sequential", "desirable_weight": 0.7, "undesirable_weight": 1.4}}
    config, trainer = {"dpo": (trl.DPOConfig, trl.DPOTrainer), "kto": (trl.KTOConfig, trl.KTOTrainer)}[kind]
    set_seed(job.seed % 2**32)
    made = trainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=config(
            output_dir=str(scratch),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            num_train_epochs=settings.num_epochs,
            per_device_train_batch_size=len(rows),
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=settings.max_grad_norm,
            beta=settings.beta,
            seed=job.seed % 2**32,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **more.get(kind, {}),
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=PeftLora(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    made.train()
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


@slow
@pytest.mark.parametrize("objective", ["kto", "dpo"])
def test_losses_are_those_of_trl(tiny, tmp_path, objective):
    from maft.trainers.base_model import BaseModel

    settings = SETTINGS.model_copy(update={"objective": objective, "num_epochs": 4, "batch_size": len(PAIRS)})
    job = make_job(tmp_path, "generator_0", PAIRS, tiny)
    weights = {True: 0.7, False: 1.4} if objective == "kto" else {True: 1.0, False: 1.0}
    files.write_records(
        job.examples,
        [
            e.model_copy(update={"wanted": n != 1, "rejected": f"No, {n}.", "weight": weights[n != 1]})
            for n, e in enumerate(files.read_records(job.examples, Example))
        ],
    )
    (ours,) = trained(BaseModel(tiny, "float32"), [job], settings).values()
    theirs = by_trl(objective, tiny, job, settings, tmp_path / "trl")
    assert ours.losses == pytest.approx(theirs, rel=2e-4)
    assert ours.losses[0] == pytest.approx(math.log(2) if objective == "dpo" else (3 * 0.7 + 1.4) / 4 / 2)
    assert ours.losses[-1] < ours.losses[0] - 0.05
