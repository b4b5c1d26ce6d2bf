"""`maft run`: all iterations."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft run recipes/arithmetic_cpu/config.yaml\n\n"
    "  maft run recipes/arithmetic_cpu/config.yaml name=more seed=1 debate.num_agents=5\n\n"
    "  maft run runs/arithmetic_cpu/config.json --dry-run"
)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Print the resolved config and the plan, and stop.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def run(config: Path, overrides: tuple[str, ...], *, dry_run: bool, quiet: bool) -> None:
    """Carry out the run that CONFIG describes, or go on with it where it was interrupted.

    CONFIG is a YAML file, or the config.json of a run folder. KEY.SUB=VALUE sets single settings on top of it.
    """
    from maft import config as config_
    from maft import library, report
    from maft.hosted import service as hosted

    settings = config_.load(config, overrides)
    config_.check_loop(settings)
    if dry_run:
        from maft.planning.bounds import plan

        click.echo(config_.resolved(settings), nl=False)
        click.echo(plan(settings), err=True)
        return
    stage.log_to_stderr(quiet=quiet)
    finished = library.run(settings, quiet=quiet)
    click.echo(report.table(finished.folder))
    click.echo(f"Report: {finished.folder.page}")
    if (spent := hosted.spent(finished.path)) is not None:
        click.echo(f"Spent on hosted models: {spent:.4f} USD", err=True)
