"""`maft diversity`: how different the agents still are."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft diversity runs/arithmetic_cpu\n\n  maft diversity runs/arithmetic_cpu --questions 0"
)
@click.argument("folder", metavar="RUN", type=stage.PATH)
@click.option(
    "--questions",
    default=30,
    show_default=True,
    type=click.IntRange(min=0),
    help="Number of held-out questions for likelihood and KL, which need the model; 0 leaves both out.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; fewer are faster on a busy machine.")
@stage.prints
def diversity(folder: Path, *, questions: int, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Measure the diversity of every society of the run in folder RUN, from iteration 0 on.

    Results are kept: a larger --questions computes only what is new. docs/diversity.md defines the measures.
    """
    from maft import report
    from maft.diversity import measure as diversity_
    from maft.runs.progress import Progress

    run = stage.run(folder, quiet=quiet)
    if threads is not None:
        engine = run.config.engine.model_copy(update={"num_threads": threads})
        run.config = run.config.model_copy(update={"engine": engine})
    if questions:
        diversity_.check_weights(run)
    measured = diversity_.measure(run, questions, Progress(quiet=quiet))
    stage.say(report.diversity_table(measured), [one.model_dump() for one in measured], as_json=as_json)
