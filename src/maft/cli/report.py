"""`maft report`: results of one run, of several, or of a comparison."""

import json
from pathlib import Path

import click


@click.command(
    epilog="Examples:\n\n  maft report runs/arithmetic_cpu\n\n  maft report runs/arithmetic_cpu --json\n\n"
    "  maft report runs/seed0 runs/seed1 runs/seed2"
)
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON and nothing else.")
def report(folders: tuple[Path, ...], *, as_json: bool) -> None:
    """Print the results of the run in folder RUN and write its page, report.html; an unfinished run will do.

    Several runs, such as of several seeds, are shown side by side, with means and intervals. RUN may be the folder of a
    comparison, too.
    """
    from maft import report as report_
    from maft.store import RunFolder

    if len(folders) == 1 and (folders[0] / "compare.json").is_file():
        from maft import comparison

        found = comparison.results(comparison.existing(folders[0]))
        click.echo(comparison.as_json(found) if as_json else comparison.table(found))
        return
    opened = [RunFolder.existing(folder) for folder in folders]
    if len(opened) > 1:
        click.echo(json.dumps(report_.runs.as_rows(opened), indent=2) if as_json else report_.runs.table(opened))
    elif as_json:
        click.echo(json.dumps(report_.rows(opened[0]), indent=2))
    else:
        report_.write_metrics(opened[0])
        click.echo(report_.table(opened[0]))
        click.echo(f"Report: {report_.write_page(opened[0])}")
