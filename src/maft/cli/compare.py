"""`maft compare`: several methods from the same base model on the same questions."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(
    cls=stage.ListsOfAgents,
    epilog="Examples:\n\n  maft compare recipes/arithmetic_cpu/config.yaml name=compared debate.num_eval_samples=5\n\n"
    "  maft compare my.yaml --methods single_agent_ft star_label_free --seeds 0 1 2\n\n"
    "  maft compare my.yaml --reference maft_wo_debate --methods majority_ft\n\n"
    "  maft compare my.yaml --methods kto --seeds 0 1 2 --preregister predictions.yaml",
)
@click.argument("config", type=stage.PATH)
@stage.overrides
@click.option(
    "--methods",
    multiple=True,
    metavar="A B ...",
    help="Methods to run and show (default: those of the paper); `maft list methods` has all. Others that are in the "
    "folder stay there.",
)
@click.option(
    "--seeds",
    multiple=True,
    type=int,
    metavar="0 1 ...",
    help="Seeds to run and show (default: those in the folder, or that of the config).",
)
@click.option(
    "--reference",
    metavar="METHOD",
    default="maft",
    show_default=True,
    help="Method that the others are compared with; it sets their number of examples and the token budget.",
)
@click.option(
    "--preregister",
    "predictions",
    metavar="FILE",
    type=stage.PATH,
    help="Register the predictions in FILE (YAML) before there are results; the report shows them with the outcome.",
)
@click.option(
    "--dry-run", is_flag=True, help="Check model and files, print the settings, the plan and the methods, and stop."
)
@stage.prints
def compare(
    config: Path,
    overrides: tuple[str, ...],
    *,
    methods: tuple[str, ...],
    seeds: tuple[int, ...],
    reference: str,
    predictions: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run several methods with one config, and print one table; an interrupted comparison is resumed.

    Rows base, majority@N and debate are of the untrained model. Work that methods share is computed once. With enough
    debate.num_eval_samples, the table has a vote at the token budget of a debate, too (majority@budget).

    Several processes may work in one folder, one for each seed; the same command without --seeds then shows all.
    """
    from maft import comparison, engines, files, report
    from maft.comparison import preregister
    from maft.runs.progress import Progress

    settings = stage.settings(config, overrides, quiet=quiet)
    asked = (settings, methods or comparison.default_methods(settings), seeds, reference)
    if dry_run:
        compared = comparison.chosen(*asked)
        if predictions is not None:
            preregister.check(compared, predictions)
        stage.describe(settings, as_json=as_json)
        click.echo(f"Methods: {', '.join(compared.methods)}. Seeds: {', '.join(map(str, compared.seeds))}.", err=True)
        click.echo("The plan above is for one seed of maft; other methods take about as much or less.", err=True)
        return
    compared = comparison.begin(*asked)
    if predictions is not None:
        preregister.register(compared, predictions)
    with engines.opened(settings) as sampler:
        comparison.compare(compared, sampler, engines.make_trainer(settings), Progress(quiet=quiet))
    rows = comparison.results(compared)
    files.write_text(compared.path / "results.json", comparison.as_json(rows) + "\n")
    ends = [f"Rows: {compared.path / 'results.json'}", f"Report: {report.write_comparison_page(compared, rows)}"]
    ends = [*comparison.weak_rivals(compared), *preregister.remarks(compared), *ends]
    stage.say([report.comparison_table(rows), *ends], [row.model_dump() for row in rows], as_json=as_json)
