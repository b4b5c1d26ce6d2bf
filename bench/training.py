"""Finetuning the same adapters on the same examples, by a plain TRL script and by maft.

    python -m bench.training [--quick]          one agent, in a process of its own each: TRL and maft, by objective
    python -m bench.training shapes [--quick] [1.5B 0.5B]
                                                six agents in this process, on the best device: TRL, one after the
                                                other, all in one step; SmolLM2-135M and random weights in other shapes

Both train LoRA of rank 16 on all linear layers in the dtype that is best for this machine, with the same batches,
steps, learning rates and seed, and loss on the last reply only. The time is that of the training itself, without
imports and loading.
"""

import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maft import files, models, seeds
from maft.config import TrainConfig
from maft.records import Example, Message
from maft.trainers import TrainJob
from maft.trainers.sft import SftTrainer

SETTINGS = TrainConfig(num_epochs=1, batch_size=16, gradient_checkpointing=False)
MODEL = "smollm2-135m-instruct"
SEED = 7
SHAPES: dict[str, dict[str, Any]] = {
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
}  # fmt: skip
"""Shapes of Qwen2.5; weights are random."""
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 49152, "tie_word_embeddings": True}  # fmt: skip


def examples(count: int, *, critics: int = 3) -> list[Example]:
    """Return generator examples of 60 to 150 tokens and, one in `critics`, critic dialogues of 200 to 400."""
    made = []
    for number in range(count):
        rng = seeds.rng("bench", number)
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        question = Message(role="user", content=f"What is {a} * {b}? Give the final answer as \\boxed{{answer}}.")
        messages = [question, _reply(a, b, rng.randint(1, 5))]
        if critics and number % critics == critics - 1:
            others = "\n\n".join(f"Agent {n}: {_reply(a, b + n - 1, rng.randint(1, 5)).content}" for n in (1, 2))
            asked = f"These are the answers of other agents:\n\n{others}\n\nUse them as advice. {question.content}"
            messages += [Message(role="user", content=asked), _reply(a, b, rng.randint(1, 4))]
        made.append(
            Example(
                iteration=1,
                problem_id=str(number),
                agent="generator_0",
                kind="first",
                messages=tuple(messages),
                wanted=number % 3 != 1,
                rejected=_reply(a, b + 1, rng.randint(1, 5)).content,
            )
        )
    return made


def _reply(a: int, b: int, sentences: int) -> Message:
    steps = [f"Adding {a} once more gives {a * n}, which is {n} times {a}." for n in range(1, sentences + 1)]
    return Message(role="assistant", content=" ".join([*steps, f"So {a} * {b} = \\boxed{{{a * b}}}."]))


def job(file: Path, output: Path, *, agent: str = "generator_0", model: str = MODEL) -> TrainJob:
    """Return the job of one agent."""
    return TrainJob(
        agent=agent,
        role=agent.split("_")[0],
        iteration=1,
        examples=file,
        num_examples=len(files.read_records(file, Example)),
        base_model=model,
        init_adapter=None,
        output=output,
        seed=SEED,
    )


def _trl(objective: str, example: Example) -> dict[str, Any]:
    """Return an example as a row of TRL's data set for an objective."""
    *prompt, last = (message.model_dump() for message in example.messages)
    if objective == "dpo":
        return {"prompt": prompt, "chosen": [last], "rejected": [last | {"content": example.rejected}]}
    judged = {"label": example.wanted} if objective == "kto" else {}
    return {"prompt": prompt, "completion": [last]} | judged


