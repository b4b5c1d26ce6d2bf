"""The files of finetuned agents for a repository of the Hugging Face hub, with their cards.

One agent goes to the root, where PEFT and transformers look for it. Several get a folder each, which both find with
`subfolder="critic_2"`, and a card of their society.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from maft import __version__, files, models
from maft.errors import DataError
from maft.method import protocol_of
from maft.runs.folder import RunFolder
from maft.sharing import merge, sections
from maft.sharing.agents import Agent, described
from maft.sharing.sections import Held
from maft.trainers import cards

ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "training.json")
MODEL = (".json", ".safetensors", ".jinja", ".txt", ".model")
"""Suffixes of the files of a whole model; others are not sent."""
VOCABULARY = ("tokenizer.json", "vocab.json")


class Repo(NamedTuple):
    """A repository for agents or debates, with what its owner declares."""

    id: str
    """`USER/NAME` or `ORG/NAME`."""
    private: bool = False
    branch: str | None = None
    """None is main."""
    license: str | None = None
    base_model: str | None = None
    """The hub's name of a base that is a local folder here."""
    merged: bool = False
    """Whether agents are sent as whole models."""
    kind: Literal["model", "dataset"] = "model"


def lay_out(run: RunFolder, agents: Sequence[Agent], repo: Repo, root: Path, *, one: bool) -> None:
    """Fill an empty folder with the files of the repository; nothing in it names a path of this machine.

    The agents are of one iteration; weights are links. `one` puts the only agent at the root.

    Raises:
        DataError: nobody else could have an agent's base, or a file names a path of this machine.
    """
    held = Held(run, agents[0].iteration)
    bases = {agent.base: _hub_name(agent, agents, repo) for agent in agents}
    for agent in agents:
        folder = root if one else root / agent.name
        folder.mkdir(exist_ok=True)
        _files(agent, bases[agent.base], folder, merged=repo.merged, trust=run.config.engine.trust_remote_code)
        card = sections.agent_card(
            held,
            agent,
            bases[agent.base],
            repo.id,
            merged=repo.merged,
            license=_license(repo, bases[agent.base]),
            subfolder="" if one else agent.name,
            branch=repo.branch,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    if not one:
        (root / "README.md").write_text(_society_card(run, agents, held, repo, bases), encoding="utf-8")


def _files(agent: Agent, base: str, folder: Path, *, merged: bool, trust: bool) -> None:
    """Put an agent's files into a folder, weights as links, everything else cleaned of this machine."""
    source = agent.folder
    if merged and agent.ref.adapter is not None:
        merge.model(agent, folder, trust=trust)
        source = folder
    for path in sorted(source.iterdir()):
        if agent.ref.adapter is not None and not merged and path.name not in ADAPTER:
            continue
        if path.suffix not in MODEL or path.name.startswith("."):
            continue
        if path.suffix == ".json" and path.name not in VOCABULARY:
            _clean(path, folder / path.name, base)
        elif source != folder and path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path.resolve())
        elif source != folder:
            shutil.copy(path, folder / path.name)


def _clean(source: Path, target: Path, base: str) -> None:
    """Copy a JSON file, with the base's name on the hub instead of the folder it was loaded from."""
    content = json.loads(source.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        if "base_model_name_or_path" in content:
            content["base_model_name_or_path"] = base
        content.pop("_name_or_path", None)  # where older versions of transformers loaded a model from
    for value in _strings(content):
        path = os.path.expanduser(value)
        if path.startswith("/") and path.count("/") > 1 and os.path.exists(path):
            raise DataError(
                f"{source} names {value}, a path of this machine, and would be sent. Take it out of the file."
            )
    target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _hub_name(agent: Agent, agents: Sequence[Agent], repo: Repo) -> str:
    """Return the hub's name of an agent's base."""
    name = models.public_name(agent.base)
    if models.is_hub_name(name):
        return name
    local = {one.base for one in agents if not models.is_hub_name(models.public_name(one.base))}
    if repo.base_model is None or len(local) > 1:
        each = " These agents have several such bases: push them one by one, with --agent." if len(local) > 1 else ""
        raise DataError(
            f"{agent.name} was finetuned from {agent.base}, a folder of this machine, which nobody else has. "
            f"Say which model of the hub it is with --base-model ORG/NAME.{each}"
        )
    return repo.base_model


def _license(repo: Repo, *bases: str) -> str | None:
    """Return the license to declare: the given one, or that of the packaged model."""
    return repo.license or ("apache-2.0" if set(bases) == {models.PACKAGED_ON_HUB} else None)


def _society_card(run: RunFolder, agents: Sequence[Agent], held: Held, repo: Repo, bases: dict[str, str]) -> str:
    name, of_hub = repo.id.rpartition("/")[2], sorted(set(bases.values()))
    described_ = [described(run, agent, bases[agent.base], merged=repo.merged) for agent in agents]
    first, adapter = described_[0], described_[0].library == "peft"
    head = cards.front_matter(
        tags=sorted({one.training.method for one in described_}) + ["merged"] * repo.merged,
        base_model=of_hub[0] if len(of_hub) == 1 else of_hub,
        library_name=first.library,
        license=_license(repo, *of_hub),
        **sections.results(held, held.of_society(), name),
    )
    names = [agent.name for agent in agents]
    body = sections.body(held, names, first.base, repo.id, adapter=adapter, subfolder=first.agent, branch=repo.branch)
    speakers = {role: [one.name for one in agents if one.ref.role == role] for role in ("generator", "critic")}
    if run.config.society.one_model:  # it speaks for all
        roles = protocol_of(run.config.debate).roles(run.config.debate)
        speakers = dict.fromkeys(roles, speakers["generator"] * run.config.debate.num_agents)
    card = files.template("sharing", "society.md.j2").render(
        head=head,
        name=name,
        version=__version__,
        iteration=agents[0].iteration,
        agents=described_,
        body=body,
        one_base=of_hub[0] if len(of_hub) == 1 else None,
        repo=repo,
        speakers=speakers,
        citation=cards.CITATION,
    )
    return str(card).removesuffix("\n")
