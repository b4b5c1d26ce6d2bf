"""`maft run`: all iterations."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft run recipes/arithmetic_cpu/config.yaml\n\n"
    "  maft run recipes/arithmetic_cpu/config.yaml name=more seed=1 debate.num_agents=5\n\n"
    "  maft run runs/arithmetic_cpu/config.json --dry-run"
)
@click.argument("config", type=stage.PATH)
@stage.overrides
@click.option("--dry-run", is_flag=True, help="Check model and files, print the settings and the plan, and stop.")
@click.option(
    "--keep-going",
    is_flag=True,
    help="Continue after an iteration that ruined agents (see `guard` in docs/training.md).",
)
@stage.prints
def run(
    config: Path, overrides: tuple[str, ...], *, dry_run: bool, keep_going: bool, as_json: bool, quiet: bool
) -> None:
    """Run all iterations of CONFIG; an interrupted run is resumed.

    CONFIG is a YAML file, a config.json or a run folder. KEY.SUB=VALUE changes single settings.
    """
    from maft import config as config_
    from maft import library, report
    from maft.evaluation.learned import of_run, warnings
    from maft.hosted import service as hosted

    settings = stage.settings(config, overrides, quiet=quiet)
    config_.check_loop(settings)
    if dry_run:
        stage.describe(settings, as_json=as_json)
        return
    finished = library.run(settings, quiet=quiet, keep_going=keep_going)
    folder, spent = finished.folder, hosted.spent(finished.path)
    summary = {"run": folder.path, "results": report.rows(folder), "report": folder.page, "spent_usd": spent}
    summary["warnings"] = warnings(of_run(folder))
    stage.say([report.table(folder), f"Report: {folder.page}"], summary, as_json=as_json)
    if spent is not None:
        click.echo(f"Spent on hosted models: {spent:.4f} USD", err=True)
