"""`maft replay`: what the debates of a run say about other protocols and votes, without asking a model."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(epilog="Examples:\n\n  maft replay runs/arithmetic_cpu\n\n  maft replay runs/arithmetic_cpu --json")
@click.argument("folder", metavar="RUN", type=stage.PATH)
@stage.prints_json
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
    stage.say(report.replay_table(replayed), rows, as_json=as_json)
