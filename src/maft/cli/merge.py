"""`maft merge`: finetuned agents as ordinary models."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft merge runs/arithmetic_cpu --agent critic_2 --output critic\n\n"
    "  maft merge runs/arithmetic_cpu --agent all --iteration 1 --output models"
)
@click.argument("run", metavar="RUN", type=stage.PATH)
@click.option("--output", metavar="FOLDER", required=True, type=stage.PATH, help="Folder to create.")
@click.option(
    "--agent", metavar="NAME", help="Agent, such as critic_2; all: every agent, in FOLDER/critic_2 and so on."
)
@click.option("--iteration", type=int, help="Iteration (default: the newest finished one).")
@stage.prints
def merge(run: Path, *, output: Path, agent: str | None, iteration: int | None, as_json: bool, quiet: bool) -> None:
    """Merge the adapter of an agent of the run in folder RUN into its base, and write an ordinary model folder.

    The model has the base's dtype and tokenizer, and a model card; transformers and maft (model=FOLDER) load it. An
    agent from full finetuning is copied.
    """
    from maft.sharing import agents, merge

    folder = stage.run(run, quiet=quiet)
    chosen = agents.choose(folder, agent, iteration)
    merge.write(folder, chosen, output, each_in_its_own=agent == "all")
    number, names = chosen[0].iteration, [one.name for one in chosen]
    summary = {"iteration": number, "agents": names, "folder": output}
    stage.say(f"Iteration {number}: {', '.join(names)} in {output}", summary, as_json=as_json)
