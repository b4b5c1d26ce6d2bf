"""Sampling and finetuning in turns: what was learned from some questions is there when the next ones are debated.

With `train.online_questions`, an iteration is divided into turns of that many questions. Each turn is debated, voted
on, curated and learned from as an iteration is, in a folder of its own (`iter_01/online/iter_03`), by the agents of the
turn before it; optimisers go on where they were, unless a kill came between. What the turns made together is then
written where an iteration's debates, votes, examples and agents are.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from maft import files, models, seeds
from maft.config import AgentConfig, RunConfig, Section, of_iteration
from maft.files import Records, appearing_whole
from maft.method import learners
from maft.records import AgentRef, Debate, Example, Problem, Society, Vote
from maft.runs import societies
from maft.runs.folder import Event, RunFolder
from maft.trainers import cards

S = TypeVar("S", bound=Section)
Learn = Callable[[RunFolder, int, Society, Sequence[Problem]], Society]
"""Debates questions, and returns the society that learned from them: of a folder, as its iteration of a number."""


def in_turns(
    learn: Learn, folder: RunFolder, iteration: int, society: Society, problems: Sequence[Problem], num_questions: int
) -> Society:
    """Do an iteration in turns, and return the society that has learned from all of them."""
    if folder.examples_summary(iteration).exists() and societies.finished(folder, iteration):
        return societies.after(folder, iteration)
    turns = [problems[start : start + num_questions] for start in range(0, len(problems), num_questions)]
    inner = _inner(folder, iteration, society, len(turns))
    now = societies.untrained(inner.config)
    for number, some in enumerate(turns, 1):
        now = learn(inner, number, now, some)
    _gather(inner, folder, iteration, range(1, len(turns) + 1))
    return societies.after(folder, iteration)


def _inner(folder: RunFolder, iteration: int, society: Society, num_turns: int) -> RunFolder:
    """Return the folder of an iteration's turns, whose events are the run's too."""
    config = folder.config

    def entries(agents: Sequence[AgentRef]) -> tuple[AgentConfig, ...]:
        """Return where agents start; settings of single agents stay theirs."""
        return tuple(
            config.own(one.role, one.index).model_copy(update={"model": one.model, "adapter": one.adapter})
            for one in agents
        )

    start = {"generators": entries(society.generators), "critics": entries(society.critics)}
    train = _of(config.train, iteration)
    roles = {role: _of(getattr(train, role), iteration) for role in ("generator", "critic")}
    changes = {
        "num_iterations": num_turns,
        "seed": seeds.seed(config.seed, "online", iteration),
        "society": config.society.model_copy(update=start),
        "train": train.model_copy(update=roles),
        "sampling": _of(config.sampling, iteration),
        "vote": _of(config.vote, iteration),
        "curate": _of(config.curate, iteration),
    }
    inner = RunFolder(folder.iteration(iteration) / "online", config.model_copy(update=changes))
    inner.turns_of = iteration
    inner.path.mkdir(parents=True, exist_ok=True)

    def tell(event: Event) -> None:
        rest = {name: value for name, value in event.items() if name not in ("time", "event", "iteration")}
        folder.log(event["event"], iteration=iteration, turn=event.get("iteration"), **rest)

    inner.listeners.append(tell)
    return inner


def _of(section: S, iteration: int) -> S:
    """Return a section whose lists by iteration are their entry of one iteration."""
    return section.model_copy(
        update={name: of_iteration(value, iteration) for name, value in section if isinstance(value, tuple)}
    )


def _gather(inner: RunFolder, folder: RunFolder, iteration: int, turns: Sequence[int]) -> None:
    """Write what all turns made together as that of the iteration; the agents are those of their last turn."""
    here: dict[str, Any] = {"iteration": iteration}
    debates = (d.model_copy(update=here) for turn in turns for d in Records(inner.debates(turn), Debate))
    files.write_records(folder.debates(iteration), debates)
    votes = (v.model_copy(update=here) for turn in turns for v in Records(inner.votes(turn), Vote))
    files.write_records(folder.votes(iteration), votes)
    counts: dict[str, Counter[str]] = {}
    for name in learners(folder.config):
        made = (e.model_copy(update=here) for turn in turns for e in Records(inner.examples(turn, name), Example))
        files.write_records(folder.examples(iteration, name), made)
        counts[name] = Counter()
        for turn in turns:
            counts[name].update(files.read_json(inner.examples_summary(turn))[name])
        last = [inner.agent(turn, name) for turn in turns if inner.agent(turn, name).is_dir()][-1:]
        for weights in last if not folder.agent(iteration, name).exists() else []:
            with appearing_whole(folder.agent(iteration, name)) as output:
                shutil.copytree(weights, output, dirs_exist_ok=True)
                if (output / "training.json").exists():
                    _describe(output, folder.config, name, iteration, [inner.agent(turn, name) for turn in turns])
    files.write_json(folder.examples_summary(iteration), counts)
    folder.log("voted", iteration=iteration)
    folder.log("curated", iteration=iteration)


def _describe(output: Path, config: RunConfig, name: str, iteration: int, turns: Sequence[Path]) -> None:
    """Write what all turns of an agent were into training.json and its card."""
    summaries = [files.read_json(turn / "training.json") for turn in turns if turn.is_dir()]
    summed = ("num_examples", "num_dropped_too_long", "steps", "tokens", "completion_tokens", "losses", "seconds")
    total: dict[str, Any] = summaries[-1] | {"iteration": iteration, "turns": len(summaries)}
    for key in summed:
        first, *others = (summary[key] for summary in summaries)
        total[key] = sum(others, first)
    total["init_adapter"] = summaries[0]["init_adapter"]
    agent = next(one for one in societies.untrained(config).agents if one.name == name)
    training = config.train.of(agent.role, iteration).model_copy(
        update={"lora": config.lora_of(agent.role, agent.index)}
    )
    base = models.public_name(agent.model)
    card = cards.card(cards.Finetuned(name, agent.role, iteration, base, training, total))
    (output / "training.json").write_text(json.dumps(total, indent=2) + "\n", encoding="utf-8")
    (output / "README.md").write_text(card, encoding="utf-8")
