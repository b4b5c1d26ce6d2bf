"""The card of an agent, and its sections: numbers, data, and how to load it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from maft import files, models, tasks
from maft.config import prompts
from maft.evaluation import series as metrics
from maft.evaluation.methods import names
from maft.evaluation.series import Line
from maft.method import protocol_of
from maft.runs.folder import RunFolder
from maft.sharing.agents import Agent, described
from maft.trainers import cards

_ADAPTER = """\
## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base})
model = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(model, {place})
"""
_MODEL = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place})
model = AutoModelForCausalLM.from_pretrained({place})
"""
_ASK = """
messages = {messages}
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
reply = model.generate(**inputs, max_new_tokens=256)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(reply, skip_special_tokens=True))
```
"""


class Held:
    """The numbers of a run before finetuning and after an iteration; empty where it is not evaluated."""

    def __init__(self, run: RunFolder, iteration: int) -> None:
        self.run = run
        self.iteration = iteration
        self.before = _by_name(metrics.of_society(run, 0))
        self.after = _by_name(metrics.of_society(run, iteration))

    def of_society(self) -> Line | None:
        """Return the numbers of the debate after the iteration."""
        return self.after.get(names(self.iteration, self.run.config.debate.num_agents)[2])


def agent_card(
    held: Held,
    agent: Agent,
    base: str,
    where: str,
    *,
    merged: bool,
    license: str | None = None,
    subfolder: str = "",
    branch: str | None = None,
) -> str:
    """Return the README.md of an agent.

    It is loaded from `where`, a repository or folder, as a whole model if `merged`. `base` is the public name of its
    base model; the branch None is main.
    """
    run, adapter = held.run, agent.ref.adapter is not None and not merged
    return cards.card(
        described(run, agent, base, merged=merged),
        [
            numbers(held, [agent.name]),
            data(run, agent.iteration),
            use(run, base, where, adapter=adapter, subfolder=subfolder, branch=branch),
        ],
        license=license,
        **results(held, held.after.get(agent.name), where.rpartition("/")[2]),
    )


def numbers(held: Held, agents: Sequence[str]) -> str:
    """Return the accuracy of agents and of their society, before and after, with intervals."""
    if not held.after:
        return "## Numbers\n\nThis iteration has not been evaluated.\n"
    if not any(line.get("accuracy") is not None for line in held.after.values()):
        return "## Numbers\n\nThe answers to the held-out questions are not known; nothing was measured.\n"
    size, run = held.run.config.debate.num_agents, held.run
    when = {"generator": "first answer", "critic": "last round of a debate"}
    rows = [(f"{agent} alone, {when[agent.partition('_')[0]]}", agent, agent) for agent in agents]
    labels = ("single answer of a generator, mean", f"vote of {size} first answers", "debate")
    rows += list(zip(labels, names(0, size), names(held.iteration, size), strict=True))
    lines = [f"| accuracy, 95 % interval | untrained | after iteration {held.iteration} |", "|---|---|---|"]
    lines += [f"| {label} | {_cell(held.before.get(a))} | {_cell(held.after.get(b))} |" for label, a, b in rows]
    table = "\n".join(lines)
    return (
        f"## Numbers\n\n{table}\n\n"
        f"On {files.num_lines(run.problems('eval'))} held-out questions, none of them trained on; one run, seed "
        f"{run.config.seed}. Answers that could not be read count as wrong.\n"
    )


def data(run: RunFolder, iteration: int) -> str:
    """Return what the agents were trained on, and how good the labels were."""
    debate, task = run.config.debate, run.config.task
    label = next(iter(metrics.of_labels(run, iteration)), None)
    source = f", from the data set {task.dataset}" if _on_hub(task.dataset) else ""
    protocol = protocol_of(debate)
    critics = f" and {debate.num_agents} critics" if "critic" in protocol.roles(debate) else ""
    text = (
        f"Task `{task.name}`{source}: {files.num_lines(run.problems('train'))} training questions, debated by "
        f"{debate.num_agents} generators{critics} in {protocol.rounds(debate)} rounds. "
    )
    if run.votes(iteration).exists():
        text += "The labels are the agents' majority votes; no known answers were used."
    else:
        text += "The labels are those of a baseline, STaR: known answers, or votes in their place."
    if label is not None:
        text += f" In iteration {iteration}, {label['used']} of {label['num_problems']} questions were trained on"
        right = label["pseudo_label_accuracy"]
        text += "." if right is None else f"; {_cell(label | {'accuracy': right})} of their labels are right."
    if run.config.society.one_model:
        text += " One model learnt from all agents' examples and speaks for every agent."
    return f"## Data\n\n{text}\n"


def use(run: RunFolder, base: str, where: str, *, adapter: bool, subfolder: str = "", branch: str | None = None) -> str:
    """Return code that loads an agent and asks it a question as it was asked in training."""
    asked = run.config.prompts_of(subfolder) if subfolder else run.config.prompts
    texts = prompts.build(tasks.make(run.config.task).prompts, asked)
    system = [] if texts.system is None else [{"role": "system", "content": texts.system}]
    question = {"role": "user", "content": prompts.fill(texts.solve, question="What is 7 * 8?")}
    more = {"subfolder": subfolder, "revision": branch}
    place = ", ".join([json.dumps(where), *(f"{key}={json.dumps(value)}" for key, value in more.items() if value)])
    code = _ADAPTER if adapter else _MODEL
    return code.format(base=json.dumps(base), place=place) + _ASK.format(messages=[*system, question])


def results(held: Held, line: Line | None, name: str) -> dict[str, Any]:
    """Return the fields of a card's metadata that hold a measured accuracy; none where there is none."""
    from huggingface_hub import EvalResult

    if line is None or line.get("accuracy") is None:
        return {}
    task = held.run.config.task
    one = EvalResult(
        task_type="text-generation",
        dataset_type=task.dataset if _on_hub(task.dataset) else task.name,
        dataset_name=f"{task.name}, {line['n']} held-out questions",
        metric_type="accuracy",
        metric_value=round(line["accuracy"], 4),
        metric_name=f"accuracy (95 % interval {line['ci_low']:.4f} to {line['ci_high']:.4f})",
    )
    return {"model_name": name, "eval_results": [one]}


def _on_hub(dataset: str | None) -> bool:
    return dataset is not None and models.is_hub_name(dataset)


def _by_name(lines: Sequence[Line]) -> Mapping[str, Line]:
    return {line[line["kind"]]: line for line in lines if line["kind"] in ("method", "agent")}


def _cell(line: Line | None) -> str:
    if line is None or line.get("accuracy") is None:
        return "-"
    return f"{line['accuracy']:.1%} ({100 * line['ci_low']:.1f} - {100 * line['ci_high']:.1f})"
