"""`maft judge`: a judge model compares answers before and after finetuning."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(epilog="Example:\n\n  maft judge runs/summaries_cpu\n\n  maft judge runs/mine --iteration 1")
@click.argument("folder", type=stage.PATH, metavar="RUN")
@click.option("--iteration", type=click.IntRange(min=1), help="Whose answers (default: the newest iteration's).")
@stage.prints
def judge(folder: Path, *, iteration: int | None, as_json: bool, quiet: bool) -> None:
    """Ask a judge model whether the finetuned debate's answers to held-out questions are better than the untrained's.

    The judge is that of task.judge in the run's config, asked in both orders; orders that disagree are a tie. For
    questions without known answers.
    """
    from maft import engines
    from maft.pipeline import judging
    from maft.runs import status
    from maft.runs.progress import Progress

    run = stage.run(folder, quiet=quiet)
    with engines.opened(run.config) as sampler:
        number = status.newest(run) if iteration is None else iteration
        made = judging.prefer(run, number, sampler, Progress(quiet=quiet))
    stage.say(judging.sentence(made), made.model_dump(), as_json=as_json)
