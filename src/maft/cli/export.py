"""`maft export`: a run in the formats of other programs."""

from pathlib import Path

import click

from maft.cli import stage
from maft.sharing.export import TARGETS, To


@click.command(
    epilog="Examples:\n\n  maft export runs/arithmetic_cpu --to trl-preference --output pairs.jsonl\n\n"
    "  maft export runs/arithmetic_cpu --to messages --output sets --iteration 1\n\n"
    "  maft export runs/arithmetic_cpu --to inspect --output debates.json"
)
@click.argument("run", metavar="RUN", type=stage.PATH)
@click.option("--to", type=click.Choice(TARGETS), required=True, help="The format.")
@click.option("--output", metavar="PATH", required=True, type=stage.PATH, help="What to make.")
@click.option("--iteration", type=int, help="Which iteration (default: the newest; for preferences, all).")
@stage.prints
def export(run: Path, *, to: To, output: Path, iteration: int | None, as_json: bool, quiet: bool) -> None:
    """Write the run in folder RUN in the format of another program.

    messages, openai, sharegpt: what each agent was finetuned on, a file for each agent in the folder PATH.
    trl-preference, trl-unpaired: replies to the training questions by whether they agree with the vote, for TRL's
    DPOTrainer and KTOTrainer, in the file PATH. inspect: the debates on held-out questions with their verdicts, for
    `inspect view`, in the file PATH.
    """
    from maft.sharing import export as export_

    rows = export_.export(stage.run(run, quiet=quiet), to, output, iteration)
    lines = [f"{count:>8,} rows  {name}" for name, count in rows.items()]
    stage.say([*lines, f"Exported: {output}"], {"output": output, "rows": rows}, as_json=as_json)
