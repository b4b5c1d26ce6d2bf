"""`maft eval`: one society on the held-out questions."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(epilog="Examples:\n\n  maft eval runs/arithmetic_cpu\n\n  maft eval my.yaml --iteration 0")
@stage.arguments
def eval(
    config: Path, overrides: tuple[str, ...], *, iteration: int | None, dry_run: bool, as_json: bool, quiet: bool
) -> None:
    """Let the agents of an iteration debate the held-out questions, and print all results so far.

    Iteration 0 is the untrained society. Without --iteration it is the newest one that is finetuned.
    """
    from maft import engines, report
    from maft.errors import UserError
    from maft.pipeline import run as pipeline
    from maft.runs import societies, status

    settings = stage.settings(config, overrides, quiet=quiet)
    if dry_run:
        stage.describe(settings, as_json=as_json)
        return
    with stage.opened(settings, quiet=quiet) as (folder, progress):
        number = status.newest(folder) if iteration is None else iteration
        if number > status.newest(folder):
            raise UserError(f"the agents of iteration {number} are not finetuned yet. Do `maft finetune` first.")
        split = pipeline.questions(folder)
        society = societies.after(folder, number)
        with engines.opened(settings) as sampler:
            pipeline.evaluate(folder, number, society, split.eval, sampler, progress)
        report.write_metrics(folder)
        stage.say(report.table(folder), report.rows(folder), as_json=as_json)
