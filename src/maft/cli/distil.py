"""`maft distil`: a society taught to one model."""

from pathlib import Path
from typing import Literal

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft distil runs/arithmetic_cpu\n\n  maft distil runs/arithmetic_cpu --with debates\n\n"
    "  maft merge runs/arithmetic_cpu_distilled/seed_0/distil --output student"
)
@click.argument("run", metavar="RUN", type=stage.PATH)
@stage.overrides
@click.option(
    "--with",
    "lesson",
    type=click.Choice(["answers", "debates"]),
    default="answers",
    show_default=True,
    help="What the model learns: answers that agree with the vote, or whole debates followed by the answer.",
)
@stage.prints
def distil(
    run: Path, overrides: tuple[str, ...], *, lesson: Literal["answers", "debates"], as_json: bool, quiet: bool
) -> None:
    """Distil the society of the finished run in folder RUN into one model, and compare the two at equal tokens.

    After each iteration, the society debates the training questions, and the base model is finetuned on replies that
    agree with its votes. The folder RUN_distilled is a comparison of the society, its member that agrees most with its
    votes, one model finetuned on votes over its own answers (majority_ft), and the distilled model (student). The
    student's folder is an ordinary run with one agent: `maft merge`, `maft push`, `maft serve` and `maft chat` accept
    it. Settings under engine, vllm, openai and train can be changed. The same command resumes.
    """
    from maft import comparison, engines, files, report
    from maft.comparison import ARMS
    from maft.errors import UserError
    from maft.runs.folder import RunFolder
    from maft.runs.progress import Progress

    stage.log_to_stderr(quiet=quiet)
    for override in overrides:
        if not override.startswith(("engine.", "vllm.", "openai.", "train.")):
            raise UserError(f"{override}: only engine, vllm, openai and train can be changed here.")
    student = "distil" if lesson == "answers" else "distil_debates"
    compared = comparison.of_run(RunFolder.existing(run), ["majority_ft", student], overrides)
    with engines.opened(compared.config) as sampler:
        comparison.compare(compared, sampler, engines.make_trainer(compared.config), Progress(quiet=quiet))
    rows = comparison.results(compared)
    files.write_text(compared.path / "results.json", comparison.as_json(rows) + "\n")
    folder = compared.folder(ARMS[student], compared.seeds[0]).path
    page = report.write_comparison_page(compared, rows)
    stage.say(
        [report.comparison_table(rows), *comparison.weak_rivals(compared), f"Student: {folder}", f"Report: {page}"],
        {"student": folder, "report": page, "results": [row.model_dump() for row in rows]},
        as_json=as_json,
    )
