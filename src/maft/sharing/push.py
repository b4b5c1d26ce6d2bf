"""Finetuned agents to the Hugging Face hub: the files laid out as they will lie there, and their upload.

One agent lies at the root of a repository, as PEFT and transformers look for it. Several lie in a folder each, which
both find with `subfolder="critic_2"`, under a card of their society.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from maft import __version__, cards, models
from maft.errors import DataError, MissingExtra, UserError
from maft.sharing import merge, sections
from maft.sharing.agents import Agent, described
from maft.sharing.sections import Held
from maft.store import RunFolder

ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "training.json")
MODEL = (".json", ".safetensors", ".jinja", ".txt", ".model")
"""Endings of what belongs to a whole model; other files are not sent."""
WEIGHTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "model.safetensors*",
    "model-*.safetensors",
)
"""What of an earlier push is removed where an agent goes: no adapter stays beside the model it was merged into."""
VOCABULARY = ("tokenizer.json", "vocab.json")
_SOCIETY = """\
# {name}

Agents that debate with one another, made with `maft` {version} by multiagent finetuning
([arXiv 2501.05707](https://arxiv.org/abs/2501.05707)), iteration {iteration}. Generators give first answers, critics
answer again after they were shown what others answered. Each learnt from its own debate responses that agree with the
majority vote. No ground truth was used.

| folder | role | base | examples |
|---|---|---|---|
{rows}
"""
AGAIN = "What was uploaded is kept; the same command goes on from there."


class Repo(NamedTuple):
    """Where agents go, and what their owner says of them."""

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


def check(repo: Repo) -> None:
    """Make sure that there can be such a repository.

    Raises:
        UserError: the name is not one that the hub can have.
        MissingExtra: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError:
        raise MissingExtra("maft push", "hub") from None
    for what, name in (("REPO_ID", repo.id), ("--base-model", repo.base_model)):
        if name is None:
            continue
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise UserError(f"{what} {name} is no name of a repository: {error}") from None
        if "/" not in name:
            raise UserError(f"{what} must be USER/NAME or ORGANISATION/NAME, got {name}.")


def lay_out(run: RunFolder, agents: Sequence[Agent], repo: Repo, root: Path, *, one: bool) -> None:
    """Fill an empty folder with what the repository will hold; nothing in it names a path of this machine.

    Args:
        run: where the agents come from.
        agents: of one iteration.
        repo: where they go.
        root: the folder; weights in it are links.
        one: put the only agent at the root.

    Raises:
        DataError: nobody else could have an agent's base, or a file names a path of this machine.
    """
    held = Held(run, agents[0].iteration)
    bases = {agent.base: _hub_name(agent, agents, repo) for agent in agents}
    for agent in agents:
        folder = root if one else root / agent.name
        folder.mkdir(exist_ok=True)
        _files(agent, bases[agent.base], folder, merged=repo.merged)
        subfolder = "" if one else agent.name
        adapter = agent.ref.adapter is not None and not repo.merged
        card = cards.card(
            described(run, agent, bases[agent.base], merged=repo.merged),
            [
                sections.numbers(held, [agent.name]),
                sections.data(run, agent.iteration),
                sections.use(run, bases[agent.base], repo.id, adapter=adapter, subfolder=subfolder, branch=repo.branch),
            ],
            license=_license(repo, bases[agent.base]),
            **sections.results(held, held.of_agent(agent.name), repo.id.rpartition("/")[2]),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    if not one:
        (root / "README.md").write_text(_society_card(run, agents, held, repo, bases), encoding="utf-8")


def plan(root: Path, repo: Repo, message: str) -> str:
    """Say what would be sent where: the files with their sizes, and the card."""
    found = sorted(path for path in root.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in found]
    who = "private" if repo.private else "public, unless an organisation has it otherwise"
    lines = [f"{size:>13,}  {path.relative_to(root).as_posix()}" for size, path in zip(sizes, found, strict=True)]
    return "\n".join(
        [
            f"{message}",
            f"Repository: {repo.id}, branch {repo.branch or 'main'}, {who}",
            f"Files: {len(found)}, {sum(sizes):,} bytes",
            *lines,
            "README.md:",
            "",
            (root / "README.md").read_text(encoding="utf-8"),
            "Nothing was sent.",
        ]
    )


def upload(root: Path, repo: Repo, message: str) -> str:
    """Send what was laid out, making the repository and the branch if need be; return the address.

    Raises:
        UserError: nobody is logged in, the hub refuses, or it cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UserError(
            "nobody is logged in to the hub. Run `hf auth login`, or set HF_TOKEN to a token that may write."
        )
    api = HfApi(library_name="maft", library_version=__version__)
    places = [path.parent.relative_to(root) for path in root.rglob("training.json")]
    with _explained(repo):
        url = api.create_repo(repo.id, private=repo.private or None, exist_ok=True)
        if repo.private and not api.model_info(repo.id).private:
            raise UserError(
                f"{repo.id} is there already, and it is public: --private holds for a new repository only. Make it "
                "private on the hub, leave --private out, or choose another REPO_ID."
            )
        if repo.branch is not None:
            api.create_branch(repo.id, branch=repo.branch, exist_ok=True)
        _refuse_to_replace(api.list_repo_files(repo.id, revision=repo.branch), places, repo)
        api.upload_folder(
            repo_id=repo.id,
            folder_path=root,
            revision=repo.branch,
            commit_message=message,
            delete_patterns=[(place / name).as_posix() for place in places for name in WEIGHTS],
        )
    return str(url) if repo.branch is None else f"{url}/tree/{repo.branch}"


def _refuse_to_replace(there: Sequence[str], places: Sequence[Path], repo: Repo) -> None:
    """Leave weights alone that are none of ours; what maft sends has a training.json beside it."""
    for place in places:
        weights = [name for name in there for pattern in WEIGHTS if fnmatch(name, (place / pattern).as_posix())]
        if weights and (place / "training.json").as_posix() not in there:
            raise UserError(
                f"{repo.id} has a model that maft did not send: {weights[0]}. Choose another REPO_ID or --branch."
            )


def show_no_bars() -> None:
    """Have the hub's client send without progress bars."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()


@contextmanager
def _explained(repo: Repo) -> Iterator[None]:
    """Turn what the hub's client raises into one clean line."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (httpx.HTTPError, OSError, RuntimeError) as error:
        cause = (
            error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        )  # of a thread of the client
        if isinstance(cause, HfHubHTTPError):
            raise UserError(_refusal(repo, cause)) from None
        if isinstance(cause, OSError) and cause.filename is not None:
            raise  # a file of ours
        said = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise UserError(f"the hub cannot be reached, or the upload broke off: {said}. {AGAIN}") from None


def _refusal(repo: Repo, error: Any) -> str:
    status = error.response.status_code
    said = error.server_message or error.response.reason_phrase
    answer = f"the hub answers {status} ({said})"
    if status == 401:
        return f"{answer}: it does not know the token. Run `hf auth login`, or set HF_TOKEN to a token that may write."
    if status == 403:
        return (
            f"{answer}: this token may not write to {repo.id}. Give a REPO_ID below your own name or an organisation "
            "of yours, and a token with write permission for it: `hf auth login`, or HF_TOKEN."
        )
    if status == 404:
        branch = f", or no branch {repo.branch} in it" if repo.branch else ""
        return f"{answer}: there is no {repo.id} that this token can see{branch}. Look at the name and the token."
    if status == 429 or status >= 500:
        return f"{answer}. Wait a while. {AGAIN}"
    return f"{answer} to the upload to {repo.id}."


def _files(agent: Agent, base: str, folder: Path, *, merged: bool) -> None:
    """Put an agent's files into a folder, weights as links, everything else cleaned of this machine."""
    source = agent.folder
    if merged and agent.ref.adapter is not None:
        merge.model(agent, folder)
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
    """Copy a JSON file, with the base's name on the hub in place of the folder it was loaded from."""
    content = json.loads(source.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        if "base_model_name_or_path" in content:
            content["base_model_name_or_path"] = base
        content.pop("_name_or_path", None)  # where older versions of transformers loaded a model from
    for value in _strings(content):
        if value.startswith(("/", "~/")) and Path(value).expanduser().exists():
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
    """Return the name under which anybody has an agent's base."""
    name = cards.public_name(agent.base)
    if models.is_hub_name(name):
        return name
    local = {one.base for one in agents if not models.is_hub_name(cards.public_name(one.base))}
    if repo.base_model is None or len(local) > 1:
        each = " These agents have several such bases: push them one by one, with --agent." if len(local) > 1 else ""
        raise DataError(
            f"{agent.name} was finetuned from {agent.base}, a folder of this machine, which nobody else has. "
            f"Say which model of the hub it is with --base-model ORG/NAME.{each}"
        )
    return repo.base_model


def _license(repo: Repo, *bases: str) -> str | None:
    """Return the license that is declared: the one given, or that of the packaged model."""
    return repo.license or ("apache-2.0" if set(bases) == {models.PACKAGED_ON_HUB} else None)


def _society_card(run: RunFolder, agents: Sequence[Agent], held: Held, repo: Repo, bases: dict[str, str]) -> str:
    number, name, of_hub = agents[0].iteration, repo.id.rpartition("/")[2], sorted(set(bases.values()))
    told = [described(run, agent, bases[agent.base], merged=repo.merged) for agent in agents]
    rows = [f"| [{one.agent}]({one.agent}) | {one.role} | {one.base} | {one.summary['num_examples']} |" for one in told]
    head = cards.front_matter(
        tags=sorted({one.training.method for one in told}) + ["merged"] * repo.merged,
        base_model=of_hub[0] if len(of_hub) == 1 else of_hub,
        library_name=told[0].library,
        license=_license(repo, *of_hub),
        **sections.results(held, held.of_society(), name),
    )
    about = _SOCIETY.format(name=name, version=__version__, iteration=number, rows="\n".join(rows))
    first, adapter = told[0], told[0].library == "peft"
    use = sections.use(run, first.base, repo.id, adapter=adapter, subfolder=first.agent, branch=repo.branch)
    numbers = sections.numbers(held, [agent.name for agent in agents])
    again = [_debate_again(run, repo, of_hub[0], agents)] if len(of_hub) == 1 else []
    return "\n".join([head, about, numbers, sections.data(run, number), use, *again, cards.CITATION])


def _debate_again(run: RunFolder, repo: Repo, base: str, agents: Sequence[Agent]) -> str:
    revision = f" --revision {repo.branch}" if repo.branch else ""
    names = {role: [one.name for one in agents if one.ref.role == role] for role in ("generator", "critic")}
    if run.config.society.one_model:  # it speaks for all
        everybody = names["generator"] * run.config.debate.num_agents
        names = {"generator": everybody, "critic": everybody if run.config.debate.num_rounds > 1 else []}
    options = " ".join(f"--{role}s society/{' society/'.join(some)}" for role, some in names.items() if some)
    return (
        "With `maft`, they debate questions of your own:\n\n```sh\n"
        f"hf download {repo.id}{revision} --local-dir society\n"
        f"maft debate mine.yaml model={base} {options}\n```\n"
    )
