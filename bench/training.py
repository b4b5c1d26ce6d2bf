"""Finetuning the same adapter on the same examples, by a plain TRL script and by maft.

    python -m bench.training [--quick]

Both load the model in bfloat16, train LoRA of rank 16 on all linear layers, with the same batches, steps, learning
rates and seed, and loss on the last reply only. The time is that of the training itself, without imports and loading.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from maft import files, models, seeds
from maft.config import TrainConfig
from maft.records import Example, Message
from maft.trainers import TrainJob
from maft.trainers.sft import SftTrainer

SETTINGS = TrainConfig(num_epochs=1, batch_size=16)
MODEL = "smollm2-135m-instruct"
SEED = 7


def examples(count: int) -> list[Example]:
    """Return generator examples of 60 to 150 tokens and, one in three, critic dialogues of 200 to 400."""
    made = []
    for number in range(count):
        rng = seeds.rng("bench", number)
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        question = Message(role="user", content=f"What is {a} * {b}? Give the final answer as \\boxed{{answer}}.")
        messages = [question, _reply(a, b, rng.randint(1, 5))]
        if number % 3 == 2:
            others = "\n\n".join(f"Agent {n}: {_reply(a, b + n - 1, rng.randint(1, 5)).content}" for n in (1, 2))
            asked = f"These are the answers of other agents:\n\n{others}\n\nUse them as advice. {question.content}"
            messages += [Message(role="user", content=asked), _reply(a, b, rng.randint(1, 4))]
        made.append(
            Example(iteration=1, problem_id=str(number), agent="generator_0", kind="first", messages=tuple(messages))
        )
    return made


def _reply(a: int, b: int, sentences: int) -> Message:
    steps = [f"Adding {a} once more gives {a * n}, which is {n} times {a}." for n in range(1, sentences + 1)]
    return Message(role="assistant", content=" ".join([*steps, f"So {a} * {b} = \\boxed{{{a * b}}}."]))


def plain_trl(file: Path) -> dict[str, float]:
    """Train as a script from TRL's documentation would, and return its figures."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = [[message.model_dump() for message in example.messages] for example in files.read_records(file, Example)]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=models.resolve(MODEL),
            args=SFTConfig(
                output_dir=scratch,
                model_init_kwargs={"dtype": "bfloat16"},
                bf16=True,
                use_cpu=not torch.cuda.is_available(),
                gradient_checkpointing=False,
                num_train_epochs=SETTINGS.num_epochs,
                per_device_train_batch_size=SETTINGS.batch_size,
                learning_rate=SETTINGS.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=SETTINGS.warmup_ratio,
                max_grad_norm=SETTINGS.max_grad_norm,
                seed=SEED,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows]),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "tokens_per_second": logged[-1]["num_tokens"] / seconds,
        "loss": sum(entry["loss"] for entry in logged) / len(logged),
        "peak_rss_gb": peak,
    }


def ours(file: Path) -> dict[str, float]:
    """Train with maft's trainer, in its own process as always, and return its figures."""
    output = file.parent / "adapter"
    job = TrainJob(
        agent="generator_0",
        role="generator",
        iteration=1,
        examples=file,
        num_examples=len(files.read_records(file, Example)),
        base_model=MODEL,
        init_adapter=None,
        output=output,
        seed=SEED,
    )
    SftTrainer().train([job], SETTINGS, lambda _: None)
    summary: dict[str, Any] = files.read_json(output / "training.json")
    return {
        "tokens_per_second": summary["tokens"] / summary["seconds"],
        "loss": sum(summary["losses"]) / len(summary["losses"]),
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
    }


def main(*, quick: bool) -> None:
    """Measure both, each in a process of its own, and print JSON."""
    models.resolve(MODEL)
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "generator_0.jsonl"
        files.write_records(file, examples(48 if quick else 128))
        figures = {}
        for manner in ("trl", "maft"):
            command = [sys.executable, "-m", "bench.training", manner, str(file)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            figures[manner] = json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps(figures))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps({"trl": plain_trl, "maft": ours}[sys.argv[1]](Path(sys.argv[2]))))
    else:
        main(quick="--quick" in sys.argv)
