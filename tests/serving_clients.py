"""Unmodified clients against a server; run by their own Python: URL CHAT_URL TOKENIZER FOLDER. Prints JSON.

URL serves a tiny model, CHAT_URL a script that answers every question with 5.
"""

import json
import os
import sys
from pathlib import Path

URL, CHAT_URL, TOKENIZER, FOLDER = sys.argv[1:] if __name__ == "__main__" else [""] * 4
HOME = Path(FOLDER)
QUESTION = "What is 2 + 3?"
COMMON = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": f"{FOLDER}/sums.jsonl"}},
    "test_split": "test",
}
TASKS = {
    "likely": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}} It is",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "chatty": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["Question:"], "max_gen_toks": 48, "temperature": 0.7, "do_sample": True},
        "filter_list": [
            {
                "name": "last",
                "filter": [
                    {"function": "regex", "regex_pattern": "([0-9]+)", "group_select": -1},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


def with_lm_eval() -> dict[str, float]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows = [
        {"question": QUESTION, "choices": ["5", "six"], "label": 0},
        {"question": "1 + 4?", "choices": ["5", "x"], "label": 0},
    ]
    (HOME / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        (HOME / f"{name}.yaml").write_text(json.dumps({"task": name, **COMMON, **task}))
    manager = TaskManager(include_path=FOLDER)
    arguments = f"model=base,base_url={URL}/v1/completions,tokenizer={TOKENIZER},max_length=256"
    likely = lm_eval.simple_evaluate(
        "local-completions", arguments, tasks=["likely"], task_manager=manager, log_samples=True
    )
    chatty = lm_eval.simple_evaluate(
        "local-chat-completions",
        f"model=debate,base_url={CHAT_URL}/v1/chat/completions,num_concurrent=2",
        tasks=["chatty"],
        task_manager=manager,
        apply_chat_template=True,
    )
    return {
        "likelihoods": [[float(answer[0][0]) for answer in sample["resps"]] for sample in likely["samples"]["likely"]],
        "chatty": chatty["results"]["chatty"]["exact_match,last"],
    }


def with_inspect() -> dict[str, object]:
    import inspect_ai
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    data = MemoryDataset([Sample(input=QUESTION, target="5"), Sample(input="1 + 1?", target="2")])
    task = inspect_ai.Task(dataset=data, solver=[generate()], scorer=includes())
    model = {"model": "openai-api/maft/vote", "model_base_url": f"{CHAT_URL}/v1"}
    (log,) = inspect_ai.eval(task, **model, display="none", log_dir=f"{FOLDER}/logs")
    used = sum(usage.total_tokens for usage in log.stats.model_usage.values())
    return {"inspect": log.results.scores[0].metrics["accuracy"].value, "inspect tokens": used}


def with_litellm() -> dict[str, object]:
    import litellm

    how = {"model": "openai/debate", "api_base": f"{CHAT_URL}/v1", "api_key": "none", "seed": 1}
    messages = [{"role": "user", "content": QUESTION}]
    plain = litellm.completion(messages=messages, **how)
    parts = litellm.completion(messages=messages, stream=True, **how)
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    return {
        "litellm": plain.choices[0].message.content,
        "litellm stream": text,
        "litellm tokens": plain.usage.total_tokens,
    }


if __name__ == "__main__":
    os.environ |= {
        "OPENAI_API_KEY": "none",
        "MAFT_API_KEY": "none",
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    sys.stdout.write(json.dumps(with_lm_eval() | with_inspect() | with_litellm()) + "\n")
