"""`maft debate`: the debates of one iteration, on the training questions."""

import json
from pathlib import Path

import click

from maft.cli import stage


@click.command(
    cls=stage.ListsOfAgents,
    epilog="Examples:\n\n  maft debate recipes/arithmetic_cpu/config.yaml debate.num_rounds=3\n\n"
    "  maft debate my.yaml --generators runs/a/iter_01/agents/generator_{0,1,2} --critics org/m1 org/m2 org/m3\n\n"
    "  maft debate my.yaml --released math_3_2.json",
)
@stage.arguments
@click.option(
    "--generators", multiple=True, metavar="A B ...", help="Model or adapter of each generator; see society.generators."
)
@click.option("--critics", multiple=True, metavar="A B ...", help="Model or adapter of each critic.")
@click.option(
    "--released",
    type=stage.PATH,
    metavar="FILE",
    help="Import questions and debates from a JSON file of the paper's released code, instead of debating.",
)
def debate(asked: stage.Asked, *, generators: tuple[str, ...], critics: tuple[str, ...], released: Path | None) -> None:
    """Run the debates of one iteration, or resume them.

    CONFIG is a YAML file, a config.json or a run folder. With --generators, their number sets debate.num_agents.
    """
    from maft import engines, tasks
    from maft.pipeline import exchange
    from maft.pipeline import run as pipeline
    from maft.runs import societies

    num_agents = [f"debate.num_agents={len(generators or critics)}"] if generators or critics else []
    weights = {"generators": generators, "critics": critics}
    given = [f"society.{role}={json.dumps(names)}" for role, names in weights.items() if names]
    with asked._replace(overrides=(*num_agents, *asked.overrides, *given)).opened() as (folder, progress):
        number = stage.iteration(folder, asked.iteration)
        if number == 1:
            societies.check(folder.config)
            engines.check_templates(folder.config)
        if released:
            exchange.adopt(folder, released)
        train = tasks.train_set(pipeline.questions(folder).train, folder.config.task, number)
        society = societies.after(folder, number - 1)
        with engines.opened(folder.config) as sampler:
            held = pipeline.debate(folder, number, society, train, sampler, progress)
        failed = sum(debate.error is not None for debate in held)
        file = folder.debates(number)
        summary = {"iteration": number, "debates": len(train), "failed": failed, "file": file}
        asked.say(f"Iteration {number}: {len(train)} debates in {file}", summary)
