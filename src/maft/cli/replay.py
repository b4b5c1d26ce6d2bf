"""`maft replay`: what the debates of a run say about other protocols and votes, without asking a model."""

import json
from pathlib import Path

import click


@click.command(epilog="Examples:\n\n  maft replay runs/arithmetic_cpu\n\n  maft replay runs/arithmetic_cpu --json")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def replay(folder: Path, *, as_json: bool) -> None:
    """Compute from the debates of the run in folder RUN what critics could gain, and what other rules would answer.

    No model is asked. A task is closed for critics where a vote over k first answers is right nearly as often as any of
    these answers is (pass@k): see docs/howto/replay.md.
    """
    from maft import report
    from maft.evaluation.replay import replay as replay_
    from maft.runs.folder import RunFolder

    replayed = replay_(RunFolder.existing(folder))
    rows = [{**one.model_dump(), "closed": one.closed} for one in replayed]
    click.echo(json.dumps(rows, indent=2) if as_json else report.replay_table(replayed))
