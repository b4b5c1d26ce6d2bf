"""The real trainer: what carries loss, what is trained, and what happens when a process dies."""

import functools
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jinja2
import pytest
from tiny import CHATML, CRITIC, GENERATOR, MIXED, SPECIAL, TURN_END, dialogue, make_job, slow

from maft.config import LoraConfig, TrainConfig
from maft.errors import DataError, StageFailed
from maft.models.templates import Template
from maft.trainers.base import TrainJob
from maft.trainers.dialogue_tokens import IGNORED, tokenize
from maft.trainers.sft import SftTrainer
from maft.trainers.sft_worker import _is_out_of_memory


class FakeTokenizer:
    """One token for a byte, for a special token, and for two line breaks in a row."""

    def __init__(self, template: str = CHATML) -> None:
        self.chat_template = template
        self.tokens = [*SPECIAL, "\n\n"]

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt, strftime_now=None):
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(self.chat_template).render(
            messages=messages, add_generation_prompt=add_generation_prompt
        )

    def __call__(self, text: str, add_special_tokens: bool):
        ids = []
        while text:
            number = next((n for n, token in enumerate(self.tokens) if text.startswith(token)), None)
            ids.append(300 + number if number is not None else ord(text[0]))
            text = text[len(self.tokens[number]) if number is not None else 1 :]
        return {"input_ids": ([300] if add_special_tokens else []) + ids}

    all_special_ids = tuple(range(300, 300 + len(SPECIAL)))

    def decode(self, ids, *, skip_special_tokens=False) -> str:
        ids = [token for token in ids if not (skip_special_tokens and token in self.all_special_ids)]
        return "".join(self.tokens[token - 300] if token >= 300 else chr(token) for token in ids)


def fake(template: str = CHATML) -> Template:
    return Template(FakeTokenizer(template), "fake", [300 + SPECIAL.index("<|end|>")])


def trained_texts(template, messages, loss_turns) -> list[str]:
    """The stretches that carry loss, as text."""
    tokens = tokenize(template, messages, loss_turns)
    stretches, before = [], IGNORED
    for token, label in zip(tokens.input_ids, tokens.labels, strict=True):
        assert label in (token, IGNORED)
        if label != IGNORED and before == IGNORED:
            stretches.append([])
        if label != IGNORED:
            stretches[-1].append(token)
        before = label
    return [template.tokenizer.decode(stretch) for stretch in stretches]


# What carries loss


def test_loss_is_on_the_last_reply_and_its_end_alone():
    assert trained_texts(fake(), CRITIC, "last") == ["It is \\boxed{7}." + TURN_END]


def test_loss_on_all_turns_is_on_each_reply_and_its_end():
    assert trained_texts(fake(), CRITIC, "all") == ["\\boxed{8}" + TURN_END, "It is \\boxed{7}." + TURN_END]


def test_the_bos_of_the_template_is_not_doubled():
    ids = tokenize(fake(), CRITIC, "last").input_ids
    assert ids.count(300) == 1 and ids[0] == 300


def test_a_reply_is_tokenised_apart_from_the_prompt_it_was_sampled_after():
    template = fake()
    messages = dialogue("Why?", "\nBecause.")
    tokens = tokenize(template, messages, "last")
    sampled_after = template.tokenize(template.prompt(messages[:1]))
    assert tokens.input_ids[: len(sampled_after)] == sampled_after
    assert trained_texts(template, messages, "last") == ["\nBecause." + TURN_END]


def test_a_template_that_rewrites_earlier_turns_is_refused_for_all_turns_and_fine_for_the_last():
    forgetful = CHATML.replace(
        "message['content'] }}", "message['content'] ~ ('' if loop.last or message['role'] == 'user' else ' (old)') }}"
    )
    assert trained_texts(fake(forgetful), CRITIC, "last") == ["It is \\boxed{7}." + TURN_END]
    with pytest.raises(DataError, match=r"train\.loss_turns=last"):
        tokenize(fake(forgetful), CRITIC, "all")


def test_a_prompt_that_is_not_how_the_dialogue_goes_on_is_trained_on_as_it_was_sampled_after():
    thinking = fake(CHATML.replace("<|assistant|>\n{% endif", "<|assistant|>\n<think></think>{% endif"))
    assert trained_texts(thinking, CRITIC, "last") == ["It is \\boxed{7}." + TURN_END]
    prompt = thinking.tokenizer.decode(tokenize(thinking, CRITIC, "last").input_ids)
    assert prompt.count("<think></think>") == 1 and "<think></think>It is" in prompt
    with pytest.raises(DataError, match=r"train\.loss_turns=last"):
        tokenize(thinking, CRITIC, "all")


