"""`maft verify`: whether the finished files of a run are as they were written."""

import sys
from pathlib import Path

import click

from maft.cli import stage


@click.command(epilog="Examples:\n\n  maft verify runs/arithmetic_cpu\n\n  maft verify runs/arithmetic_cpu --json")
@click.argument("run", type=stage.PATH)
@stage.prints_json
def verify(run: Path, *, as_json: bool) -> None:
    """Check the files of the run in folder RUN against their checksums; exit code 1 if any differs."""
    from maft.errors import UserError
    from maft.runs import seals
    from maft.runs.folder import RunFolder

    folder = RunFolder.existing(run)
    if not seals.num_sealed(folder):
        raise UserError(
            f"{run} has no checksums. `maft run` and stages write them, also for older runs; `maft compare` does not."
        )
    damaged = seals.damage(folder)
    lines = [f"{found.file}: {found.what}" for found in damaged]
    lines.append(f"{seals.num_sealed(folder)} finished files, {len(damaged)} changed or missing.")
    stage.say(lines, [found.model_dump() for found in damaged], as_json=as_json)
    sys.exit(1 if damaged else 0)
