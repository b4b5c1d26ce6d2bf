"""`maft report`: results of one run, of several, or of a comparison."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft report runs/arithmetic_cpu\n\n  maft report runs/arithmetic_cpu --json\n\n"
    "  maft report runs/seed0 runs/seed1 runs/seed2\n\n  maft report runs/arithmetic_cpu --export figures\n\n"
    "  maft report runs/compared --against majority_ft_majority@budget"
)
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=stage.PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON and nothing else.")
@click.option(
    "--export",
    "target",
    metavar="FOLDER",
    type=stage.PATH,
    help="Also write tables as CSV and JSON, and pictures as PNG and SVG, into FOLDER.",
)
@click.option("--against", metavar="METHOD", help="For a comparison: the row that all others are compared with.")
def report(folders: tuple[Path, ...], *, as_json: bool, target: Path | None, against: str | None) -> None:
    """Print the results of the run in folder RUN and write report.html; the run may be unfinished.

    RUN may also be the folder of a comparison. Several runs, such as several seeds, are printed side by side with means
    and intervals; no page is written.
    """
    from maft import report as report_
    from maft.runs.folder import RunFolder

    if len(folders) == 1 and (folders[0] / "compare.json").is_file():
        _report_comparison(folders[0], as_json, target, against)
        return
    if against is not None:
        raise click.UsageError("--against needs the folder of a comparison, as `maft compare` makes it.")
    opened = [RunFolder.existing(folder) for folder in folders]
    if len(opened) > 1:
        if target is not None:
            raise click.UsageError("--export takes one run or one comparison. Export each run by itself.")
        click.echo(json.dumps(report_.runs.as_rows(opened), indent=2) if as_json else report_.runs_table(opened))
        return
    written = report_.export_run(opened[0], target) if target is not None else []
    if as_json:
        click.echo(json.dumps(report_.rows(opened[0]), indent=2))
        return
    click.echo(report_.table(opened[0]))
    _say(lambda: report_.write_page(opened[0]), written, target)
    _say(lambda: report_.write_metrics(opened[0]), [], None)


def _report_comparison(folder: Path, as_json: bool, target: Path | None, against: str | None) -> None:
    from maft import comparison
    from maft import report as report_

    opened = comparison.existing(folder)
    rows = comparison.results(opened, against)
    written = report_.export_comparison(opened, rows, target) if target is not None else []
    if as_json:
        click.echo(comparison.as_json(rows))
        return
    click.echo(report_.comparison_table(rows))
    _say(lambda: report_.write_comparison_page(opened, rows), written, target)


def _say(write: Callable[[], Path | None], written: list[Path], target: Path | None) -> None:
    """Write a page or metrics, where the folder can be written to, and say where they are."""
    if target is not None:
        click.echo(f"Exported: {len(written)} files in {target}")
    try:
        page = write()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        click.echo(f"Not written: {error.filename}: {error.strerror}.", err=True)
        return
    if page is not None:
        click.echo(f"Report: {page}")
