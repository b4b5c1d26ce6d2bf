"""`maft report`: results of a run."""

import json
from pathlib import Path

import click


@click.command(epilog="Examples:\n\n  maft report runs/arithmetic_cpu\n\n  maft report runs/arithmetic_cpu --json")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON and nothing else.")
def report(folder: Path, *, as_json: bool) -> None:
    """Print the results of the run in folder RUN and write its page, report.html; an unfinished run will do.

    RUN may be the folder of a comparison as well.
    """
    from maft import report as report_
    from maft.store import RunFolder

    if (folder / "compare.json").is_file():
        from maft import comparison

        found = comparison.results(comparison.existing(folder))
        click.echo(comparison.as_json(found) if as_json else comparison.table(found))
        return
    opened = RunFolder.existing(folder)
    if as_json:
        click.echo(json.dumps(report_.rows(opened), indent=2))
        return
    report_.write_metrics(opened)
    click.echo(report_.table(opened))
    click.echo(f"Report: {report_.write_page(opened)}")
