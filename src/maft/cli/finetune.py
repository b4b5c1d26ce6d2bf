"""`maft finetune`: the trainings of one iteration."""

import click

from maft.cli import stage


@click.command(epilog="Examples:\n\n  maft finetune runs/arithmetic_cpu\n\n  maft finetune my.yaml --dry-run")
@stage.arguments
def finetune(asked: stage.Asked) -> None:
    """Finetune every agent on its own examples; agents that are already finetuned are skipped."""
    from maft import engines
    from maft.errors import UserError
    from maft.pipeline import run as pipeline
    from maft.runs import societies

    with asked.opened() as (folder, progress):
        number = stage.iteration(folder, asked.iteration)
        counts = pipeline.num_examples(folder, number)
        if not counts:
            raise UserError(f"iteration {number} has no examples yet. Run `maft curate` first.")
        society = societies.after(folder, number - 1)
        pipeline.train(folder, number, society, counts, engines.make_trainer(folder.config), progress)
        home = folder.agent(number, "generator_0").parent
        trained = [agent for agent in counts if folder.agent(number, agent).exists()]
        summary = {"iteration": number, "agents": trained, "folder": home}
        asked.say(f"Iteration {number}: {len(trained)} agents in {home}", summary)
