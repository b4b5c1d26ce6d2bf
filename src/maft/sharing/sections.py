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
    adapter = agent.ref.adapter is not None and not merged
    return cards.card(
        described(held.run, agent, base, merged=merged),
        [body(held, [agent.name], base, where, adapter=adapter, subfolder=subfolder, branch=branch)],
        license=license,
        **results(held, held.after.get(agent.name), where.rpartition("/")[2]),
    )


def body(
    held: Held,
    agents: Sequence[str],
    base: str,
    where: str,
    *,
    adapter: bool,
    subfolder: str = "",
    branch: str | None = None,
) -> str:
    """Return the numbers of agents and of their society, their data, and code that asks one as it was in training."""
    run, config = held.run, held.run.config
    protocol, size = protocol_of(config.debate), config.debate.num_agents
    when = {"generator": "first answer", "critic": "last round of a debate"}
    labels = ("single answer of a generator, mean", f"vote of {size} first answers", "debate")
    label = next(iter(metrics.of_labels(run, held.iteration)), None)
    texts = prompts.build(
        tasks.make(config.task).prompts, config.prompts_of(subfolder) if subfolder else config.prompts
    )
    system = [] if texts.system is None else [{"role": "system", "content": texts.system}]
    question = {"role": "user", "content": prompts.fill(texts.solve, question="What is 7 * 8?")}
    more = {"subfolder": subfolder, "revision": branch}
    content = files.template("sharing", "sections.md.j2", accuracy=_accuracy).render(
        held=held,
        config=config,
        graded=any(line.get("accuracy") is not None for line in held.after.values()),
        rows=[
            *((f"{agent} alone, {when[agent.partition('_')[0]]}", agent, agent) for agent in agents),
            *zip(labels, names(0, size), names(held.iteration, size), strict=True),
        ],
        num_train=files.num_lines(run.problems("train")),
        num_eval=files.num_lines(run.problems("eval")),
        on_hub=_on_hub(config.task.dataset),
        has_critics="critic" in protocol.roles(config.debate),
        rounds=protocol.rounds(config.debate),
        teacher=files.read_json(run.teacher) if run.teacher.exists() else None,
        by_vote=run.votes(held.iteration).exists(),
        label=label and label | {"accuracy": label["pseudo_label_accuracy"]},
        adapter=adapter,
        base=json.dumps(base),
        place=", ".join([json.dumps(where), *(f"{key}={json.dumps(value)}" for key, value in more.items() if value)]),
        messages=[*system, question],
    )
    return str(content)


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


def _accuracy(line: Line | None) -> str:
    if line is None or line.get("accuracy") is None:
        return "-"
    return f"{line['accuracy']:.1%} ({100 * line['ci_low']:.1f} - {100 * line['ci_high']:.1f})"
