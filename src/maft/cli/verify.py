"""`maft verify`: whether the finished files of a run are as they were written."""

import json
import sys
from pathlib import Path

import click


@click.command(epilog="Examples:\n\n  maft verify runs/arithmetic_cpu\n\n  maft verify runs/arithmetic_cpu --json")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the changed files as JSON.")
def verify(run: Path, *, as_json: bool) -> None:
    """Check the files of the run in folder RUN against their checksums; exit code 1 if any differs."""
    from maft.runs import seals
    from maft.runs.folder import RunFolder

    folder = RunFolder.existing(run)
    damaged = seals.damage(folder)
    if as_json:
        click.echo(json.dumps([found.model_dump() for found in damaged], indent=2))
    else:
        for found in damaged:
            click.echo(f"{found.file}: {found.what}")
        click.echo(f"{seals.num_sealed(folder)} finished files, {len(damaged)} changed or missing.")
    sys.exit(1 if damaged else 0)
