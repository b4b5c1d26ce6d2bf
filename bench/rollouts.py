"""Debates with the untrained model, in three manners; each in a process of its own, for its peak memory.

    python -m bench.rollouts maft|released|batched NUM_DEBATES

`released` is the manner of the paper's released code: transformers in float32, one request at a time. `batched` is
transformers in bfloat16 with batches of 64. Both sample with `generate(do_sample=True)`. Questions, prompts, rounds,
sampling parameters and token limits are the same for all.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from maft import engines, method, models
from maft.config import RunConfig, parse, prompts
from maft.method.protocol import Rules
from maft.pipeline import rollouts
from maft.records import Problem, Reply, Request
from maft.runs import societies
from maft.samplers.base import Sampler
from maft.tasks import make as make_task
from maft.tasks import prepare

SAMPLING = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 128}
WARM_UP = 2


class Plain:
    """transformers' own sampling, in batches of a fixed size."""

    def __init__(self, dtype: str, batch_size: int) -> None:
        self.dtype, self.batch_size = dtype, batch_size
        self._model: Any = None

    def sample(self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None) -> list[Reply]:
        self._load()
        batches = [requests[i : i + self.batch_size] for i in range(0, len(requests), self.batch_size)]
        return [reply for batch in batches for reply in self._batch(batch)]

    def release(self) -> None:
        self._model = None

    def _load(self) -> None:
        if self._model is None:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            torch.manual_seed(0)
            folder = models.resolve("smollm2-135m-instruct")
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
            self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, self.dtype)).eval()

    def _batch(self, requests: Sequence[Request]) -> list[Reply]:
        import torch

        chats = [[message.model_dump() for message in request.messages] for request in requests]
        inputs = self._tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        )
        with torch.inference_mode():
            output = self._model.generate(**inputs, do_sample=True, top_k=0, **SAMPLING)
        start, end = inputs["input_ids"].shape[1], self._tokenizer.eos_token_id
        replies = []
        for row, mask in zip(output[:, start:].tolist(), inputs["attention_mask"], strict=True):
            tokens = row[: row.index(end) + 1] if end in row else row
            text = self._tokenizer.decode(tokens, skip_special_tokens=True)
            replies.append(
                Reply(text=text, finish_reason="stop", prompt_tokens=int(mask.sum()), completion_tokens=len(tokens))
            )
        return replies


def settings() -> RunConfig:
    """Return the workload: three agents, two rounds, the others' answers in full."""
    roles = dict.fromkeys(("generator", "critic", "summarizer"), SAMPLING)
    return parse(
        {
            "task": {"name": "arithmetic", "num_train": 200, "num_eval": 60},
            "debate": {"summarizer": "none"},
            "sampling": {"train": roles},
        }
    )


def make(manner: str, config: RunConfig) -> Sampler:
    """Return the sampler of a manner."""
    if manner == "maft":
        return engines.make_sampler(config)
    return Plain("float32", 1) if manner == "released" else Plain("bfloat16", 64)


def hold(problems: Sequence[Problem], rules: Rules, sampler: Sampler) -> dict[str, float]:
    """Debate the questions and return the rates."""
    start = time.perf_counter()
    debates = rollouts.play_all([method.play(problem, rules) for problem in problems], sampler)
    seconds = time.perf_counter() - start
    replies = [call.reply for done in debates for call in done.calls()]
    return {
        "debates_per_minute": 60 * len(debates) / seconds,
        "generated_per_second": sum(reply.completion_tokens for reply in replies) / seconds,
        "tokens_per_second": sum(reply.completion_tokens + reply.prompt_tokens for reply in replies) / seconds,
    }


def main(manner: str, num_debates: int) -> None:
    """Measure one manner and print JSON."""
    config = settings()
    task = make_task(config.task)
    problems = prepare(task).train
    rules = Rules(
        society=societies.untrained(config),
        debate=config.debate,
        prompts=prompts.build(task.prompts),
        sampling=config.sampling.train,
        run_seed=0,
        iteration=0,
        extract=task.extract,
    )
    sampler = make(manner, config)
    hold(problems[-WARM_UP:], rules, sampler)
    rates = hold(problems[:num_debates], rules, sampler)
    rates["peak_rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
