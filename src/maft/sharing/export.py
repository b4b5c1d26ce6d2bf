"""Files of a run for other programs: training sets, preferences, and logs for the viewer of inspect-ai."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from maft import __version__, files
from maft.errors import UserError
from maft.evaluation import votes
from maft.method import formats, learners
from maft.method.formats import FORMATS, SUFFIX, Format
from maft.records import Example
from maft.runs.folder import RunFolder
from maft.sharing import traces
from maft.sharing.traces import Trace

To = Literal["messages", "openai", "sharegpt", "trl-preference", "trl-unpaired", "inspect"]
TARGETS: tuple[To, ...] = get_args(To)


def export(run: RunFolder, to: To, output: Path, iteration: int | None = None) -> dict[str, int]:
    """Write a run in another program's format; return the number of rows of each file, by its name in the output.

    Args:
        run: finished or not.
        to: `messages`, `openai`, `sharegpt`: what each agent was finetuned on, a file for each agent in the folder
            `output`. `trl-preference`, `trl-unpaired`: replies to training questions by whether they agree with the
            vote, in the file `output`. `inspect`: the debates on held-out questions, in the file `output`.
        output: a folder or file that does not exist.
        iteration: None is the newest, or for preferences all.

    Raises:
        UserError: the output exists, or the run has nothing to export yet.
        DataError: the format cannot say that a reply is unwanted.
    """
    if output.exists():
        raise UserError(f"{output} exists. Give another --output, or move it away.")
    if to in FORMATS:
        return _training_sets(run, to, output, iteration)
    if to == "inspect":
        log = _inspect_log(run, iteration)
        files.write_text(output, json.dumps(log, ensure_ascii=False, indent=1) + "\n")
        return {output.name: len(log["samples"])}
    rows: dict[To, Callable[[Trace], Iterator[traces.Row]]] = {
        "trl-preference": traces.preference_rows,
        "trl-unpaired": traces.unpaired_rows,
    }
    lines = [json.dumps(row, ensure_ascii=False) for t in traces.of_run(run, "train", iteration) for row in rows[to](t)]
    if not lines and iteration is not None and not run.votes(iteration).exists():
        raise UserError(f"{run.path} has no votes of iteration {iteration}.")
    if not lines:
        raise UserError(f"{run.path} has no replies to one prompt of which some agree with the vote and others do not.")
    files.write_text(output, "\n".join(lines) + "\n")
    return {output.name: len(lines)}


def _training_sets(run: RunFolder, format: Format, output: Path, iteration: int | None) -> dict[str, int]:
    numbers = range(run.config.num_iterations, 0, -1) if iteration is None else [iteration]
    number = next((n for n in numbers if run.examples_summary(n).exists()), None)
    if number is None:
        raise UserError(f"{run.path} has no examples{'' if iteration is None else f' of iteration {iteration}'} yet.")
    last_only, rows = run.config.train.loss_turns == "last", {}
    with files.appearing_whole(output) as folder:
        for agent in learners(run.config):
            examples = files.read_records(run.examples(number, agent), Example)
            text = formats.write_dialogues(examples, format, last_only=last_only)
            name = f"{agent}{SUFFIX[format]}"
            (folder / name).write_text(text, encoding="utf-8")
            rows[name] = len(examples)
    return rows


def _inspect_log(run: RunFolder, iteration: int | None) -> dict[str, Any]:
    """Return the debates on held-out questions as a log that `inspect view` reads: a sample for each question."""
    numbers = range(run.config.num_iterations, -1, -1) if iteration is None else [iteration]
    number = next((n for n in numbers if run.evaluated(n)), None)
    if number is None:
        raise UserError(f"{run.path} has no evaluated iteration{'' if iteration is None else f' {iteration}'} yet.")
    config = run.config
    when = next((e["time"] for e in run.events() if e["event"] == "evaluated" and e["iteration"] == number), 0)
    known = {name: problem.gold for name, problem in votes.problems(run, "eval").items()}
    samples = [_sample(trace, config.model, known) for trace in traces.of_run(run, "held_out", number)]
    graded = [sample["scores"]["vote"]["value"] == "C" for sample in samples if "vote" in sample["scores"]]
    scores = []
    if graded:
        metrics = {"accuracy": {"name": "accuracy", "value": sum(graded) / len(graded)}}
        scores = [{"name": "vote", "scorer": "vote", "metrics": metrics}]
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "created": _utc(when),
            "task": f"{config.name}, iteration {number}",
            "dataset": {"name": config.task.name, "samples": len(samples)},
            "model": config.model,
            "config": {},
            "packages": {"maft": __version__},
        },
        "results": {"total_samples": len(samples), "completed_samples": len(samples), "scores": scores},
        "samples": samples,
    }


def _sample(trace: Trace, model: str, known: Mapping[str, str | None]) -> dict[str, Any]:
    debate, vote = trace.debate, trace.vote
    messages = [{"role": "user", "content": debate.question}]
    for turn in debate.turns:
        text = f"**{turn.call.agent}, round {turn.round}**\n\n{turn.call.reply.text}"
        messages.append({"role": "assistant", "content": text, "model": turn.call.agent})
    scores = {}
    gold = known[debate.problem_id]
    if gold is not None:
        counts = ", ".join(f"{answer}: {count}" for answer, count in vote.counts)
        right = vote.label is not None and trace.right.get(vote.label)
        explanation = f"{counts} of {vote.num_ballots} votes"
        scores["vote"] = {"value": "C" if right else "I", "answer": vote.label, "explanation": explanation}
    return {
        "id": debate.problem_id,
        "epoch": 1,
        "input": debate.question,
        "target": gold or "",
        "messages": messages,
        "output": {"model": model, "completion": vote.label or ""},
        "scores": scores,
        "metadata": {"agreement": vote.agreement, "counts": dict(vote.counts), "error": debate.error},
    }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
