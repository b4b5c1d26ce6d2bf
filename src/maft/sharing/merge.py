"""Finetuned agents as ordinary models, in folders."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from maft import models
from maft.errors import UserError
from maft.files import appearing_whole
from maft.models import merge as merge_
from maft.runs.folder import RunFolder
from maft.sharing import sections
from maft.sharing.agents import Agent
from maft.sharing.sections import Held

log = logging.getLogger(__name__)


def write(run: RunFolder, agents: Sequence[Agent], output: Path, *, each_in_its_own: bool) -> None:
    """Make the folder of a model, or a folder with one for each agent; it is there whole or not at all.

    Raises:
        UserError: the folder has something in it.
        DataError: an adapter does not fit its base, or the base cannot be loaded.
    """
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()
    elif output.exists():
        raise UserError(f"{output} exists and is not empty. Give another --output, or move it away.")
    held = Held(run, agents[0].iteration)
    with appearing_whole(output) as scratch:
        for agent in agents:
            folder = scratch / agent.name if each_in_its_own else scratch
            folder.mkdir(exist_ok=True)
            model(agent, folder, trust=run.config.engine.trust_remote_code)
            name = agent.name if each_in_its_own else output.resolve().name
            card = sections.agent_card(held, agent, models.public_name(agent.base), name, merged=True)
            (folder / "README.md").write_text(card, encoding="utf-8")


def model(agent: Agent, folder: Path, *, trust: bool) -> None:
    """Write an agent as a whole model into an empty folder, without a card: merged, or a copy if it is one already."""
    if agent.ref.adapter is None:
        log.info("Copying %s.", agent.name)
        shutil.copytree(agent.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))
        return
    log.info("Merging %s into %s.", agent.name, agent.ref.model)
    merge_.merge(agent.ref, folder, trust=trust)
    shutil.copy(agent.folder / "training.json", folder)