@pytest.mark.parametrize("template", ["", "{{ raise_exception('no') }}"])
def test_a_template_that_is_missing_or_fails_is_a_data_error(template):
    with pytest.raises(DataError, match="chat template"):
        tokenize(fake(template), CRITIC, "last")


def test_an_example_must_end_with_a_reply():
    with pytest.raises(DataError, match="end with an assistant message"):
        tokenize(fake(), CRITIC[:3], "last")


@pytest.fixture(scope="module")
def packaged():
    """The chat template of the packaged model."""
    from maft import models
    from maft.samplers.chat import Chat

    return Chat(models.resolve(models.PACKAGED)).template


LETTERS = [
    "a",
    "the",
    " ",
    "  ",
    "\n",
    "\n\n",
    "7",
    "12",
    "+",
    "\\boxed{",
    "}",
    "é",
    "中",
    "🙂",
    "\u200b",
    " So",
    ".",
    "'s",
]


@pytest.mark.slow
def test_sampled_tokens_that_are_as_the_tokenizer_splits_them_change_nothing(packaged):
    rng = random.Random(0)
    for _ in range(300):
        replies = ["".join(rng.choices(LETTERS, k=rng.randint(1, 30))) for _ in range(2)]
        messages = dialogue("Why?", replies[0], "Sure?", replies[1])
        ends = [[], [packaged.tokenizer.eos_token_id]]
        sampled = [packaged.tokenize(text) + rng.choice(ends) for text in replies]
        for turns in ("last", "all"):
            plain = tokenize(packaged, messages, turns)
            assert packaged.tokenizer.decode(plain.input_ids) == packaged.tokenizer.decode(
                tokenize(packaged, messages, turns, sampled).input_ids
            )
            pieces = "".join(replies[:1] if turns == "all" else []) + replies[1]
            if (
                not pieces[:1].isspace() and not replies[1][:1].isspace()
            ):  # else it would be merged with the prompt's end
                assert tokenize(packaged, messages, turns, sampled) == plain


@pytest.mark.slow
def test_sampled_tokens_are_learned_as_they_were_sampled(packaged):
    """Random tokens: the tokenizer would split many of these texts in another way."""
    rng = random.Random(0)
    others = 0
    for _ in range(300):
        ids = [rng.randrange(100, packaged.tokenizer.vocab_size) for _ in range(rng.randint(1, 20))] + [
            packaged.tokenizer.eos_token_id
        ]
        text = packaged.tokenizer.decode(ids, skip_special_tokens=True)
        messages = dialogue("Why?", text)
        plain, row = tokenize(packaged, messages, "last"), tokenize(packaged, messages, "last", [ids])
        learned = [label for label in row.labels if label != IGNORED]
        assert learned == ids + packaged.tokenize("\n")
        assert row.input_ids[: -len(learned)] == plain.input_ids[: -plain.num_completion_tokens]
        others += row != plain
    assert others > 60


def test_sampled_tokens_that_are_not_the_message_are_not_used():
    template = fake()
    wrong = [None, [ord(letter) for letter in "It is \\boxed{8}."]]
    assert tokenize(template, CRITIC, "all", wrong) == tokenize(template, CRITIC, "all")


def test_the_first_reply_is_context_as_the_second_was_sampled_after_it():
    tokenizer = fake()
    messages = dialogue("Why?", "So\n\n.", "Sure?", "Yes\n\n.")
    split = [[*map(ord, "So\n\n.")], [*map(ord, "Yes\n\n."), 301]]
    last, both = (tokenize(tokenizer, messages, turns, split) for turns in ("last", "all"))
    again = tokenizer.tokenize(messages[1].content)
    assert again[2] == 305 and again in [last.input_ids[n : n + len(again)] for n in range(len(last.input_ids))]
    for row, wanted in ((last, split[1:]), (both, [[*split[0], 301], split[1]])):
        learned = [label for label in row.labels if label != IGNORED]
        assert learned == [token for ids in wanted for token in [*ids, 10]]


# When a process dies; the workers here are fakes


