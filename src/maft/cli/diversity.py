"""`maft diversity`: how different the agents still are."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft diversity runs/arithmetic_cpu\n\n  maft diversity runs/arithmetic_cpu --questions 0"
)
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--questions",
    default=30,
    show_default=True,
    type=click.IntRange(min=0),
    help="Held-out questions whose replies every agent reads, for likelihood and KL; 0 measures neither.",
)
@stage.prints
def diversity(folder: Path, *, questions: int, as_json: bool, quiet: bool) -> None:
    """Measure the diversity of every society of the run in folder RUN, from iteration 0 on.

    docs/diversity.md defines the measures.
    """
    from maft import report
    from maft.diversity import measure as diversity_
    from maft.runs.folder import RunFolder
    from maft.runs.progress import Progress

    stage.log_to_stderr(quiet=quiet)
    measured = diversity_.measure(RunFolder.existing(folder), questions, Progress(quiet=quiet))
    stage.say(report.diversity_table(measured), [one.model_dump() for one in measured], as_json=as_json)
