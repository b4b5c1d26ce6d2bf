"""`maft chat`: talk to the agents of a run in the terminal."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(epilog="Examples:\n\n  maft chat runs/arithmetic_cpu\n\n  maft chat runs/arithmetic_cpu --seed 0")
@click.argument("folder", metavar="RUN", type=stage.PATH)
@stage.overrides
@click.option(
    "--iteration", type=click.IntRange(min=0), help="Iteration whose agents answer (default: the newest; 0: untrained)."
)
@click.option("--seed", type=int, help="Seed of the first question, then counted up (default: random).")
def chat(folder: Path, overrides: tuple[str, ...], *, iteration: int | None, seed: int | None) -> None:
    """Ask the agents of the run in folder RUN: shows each reply and the vote, and takes follow-up questions.

    KEY.SUB=VALUE, such as engine.sampler=transformers, applies to this chat only.
    """
    from rich.console import Console

    from maft import engines
    from maft.serving.society import ServedSociety
    from maft.serving.talk import Talk, opened

    stage.log_to_stderr(quiet=True)
    console = Console(highlight=False)
    society = ServedSociety(stage.run_to_serve(folder, overrides), iteration)
    with opened(society, engines.make_sampler(society.config), console) as engine:
        console.print(f"Iteration {society.iteration} of {folder}. /help lists the commands.")
        Talk(society, engine, console, seed).run()