def fake_worker(folder: Path, then: str) -> SftTrainer:
    """A trainer whose worker finishes the first job, begins the second one and then does something."""
    script = folder / "worker.py"
    script.write_text(
        textwrap.dedent("""\
            import json, os, pathlib, signal, sys, time
            from maft.trainers import sft_worker
            from maft.files import partial

            request = json.loads(pathlib.Path(sys.argv[1]).read_text())
            channel = sft_worker._private_stdout()
            sft_worker._lines_of_parent()
            print("noise of a library")
            first, second = (pathlib.Path(job["output"]) for job in request["jobs"])
            first.mkdir(parents=True)
            partial(second).mkdir()
            progress = dict(agent="generator_0", step=1, num_steps=1, loss=0.5, tokens=9)
            sft_worker._send(channel, {"progress": progress})
            """)
        + then
    )
    return SftTrainer(worker=(sys.executable, str(script)))


def two_jobs(folder: Path) -> list[TrainJob]:
    return [make_job(folder, "generator_0"), make_job(folder, "generator_1")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_progress_arrives_and_noise_on_standard_output_does_not(tmp_path):
    seen = []
    fake_worker(tmp_path, "partial(second).rename(second)").train(two_jobs(tmp_path), TrainConfig(), seen.append)
    assert [(progress.agent, progress.loss) for progress in seen] == [("generator_0", 0.5)]
    assert names(tmp_path / "agents") == ["generator_0", "generator_1"]


@pytest.mark.slow
def test_warnings_of_a_worker_arrive(tmp_path, caplog):
    then = """
        import logging
        logging.getLogger("maft").addHandler(sft_worker._ToParent(channel))
        sft_worker.log.warning("%s takes longer", "this")
        partial(second).rename(second)
        """
    fake_worker(tmp_path, textwrap.dedent(then)).train(two_jobs(tmp_path), TrainConfig(), lambda _: None)
    assert [record.message for record in caplog.records] == ["this takes longer"]


def test_a_killed_worker_fails_the_stage_and_keeps_the_earlier_jobs(tmp_path):
    trainer = fake_worker(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(StageFailed) as failure:
        trainer.train(two_jobs(tmp_path), TrainConfig(), lambda _: None)
    message = str(failure.value)
    assert "training generator_1 failed (ended by SIGKILL" in message
    assert "Finished and kept: generator_0." in message
    assert "noise of a library" in message
    assert names(tmp_path / "agents") == ["generator_0"]


@pytest.mark.slow
def test_a_worker_that_ends_too_early_without_an_error_fails_the_stage(tmp_path):
    with pytest.raises(StageFailed, match="generator_1 failed"):
        fake_worker(tmp_path, "").train(two_jobs(tmp_path), TrainConfig(), lambda _: None)


def test_what_is_wrong_with_the_data_is_said_in_one_line(tmp_path):
    then = 'sft_worker._send(channel, {"error": {"kind": "DataError", "message": "no template"}}); sys.exit(2)'
    with pytest.raises(DataError, match=r"^no template$"):
        fake_worker(tmp_path, then).train(two_jobs(tmp_path), TrainConfig(), lambda _: None)


@pytest.mark.slow
def test_an_interrupt_ends_the_worker(tmp_path):
    then = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(60)"

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake_worker(tmp_path, then).train(two_jobs(tmp_path), TrainConfig(), interrupt)
    assert names(tmp_path / "agents") == ["generator_0"]
    if (tmp_path / "pid").exists():
        assert not alive(int((tmp_path / "pid").read_text()))


@pytest.mark.slow
def test_the_worker_ends_when_its_parent_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    then = f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(60)"
    trainer = fake_worker(tmp_path, then)
    jobs = [job.model_dump(mode="json") for job in two_jobs(tmp_path)]
    script = textwrap.dedent(f"""\
        from maft.config import TrainConfig
        from maft.trainers.base import TrainJob
        from maft.trainers.sft import SftTrainer
        jobs = [TrainJob.model_validate(job) for job in {jobs!r}]
        SftTrainer(worker={tuple(trainer.worker)!r}).train(jobs, TrainConfig(), lambda _: None)
        """)
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
    worker = int(pid_file.read_text())
    assert alive(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not alive(worker))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")  # dead, not yet reaped


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


# Real training, of a tiny model made here


SETTINGS = TrainConfig(
    num_epochs=10, batch_size=4, learning_rate=5e-2, lr_schedule="constant", max_length=200, lora=LoraConfig(rank=4)
)


@functools.cache
def base_model(folder: str, dtype: str = "bfloat16"):
    from maft.trainers.sft_worker import BaseModel

    return BaseModel(folder, dtype)


def train(job: TrainJob, settings: TrainConfig = SETTINGS) -> tuple[dict, list]:
    """Train in this process; return training.json and the progress."""
    from maft.trainers import sft_worker

    seen = []
    work = sft_worker.Work("bfloat16")
    work.dtype, work.base = "bfloat16", base_model(job.base_model)
    work.train([job], settings, seen.append)
    return json.loads((job.output / "training.json").read_text()), seen


def adapter_tensors(folder: Path):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@slow
def test_the_loss_goes_down_and_every_step_is_told(tiny, tmp_path):
    summary, seen = train(make_job(tmp_path, "generator_0", GENERATOR, tiny))
    assert summary["losses"][-1] < 0.7 * summary["losses"][0]
    assert [(step.step, step.num_steps) for step in seen] == [(n, 20) for n in range(1, 21)]
    assert summary["steps"] == 20 and summary["num_examples"] == 8
    assert seen[-1].tokens == summary["tokens"]
    assert seen[-1].learning_rate == pytest.approx(SETTINGS.learning_rate)
    assert 0 < summary["completion_tokens"] < summary["tokens"]


@slow
def test_the_adapter_moves_and_the_base_model_does_not(tiny, tmp_path):
    import torch

    base = base_model(tiny)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    job = make_job(tmp_path, "generator_0", GENERATOR, tiny)
    train(job)
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = {name: tensor.abs().sum() > 0 for name, tensor in adapter_tensors(job.output).items() if "lora_B" in name}
    assert moved and all(moved.values())


@slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tiny, tmp_path):
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        job = make_job(tmp_path / name, "generator_0", GENERATOR, tiny, seed=seed)
        train(job, SETTINGS.model_copy(update={"num_epochs": 1}))
        contents.append(
            [(job.output / f"adapter_{file}").read_bytes() for file in ("model.safetensors", "config.json")]
        )
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[2][0]


@slow
def test_training_goes_on_from_the_weights_of_the_given_adapter(tiny, tmp_path):
    import torch

    first = make_job(tmp_path, "critic_0", GENERATOR, tiny)
    train(first)
    again = make_job(tmp_path, "critic_1", GENERATOR, tiny, init_adapter=first.output)
    base = base_model(tiny)
    adapted = base.trainable(again, again.training(SETTINGS))
    starts = {name: tensor for name, tensor in adapted.named_parameters() if tensor.requires_grad}
    base.restore(adapted)
    kept = {name.replace(".weight", ".default.weight"): t for name, t in adapter_tensors(first.output).items()}
    assert starts.keys() == kept.keys()
    assert all(torch.equal(starts[name], kept[name]) for name in kept)
    summary, _ = train(again)
    assert summary["losses"][0] < 0.7 * json.loads((first.output / "training.json").read_text())["losses"][0]
    assert summary["init_adapter"] == "critic_0"


@slow
def test_an_agent_is_trained_on_its_own_examples_only(tiny, tmp_path):
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    train(make_job(alone, "generator_1", GENERATOR, tiny))
    train(make_job(beside, "generator_0", [dialogue("Say", "something else")] * 5, tiny))
    train(make_job(beside, "generator_1", GENERATOR, tiny))
    files = [folder / "agents" / "generator_1" / "adapter_model.safetensors" for folder in (alone, beside)]
    assert files[0].read_bytes() == files[1].read_bytes()


@slow
def test_too_long_examples_are_dropped_counted_and_named(tiny, tmp_path, caplog):
    dialogues = [*GENERATOR, dialogue("What?", "x" * 500)]
    with_long, _ = train(make_job(tmp_path / "a", "generator_0", dialogues, tiny))
    without, _ = train(make_job(tmp_path / "b", "generator_0", GENERATOR, tiny))
    assert (with_long["num_examples"], with_long["num_dropped_too_long"]) == (9, 1)
    assert "generator_0: 1 of 9 examples are longer than train.max_length = 200 tokens" in caplog.text
    assert with_long["losses"] == without["losses"]


@slow
def test_without_examples_the_given_adapter_is_kept_as_it_is(tiny, tmp_path):
    first = make_job(tmp_path, "critic_0", GENERATOR, tiny)
    train(first)
    empty = make_job(tmp_path, "critic_1", [], tiny, init_adapter=first.output)
    summary, seen = train(empty)
    assert not summary["trained"] and [(step.step, step.num_steps) for step in seen] == [(0, 0)]
    names = ("adapter_model.safetensors", "adapter_config.json")
    assert all((empty.output / name).read_bytes() == (first.output / name).read_bytes() for name in names)
    assert "not trained" in (empty.output / "README.md").read_text()


@slow
def test_without_examples_and_adapter_a_fresh_one_changes_nothing(tiny, tmp_path):
    job = make_job(tmp_path, "critic_0", [], tiny)
    train(job)
    assert all(not tensor.any() for name, tensor in adapter_tensors(job.output).items() if "lora_B" in name)


@slow
@pytest.mark.parametrize("loss_turns", ["last", "all"])
def test_the_mask_is_exact_with_a_real_tokenizer(tiny, loss_turns):
    template = base_model(tiny).template
    expected = ["\\boxed{8}" + TURN_END] * (loss_turns == "all") + ["It is \\boxed{7}." + TURN_END]
    assert trained_texts(template, CRITIC, loss_turns) == expected
    assert tokenize(template, CRITIC, loss_turns).input_ids.count(template.tokenizer.bos_token_id) == 1


@slow
def test_the_packaged_model_is_masked_exactly_too(packaged):
    assert trained_texts(packaged, CRITIC, "last") == ["It is \\boxed{7}.<|im_end|>\n"]
    assert trained_texts(packaged, CRITIC, "all")[0] == "\\boxed{8}<|im_end|>\n"
    starts = tokenize(packaged, CRITIC, "last").input_ids.count(packaged.tokenizer.bos_token_id)
    assert starts == len(CRITIC) + 1  # <|im_start|>


@slow
def test_our_rows_are_those_that_trl_makes_of_prompt_and_completion(tiny, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    base = base_model(tiny)
    rows = [{"prompt": [m.model_dump() for m in d[:-1]], "completion": [d[-1].model_dump()]} for d in MIXED]
    arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = SFTTrainer(
        model=base.model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=base.tokenizer
    )
    for row, messages in zip(trainer.train_dataset, MIXED, strict=True):
        tokens = tokenize(base.template, messages, "last")
        assert (row["input_ids"], row["labels"]) == (tokens.input_ids, tokens.labels)


@slow
def test_the_worker_trains_all_jobs_and_the_folders_are_peft_adapters(tiny, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    jobs = [make_job(tmp_path, "generator_0", GENERATOR, tiny), make_job(tmp_path, "critic_0", [CRITIC] * 3, tiny)]
    seen = []
    SftTrainer().train(jobs, SETTINGS.model_copy(update={"loss_turns": "all"}), seen.append)
    assert {step.agent for step in seen if step.step == step.num_steps} == {"generator_0", "critic_0"}
    assert names(tmp_path / "agents") == ["critic_0", "generator_0"]
    base = AutoModelForCausalLM.from_pretrained(tiny)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        untrained = base(ids).logits
        trained = PeftModel.from_pretrained(base, jobs[0].output)(ids).logits
    assert not torch.allclose(untrained, trained)
    config = json.loads((jobs[0].output / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny
    card = (jobs[1].output / "README.md").read_text()
    assert "library_name: peft" in card and "critic_0" in card and str(Path(tiny).parent) not in card


# Full finetuning


FULL = SETTINGS.model_copy(update={"method": "full", "num_epochs": 2, "learning_rate": 1e-2})


def train_full(job: TrainJob, settings: TrainConfig = FULL) -> dict:
    """Train all weights in this process, of a base that is loaded for it; return training.json."""
    from maft.trainers import sft_worker

    sft_worker.Work("float32").train([job], settings, lambda _: None)
    return json.loads((job.output / "training.json").read_text())


def model_tensors(folder: str | Path):
    from safetensors.torch import load_file

    return load_file(Path(folder) / "model.safetensors")


@slow
def test_full_finetuning_moves_all_weights_and_keeps_a_whole_model(tiny, tmp_path):
    import torch

    job = make_job(tmp_path, "generator_0", GENERATOR, tiny)
    summary = train_full(job)
    assert summary["method"] == "full" and summary["losses"][-1] < summary["losses"][0]
    before, after = model_tensors(tiny), model_tensors(job.output)
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    same = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")
    assert all((job.output / name).read_bytes() == (Path(tiny) / name).read_bytes() for name in same)
    card = (job.output / "README.md").read_text()
    assert "library_name: transformers" in card and "lora" not in card


@slow
def test_a_fully_finetuned_agent_is_sampled_from_and_finetuned_again(tiny, tmp_path):
    from maft.config import EngineConfig
    from maft.records import Request, SamplingParams
    from maft.runs import societies
    from maft.samplers.transformers import Transformers

    first = make_job(tmp_path / "1", "generator_0", GENERATOR, tiny)
    train_full(first, FULL.model_copy(update={"num_epochs": 30}))
    agent = societies.agent("generator", 0, str(first.output), tiny)
    assert (agent.model, agent.adapter) == (str(first.output.resolve()), None)
    request = Request(agent=agent, messages=GENERATOR[2][:1], sampling=SamplingParams(temperature=0), seed=0)
    untrained = request.model_copy(update={"agent": agent.model_copy(update={"model": tiny})})
    replies = Transformers(EngineConfig(dtype="float32")).sample([request, untrained])
    assert replies[0].text == GENERATOR[2][1].content != replies[1].text

    again = make_job(tmp_path / "2", "generator_0", GENERATOR, agent.model)
    summary = train_full(again)
    assert summary["losses"][0] < 0.1 * json.loads((first.output / "training.json").read_text())["losses"][0]
    assert "`generator_0`" in (again.output / "README.md").read_text()


@slow
def test_full_finetuning_goes_on_from_an_adapter_by_merging_it(tiny, tmp_path):
    adapter = make_job(tmp_path / "1", "generator_0", GENERATOR, tiny)
    learnt, _ = train(adapter)
    job = make_job(tmp_path / "2", "generator_0", GENERATOR, tiny, init_adapter=adapter.output)
    assert train_full(job)["losses"][0] < 0.7 * learnt["losses"][0]
    assert not (job.output / "adapter_config.json").exists()


@slow
def test_each_full_finetuning_starts_from_the_base_and_not_from_the_one_before(tiny, tmp_path):
    from maft.trainers import sft_worker

    alone = make_job(tmp_path / "alone", "generator_1", GENERATOR, tiny)
    train_full(alone)
    both = [make_job(tmp_path / "both", f"generator_{n}", GENERATOR[n:], tiny) for n in (1, 0)]
    both = [
        both[0].model_copy(update={"agent": "generator_0"}),
        alone.model_copy(update={"output": tmp_path / "again"}),
    ]
    sft_worker.Work("float32").train(both, FULL, lambda _: None)
    names = ("model.safetensors", "config.json", "tokenizer.json")
    assert all((alone.output / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


@slow
def test_without_examples_a_full_agent_is_the_model_it_started_from(tiny, tmp_path):
    import torch

    job = make_job(tmp_path, "critic_0", [], tiny)
    assert not train_full(job)["trained"]
    before, after = model_tensors(tiny), model_tensors(job.output)
    assert all(torch.equal(before[name], after[name]) for name in before)


# What a batch is made of changes nothing


@slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_eight_batches_of_one_are_one_batch_of_eight(tiny, tmp_path, method):
    """The loss is a mean over the tokens of the whole step: examples of unequal lengths weigh by their tokens."""
    from maft.trainers import sft_worker

    losses = []
    for batch, accumulated in ((8, 1), (1, 8), (2, 4)):
        changes = {"method": method, "batch_size": batch, "gradient_accumulation": accumulated, "num_epochs": 2}
        how = FULL.model_copy(update=changes)
        job = make_job(tmp_path / f"{batch}x{accumulated}", "generator_0", [*MIXED, *GENERATOR[5:]], tiny)
        sft_worker.Work("float32").train([job], how, lambda _: None)
        losses.append(json.loads((job.output / "training.json").read_text())["losses"])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-5)


@slow
def test_checkpointing_changes_nothing_but_memory(tiny, tmp_path):
    losses = []
    for checkpointing in (False, True):
        job = make_job(tmp_path / str(checkpointing), "generator_0", MIXED, tiny)
        settings = SETTINGS.model_copy(update={"gradient_checkpointing": checkpointing, "num_epochs": 2})
        losses.append(train(job, settings)[0]["losses"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


# Packing


@slow
def test_packed_examples_have_the_loss_that_they_have_alone(tiny, tmp_path):
    from maft.trainers import sft_worker

    losses = []
    for packing, rows in ((False, 8), (True, 4)):
        # 8 examples are one step in both: packed, they are 4 rows of up to 200 tokens or fewer
        how = FULL.model_copy(update={"method": "lora", "packing": packing, "batch_size": rows, "num_epochs": 3})
        job = make_job(tmp_path / str(packing), "generator_0", [*MIXED, dialogue("What?", "x" * 500)], tiny)
        sft_worker.Work("float32").train([job], how, lambda _: None)
        summary = json.loads((job.output / "training.json").read_text())
        assert summary["num_dropped_too_long"] == 1 and summary["steps"] == 3
        losses.append(summary["losses"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@slow
def test_packed_rows_hold_whole_examples_only(tiny, tmp_path):
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    base = base_model(tiny)
    rows = [tokenize(base.template, messages, "last") for messages in MIXED]
    packed = pack_dataset(Dataset.from_list([row._asdict() for row in rows]), 200, "bfd")
    found = []
    for row in packed:
        start = 0
        for length in row["seq_lengths"]:
            found.append((row["input_ids"][start : start + length], row["labels"][start : start + length]))
            start += length
        assert start == len(row["input_ids"]) <= 200
    assert sorted(found) == sorted((row.input_ids, row.labels) for row in rows)


@slow
def test_a_model_in_which_packed_examples_see_each_other_is_refused(tiny, tmp_path):
    import torch
    from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

    from maft.trainers import sft_worker

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.5
    )
    folder = tmp_path / "mamba"
    tokenizer.save_pretrained(folder)
    MambaForCausalLM(config).save_pretrained(folder)
    job = make_job(tmp_path, "generator_0", MIXED, str(folder))
    with pytest.raises(DataError, match=r"mamba models packed examples see each other.*train\.packing=false"):
        sft_worker.Work("float32").train([job], FULL.model_copy(update={"packing": True}), lambda _: None)
    assert not job.output.exists()


# Too little memory


@slow
def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(tiny, monkeypatch):
    from maft.trainers.base_model import BaseModel, memory

    monkeypatch.setattr(memory, "free_ram", lambda: 50_000.0)
    with pytest.raises(
        DataError, match=r"does not fit into main memory.*of gradients.*of the optimiser.*train\.method=lora"
    ):
        BaseModel(tiny, "bfloat16", "full")
    assert BaseModel(tiny, "bfloat16", "lora").model is not None


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_earlier_jobs_are_kept(tmp_path):
    then = 'sft_worker._send(channel, {"error": {"kind": "disk", "message": "No space left on device"}}); sys.exit(1)'
    with pytest.raises(StageFailed) as failure:
        fake_worker(tmp_path, then).train(two_jobs(tmp_path), TrainConfig(), lambda _: None)
    assert "the weights of generator_1 could not be written: No space left on device. Finished and kept" in str(
        failure.value
    )
    assert "\n" not in str(failure.value)


@pytest.mark.slow
def test_running_out_of_memory_says_what_takes_less_and_keeps_the_earlier_jobs(tmp_path):
    then = 'sft_worker._send(channel, {"error": {"kind": "memory", "message": "CUDA out of memory"}}); sys.exit(1)'
    with pytest.raises(StageFailed) as failure:
        fake_worker(tmp_path, then).train(two_jobs(tmp_path), TrainConfig(), lambda _: None)
    assert "generator_1 ran out of memory: CUDA out of memory. Finished and kept: generator_0." in str(failure.value)
    assert "train.gradient_checkpointing=true" in str(failure.value)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 8 bytes"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_errors_of_too_little_memory_are_recognised(error, is_one):
    assert _is_out_of_memory(error) is is_one


@slow
def test_a_loss_that_is_no_number_is_said_and_saves_nothing(tiny, tmp_path):
    job = make_job(tmp_path, "generator_0", GENERATOR, tiny)
    with pytest.raises(DataError, match="the loss is nan"):
        train(job, SETTINGS.model_copy(update={"learning_rate": math.inf}))
    base_model.cache_clear()
    assert not job.output.exists()
