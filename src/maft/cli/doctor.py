"""`maft doctor`: what this machine has, and what a run would use."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(epilog="Examples:\n\n  maft doctor\n\n  maft doctor --json")
@click.option(
    "--runs-dir",
    type=stage.PATH,
    default=Path("runs"),
    show_default=True,
    help="Folder for run folders, whose disk is checked.",
)
@stage.prints_json
def doctor(runs_dir: Path, *, as_json: bool) -> None:
    """Print what this machine has (cores, memory, instruction sets, GPUs, disk, packages) and what a run would use."""
    from maft.planning import machine

    seen = machine.look(runs_dir)
    stage.say(machine.lines(seen), seen, as_json=as_json)
