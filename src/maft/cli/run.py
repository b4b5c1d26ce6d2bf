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
    from maft import engines, report
    from maft.hosted import service as hosted
    from maft.pipeline import run as pipeline
    from maft.runs import societies, status

    settings = config_.load(config, overrides)
    config_.check_loop(settings)
    if dry_run:
        from maft.planning.bounds import plan

        click.echo(config_.resolved(settings), nl=False)
        click.echo(plan(settings), err=True)
        return
    with stage.opened(settings, quiet=quiet) as (folder, progress):
        if status.newest(folder) == 0:
            societies.check(settings)
        with engines.opened(settings) as sampler:
            pipeline.run(folder, sampler, engines.make_trainer(settings), progress)
        report.write_metrics(folder)
        click.echo(report.table(folder))
        click.echo(f"Report: {report.write_page(folder)}")
        if (spent := hosted.spent(folder.path)) is not None:
            click.echo(f"Spent on hosted models: {spent:.4f} USD", err=True)
