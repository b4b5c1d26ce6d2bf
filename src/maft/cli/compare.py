"""`maft compare`: several methods from the same base model on the same questions."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(
    cls=stage.ListsOfAgents,
    epilog="Examples:\n\n  maft compare recipes/arithmetic_cpu/config.yaml name=compared debate.num_eval_samples=5\n\n"
    "  maft compare my.yaml --methods single_agent_ft star_label_free --seeds 0 1 2\n\n"
    "  maft compare my.yaml --reference maft_wo_debate --methods majority_ft",
)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...")
@click.option("--methods", multiple=True, metavar="A B ...", help="The methods of the paper if not given; see --list.")
@click.option("--seeds", multiple=True, type=int, metavar="0 1 ...", help="The seed of the config if not given.")
@click.option(
    "--reference",
    metavar="METHOD",
    default="maft",
    show_default=True,
    help="Sets the examples and tokens of the others, and is what they are compared with; always carried out.",
)
@click.option("--list", "listed", is_flag=True, help="Print the methods, and stop.")
@click.option("--dry-run", is_flag=True, help="Print what would be carried out, and stop.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def compare(
    config: Path,
    overrides: tuple[str, ...],
    *,
    methods: tuple[str, ...],
    seeds: tuple[int, ...],
    reference: str,
    listed: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Carry out several methods with the config of a run, or go on where they were interrupted, and print one table.

    The untrained model gives the rows base, majority, debate. What two methods have in common is computed once. Set
    debate.num_eval_samples so high that a plain vote can use up the tokens of a debate (majority@budget).
    """
    from maft import comparison, engines, report
    from maft import config as config_
    from maft.planning.bounds import plan
    from maft.runs.progress import Progress

    if listed:
        click.echo("\n".join(f"{arm.name:<24}{arm.what}" for arm in comparison.ARMS.values()))
        return
    settings = config_.load(config, overrides)
    asked = (settings, methods or comparison.PAPER, seeds or (settings.seed,), reference)
    if dry_run:
        made = comparison.chosen(*asked)
        click.echo(config_.resolved(settings), nl=False)
        click.echo(f"Methods: {', '.join(made.methods)}. Seeds: {', '.join(map(str, made.seeds))}.", err=True)
        click.echo(
            "For maft with one seed; the others take as much or less, for what they share is computed once:", err=True
        )
        click.echo(plan(settings), err=True)
        return
    stage.log_to_stderr(quiet=quiet)
    made = comparison.begin(*asked)
    with engines.opened(settings) as sampler:
        comparison.compare(made, sampler, engines.make_trainer(settings), Progress(quiet=quiet))
    found = comparison.results(made)
    (made.path / "results.json").write_text(comparison.as_json(found) + "\n", encoding="utf-8")
    click.echo(comparison.table(found))
    click.echo(f"Rows: {made.path / 'results.json'}")
    click.echo(f"Report: {report.write_comparison_page(made, found)}")
