"""`maft push`: finetuned agents or debates to the Hugging Face hub."""

import sys
from pathlib import Path
from typing import Any

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft push runs/arithmetic_cpu me/sums-society --dry-run\n\n"
    "  maft push runs/arithmetic_cpu me/sums-critic --agent critic_2 --merged --private\n\n"
    "  maft push runs/mine me/mine --base-model HuggingFaceTB/SmolLM2-360M-Instruct --branch first --iteration 1\n\n"
    "  maft push runs/arithmetic_cpu me/sums-debates --debates --license apache-2.0"
)
@click.argument("run", metavar="RUN", type=stage.PATH)
@click.argument("repo_id")
@click.option("--agent", metavar="NAME", default="all", show_default=True, help="Agent, such as critic_2, or all.")
@click.option("--iteration", type=int, help="Iteration (default: the newest finished one).")
@click.option("--debates", is_flag=True, help="Upload the debates of all iterations, as a data set, instead of agents.")
@click.option("--merged", is_flag=True, help="Send models with the adapters merged into their base.")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--branch", help="Branch to upload to (default: main); created if missing.")
@click.option("--license", metavar="ID", help="The license to declare, such as apache-2.0.")
@click.option(
    "--base-model", metavar="ORG/NAME", help="Hub name of the base model, where the run has it as a local folder."
)
@click.option("--dry-run", is_flag=True, help="Print the files and the card, and send nothing.")
@stage.prints
def push(
    run: Path,
    repo_id: str,
    *,
    agent: str,
    iteration: int | None,
    debates: bool,
    merged: bool,
    private: bool,
    branch: str | None,
    license: str | None,
    base_model: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Upload finetuned agents of the run in folder RUN to the repository REPO_ID of the Hugging Face hub.

    Each agent gets a folder, below a model card of the society; with --agent NAME, that agent is at the root. Cards
    have base, role, iteration, data, settings and results. Questions, debates and examples are not sent. Files of the
    same name are replaced, others stay.

    With --debates, REPO_ID is a data set of questions, debates and preferences in Parquet; its card says how many
    labels are right. Known answers are not sent.
    """
    from maft import files
    from maft.runs.folder import RunFolder
    from maft.sharing import agents, dataset, layout
    from maft.sharing import push as push_

    stage.log_to_stderr(quiet=quiet)
    if debates and (merged or base_model or agent != "all"):
        raise click.UsageError("--debates sends no agents: leave out --agent, --merged and --base-model.")
    repo = layout.Repo(repo_id, private, branch, license, base_model, merged, "dataset" if debates else "model")
    push_.check(repo, login=not dry_run)
    folder = RunFolder.existing(run)
    with files.scratch("push") as root:
        if debates:
            summary: dict[str, Any] = {"rows": dataset.lay_out(folder, repo, root, iteration)}
            message = f"Debates of {folder.config.name}"
        else:
            chosen = agents.choose(folder, agent, iteration)
            layout.lay_out(folder, chosen, repo, root, one=agent != "all")
            summary = {"iteration": chosen[0].iteration, "agents": [one.name for one in chosen]}
            message = f"Iteration {chosen[0].iteration} of {folder.config.name}: {', '.join(summary['agents'])}"
        if dry_run:
            planned = push_.planned(root, repo, message)
            stage.say(push_.plan(planned), planned, as_json=as_json)
            return
        if quiet or not sys.stderr.isatty():
            from huggingface_hub.utils import disable_progress_bars

            disable_progress_bars()
        url = str(push_.upload(root, repo, message))
        stage.say(f"{message}: {url}", summary | {"url": url}, as_json=as_json)
