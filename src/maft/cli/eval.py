"""`maft eval`: one society on the held-out questions."""

import click

from maft.cli import stage


@click.command(epilog="Examples:\n\n  maft eval runs/arithmetic_cpu\n\n  maft eval my.yaml --iteration 0")
@stage.arguments
def eval(asked: stage.Asked) -> None:
    """Evaluate the agents of an iteration on the held-out questions, and print all results so far.

    Iteration 0 is the untrained society. The default is the newest finetuned one.
    """
    from maft import engines, report
    from maft.errors import UserError
    from maft.pipeline import run as pipeline
    from maft.runs import societies, status

    with asked.opened() as (folder, progress):
        number = status.newest(folder) if asked.iteration is None else asked.iteration
        if number > folder.config.num_iterations:
            raise UserError(f"--iteration must be 0 to num_iterations = {folder.config.num_iterations}, got {number}.")
        if number > status.newest(folder):
            raise UserError(f"the agents of iteration {number} are not finetuned yet. Run `maft finetune` first.")
        split = pipeline.questions(folder)
        society = societies.after(folder, number)
        with engines.opened(folder.config) as sampler:
            pipeline.evaluate(folder, number, society, split.eval, sampler, progress)
        report.write_metrics(folder)
        asked.say(report.table(folder), report.rows(folder))
