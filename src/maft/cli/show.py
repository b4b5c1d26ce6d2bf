"""`maft show`: one debate as a transcript."""

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft show runs/arithmetic_cpu --stage eval\n\n  maft show runs/arithmetic_cpu '7*8'\n\n"
    "  maft show runs/arithmetic_cpu '7*8' --iteration 1 --stage eval"
)
@click.argument("folder", metavar="RUN", type=stage.PATH)
@click.argument("problem", required=False)
@click.option("--iteration", type=int, help="Iteration (default: the newest with this question).")
@stage.prints_json
@click.option(
    "--stage", "side", type=click.Choice(["train", "eval"]), help="Debates on training or on held-out questions."
)
def show(
    folder: Path, problem: str | None, *, iteration: int | None, as_json: bool, side: Literal["train", "eval"] | None
) -> None:
    """Print the debate on the question with id PROBLEM of the run in folder RUN, and who learns from it and why.

    Without PROBLEM, list the questions with their ids.
    """
    from maft.report import transcript
    from maft.runs.folder import RunFolder

    if problem is None:
        listed = transcript.ids(RunFolder.existing(folder), side)
        rows = [{"stage": of, "id": each.id, "question": each.question} for of, each in listed]
        for row in rows if not as_json else ():
            texts = (transcript.safe(" ".join(row[name].split())) for name in ("id", "question"))
            _say("  ".join([f"{row['stage']:<5}", *texts])[:150])
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        return
    told = transcript.load(RunFolder.existing(folder), problem, iteration, side)
    if as_json:
        vote = told.vote and told.vote.model_dump(mode="json")
        record = {"stage": told.stage, "debate": told.debate.model_dump(mode="json"), "vote": vote}
        click.echo(json.dumps(record, indent=2))
        return
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    _say(transcript.render(told, _paint if coloured else transcript.plain))


def _say(text: str) -> None:
    """Print text; a terminal that is not UTF-8 gets other letters spelt out in place of an error."""
    encoding = sys.stdout.encoding or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


_STYLES: dict[str, dict[str, Any]] = {
    "title": {"bold": True},
    "quiet": {"dim": True},
    "right": {"fg": "green"},
    "wrong": {"fg": "red"},
    "kept": {"fg": "green"},
    "dropped": {"fg": "yellow"},
}


def _paint(text: str, how: str) -> str:
    return click.style(text, **_STYLES[how])
