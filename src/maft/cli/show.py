"""`maft show`: one debate as a transcript."""

from pathlib import Path

import click


@click.command(
    epilog="Examples:\n\n  maft show runs/arithmetic_cpu '7*8'\n\n"
    "  maft show runs/arithmetic_cpu '7*8' --iteration 1 --stage eval"
)
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("problem")
@click.option("--iteration", type=int, help="Which iteration; the last that has the question if left out.")
@click.option("--stage", type=click.Choice(["train", "eval"]), help="Debates on training or on held-out questions.")
def show(folder: Path, problem: str, *, iteration: int | None, stage: str | None) -> None:
    """Print the debate of the question with id PROBLEM in the run folder RUN, with who was kept and why."""
    from maft import transcript
    from maft.store import RunFolder

    click.echo(transcript.find(RunFolder.existing(folder), problem, iteration, stage))