def plain_trl(file: Path, model: Any = None, tokenizer: Any = None, objective: str = "sft") -> dict[str, float]:
    """Train as a script from TRL's documentation would, and return its figures."""
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    dtype = models.usable_dtype("bfloat16")
    config = {"sft": trl.SFTConfig, "kto": trl.KTOConfig, "dpo": trl.DPOConfig}[objective]
    kind = {"sft": trl.SFTTrainer, "kto": trl.KTOTrainer, "dpo": trl.DPOTrainer}[objective]
    more = {"train_sampling_strategy": "sequential"} if objective == "kto" else {}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = kind(
            model=model or models.resolve(MODEL),
            args=config(
                output_dir=scratch,
                model_init_kwargs=None if model else {"dtype": dtype},
                bf16=dtype == "bfloat16",
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
                **more,
            ),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([_trl(objective, e) for e in files.read_records(file, Example)]),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    if model is not None:
        trainer.model.unload()
    return {
        "seconds": seconds,
        "tokens_per_second": logged[-1]["num_tokens"] / seconds,
        "loss": sum(entry["loss"] for entry in logged) / len(logged),
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def ours(file: Path, objective: str = "sft") -> dict[str, float]:
    """Train with maft's trainer, in its own process as always, and return its figures."""
    output = file.parent / f"adapter_{objective}"
    SftTrainer().train([job(file, output)], SETTINGS.model_copy(update={"objective": objective}), lambda _: None)
    summary: dict[str, Any] = files.read_json(output / "training.json")
    return {
        "tokens_per_second": summary["tokens"] / summary["seconds"],
        "loss": sum(summary["losses"]) / len(summary["losses"]),
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
    }


def bench_training(
    base: Any,
    *,
    num_agents: int = 6,
    num_examples: int = 128,
    trl: bool = True,
    seconds: float = 60.0,
    on_figures: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Train half generators, half critics in this process: by TRL, one after the other, and all in one step.

    Args:
        base: a `maft.trainers.base_model.BaseModel`, or the folder of a model.
        num_agents: how many; all have their own examples.
        num_examples: of each agent.
        trl: train the first generator and the first critic by a plain TRL script as well.
        seconds: TRL is left out where the first two agents take longer than this alone.
        on_figures: gets what is there before TRL is measured.

    Returns:
        For each manner: seconds, tokens a second, mean loss, and peak memory in GB; and their ratios.
    """
    import torch

    from maft.trainers.base_model import BaseModel

    on_gpu = torch.cuda.is_available()
    if not isinstance(base, BaseModel):
        base = BaseModel(str(base), models.usable_dtype("bfloat16"))
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "dtype": base.dtype,
        "parameters": sum(weight.numel() for weight in base.model.parameters()),
    }
    with tempfile.TemporaryDirectory() as home:
        jobs = []
        for number in range(num_agents):
            agent = f"{'generator' if number % 2 == 0 else 'critic'}_{number // 2}"
            made = examples(num_examples, critics=number % 2)[: num_examples - number]
            files.write_records(Path(home) / f"{agent}.jsonl", made)
            jobs.append(job(Path(home) / f"{agent}.jsonl", Path(home) / agent, agent=agent, model=base.name))
        _run(base, jobs[:2])  # loads kernels
        alone = [_run(base, [one]) for one in jobs]
        figures["alone"] = {key: [run[key] for run in alone] for key in alone[0]}
        figures["sequential"] = _sum(alone)
        figures["together"] = _run(base, jobs)
        mean = statistics.mean(figures["alone"]["seconds"])
        figures["together_over_one"] = figures["together"]["seconds"] / mean
        figures["sequential_over_together"] = figures["sequential"]["seconds"] / figures["together"]["seconds"]
        on_figures(figures)
        if trl and sum(figures["alone"]["seconds"][:2]) < seconds:
            by_trl = []
            for one in jobs[:2]:
                _reset()
                run = plain_trl(one.examples, base.model, base.tokenizer)
                by_trl.append(run | {"peak_gb": _peak()})
            figures["trl"] = {key: [run[key] for run in by_trl] for key in by_trl[0]}
            pair = sum(figures["trl"]["seconds"])
            figures["trl_over_alone"] = pair / sum(figures["alone"]["seconds"][:2])
            figures["trl_over_together"] = pair * num_agents / 2 / figures["together"]["seconds"]
    return figures


def _run(base: Any, jobs: Sequence[TrainJob]) -> dict[str, Any]:
    """Train agents in one loop; the time is that of the steps."""
    from maft.trainers import agent, together

    learners = [agent.prepare(one, SETTINGS, base) for one in jobs]
    ends: list[float] = []
    losses: list[float] = []
    _reset()
    start = time.perf_counter()
    together.train(base, learners, lambda _: ends.append(time.perf_counter()), lambda _, r: losses.extend(r.losses))
    whole = time.perf_counter() - start
    steps = sorted({round(end, 4) for end in ends})
    first = max(end for end in steps if end - steps[0] < 0.002)  # agents of one step report one after the other
    num_steps = max(len(list(_chunks(len(p.units)))) for p in learners)
    seconds = (steps[-1] - first) * num_steps / max(1, num_steps - 1)
    tokens = sum(len(row.input_ids) for p in learners for row in p.rows)
    return {
        "seconds": seconds,
        "with_preparation": whole,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "loss": statistics.mean(losses),
        "peak_gb": _peak(),
    }


def _chunks(count: int) -> range:
    return range(0, count, SETTINGS.batch_size)


def _sum(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds, tokens = (sum(run[key] for run in runs) for key in ("seconds", "tokens"))
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "peak_gb": max(run["peak_gb"] for run in runs)}


def _reset() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak() -> float:
    """Return the peak of GPU memory, or of this process's on a CPU, in GB."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def random_base(shape: dict[str, Any]) -> Any:
    """Return a base model with random weights in a shape, and the packaged model's tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from maft.samplers.chat import Chat
    from maft.trainers.base_model import BaseModel

    class RandomBase(BaseModel):
        def __init__(self) -> None:
            self.name, self.method, self.trust = "random", "lora", False
            self.dtype = models.usable_dtype("bfloat16")
            self.on_cpu, self.pristine, self.knows = not torch.cuda.is_available(), True, {}
            self.likelihoods = {}
            chat = Chat(models.resolve(MODEL))
            self.template, self.tokenizer = chat.template, chat.tokenizer
            torch.manual_seed(0)
            with torch.device("cpu" if self.on_cpu else "cuda"):
                self.model = Qwen2ForCausalLM(Qwen2Config(**shape)).to(getattr(torch, self.dtype))
            self.model.config._name_or_path = self.model.name_or_path = "random"

    return RandomBase()


def shapes(names: Sequence[str], *, quick: bool) -> None:
    """Measure several models in this process, and print JSON after each."""
    figures: dict[str, Any] = {}
    plans: dict[str, Any] = {"135M": MODEL} | SHAPES if not quick else {"tiny": TINY}
    if unknown := set(names) - set(plans):
        sys.exit(f"bench.training: no shape is called {' or '.join(sorted(unknown))}; there are {', '.join(plans)}")
    for name in names or plans:
        plan = plans[name]
        base = plan if isinstance(plan, str) else random_base(plan)
        try:
            figures[name] = bench_training(
                base,
                num_agents=4 if quick else 6,
                num_examples=20 if quick else 128,
                on_figures=lambda part, name=name: print(json.dumps(figures | {name: part}), flush=True),
            )
        except RuntimeError as error:  # such as too little memory: the others are still worth having
            figures[name] = {"error": str(error).splitlines()[0]}
        del base
        _reset()
        print(json.dumps(figures), flush=True)


def main(*, quick: bool) -> None:
    """Measure both, each in a process of its own, and print JSON."""
    models.resolve(MODEL)
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "generator_0.jsonl"
        files.write_records(file, examples(48 if quick else 128))
        figures: dict[str, Any] = {}
        for manner in ("trl", "maft", "trl_kto", "maft_kto", "trl_dpo", "maft_dpo"):
            command = [sys.executable, "-m", "bench.training", manner, str(file)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:  # such as too little memory: the others are still worth having
                print(f"{manner} ended with {done.returncode}. {done.stderr[-3000:]}", file=sys.stderr)
                figures[manner] = {"error": f"ended with {done.returncode}"}
            else:
                figures[manner] = json.loads(done.stdout.strip().splitlines()[-1])
            print(json.dumps(figures), flush=True)
    sys.exit(any("error" in figure for figure in figures.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["shapes"]:
        shapes([name for name in sys.argv[2:] if name != "--quick"], quick="--quick" in sys.argv)
    elif len(sys.argv) == 3:
        by, _, objective_ = sys.argv[1].partition("_")
        measure = {"trl": plain_trl, "maft": ours}[by]
        print(json.dumps(measure(Path(sys.argv[2]), objective=objective_ or "sft")))
    else:
        main(quick="--quick" in sys.argv)
