"""`maft demo`: the whole loop in seconds, without a model."""

from pathlib import Path

import click

from maft.cli import run, stage


@click.command(epilog="Example: maft demo")
@stage.prints
@click.pass_context
def demo(ctx: click.Context, *, as_json: bool, quiet: bool) -> None:
    """Run recipes/demo/config.yaml with random guesses in place of a model, without training, and write a report."""
    ctx.invoke(
        run.run,
        config=Path("recipes/demo/config.yaml"),
        overrides=(),
        dry_run=False,
        keep_going=False,
        as_json=as_json,
        quiet=quiet,
    )
