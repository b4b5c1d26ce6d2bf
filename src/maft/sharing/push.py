"""Uploads to the Hugging Face hub, with its refusals explained."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from maft import __version__
from maft.errors import MissingExtra, UserError
from maft.sharing.dataset import VIEWS
from maft.sharing.layout import Repo

WEIGHTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "model.safetensors*",
    "model-*.safetensors",
)
"""Files of an earlier push that are removed where an agent goes, such as an adapter that is now merged."""
AGAIN = "What was uploaded is kept; run the same command again to continue."


def check(repo: Repo, *, login: bool) -> None:
    """Check the names of the repository and of the base model before any work.

    Raises:
        UserError: the hub can have no such name, or `login` is needed and nobody is logged in.
        MissingExtra: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub.utils import HFValidationError, get_token, validate_repo_id
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
    if login and get_token() is None:
        raise UserError(
            "not logged in to the hub. Run `hf auth login`, or set HF_TOKEN to a token with write permission."
        )


def planned(root: Path, repo: Repo, message: str) -> dict[str, Any]:
    """Return what would be sent where: the files with their sizes, and the card."""
    return {
        "message": message,
        "repository": repo.id,
        "kind": repo.kind,
        "branch": repo.branch or "main",
        "private": repo.private,
        "files": {
            path.relative_to(root).as_posix(): path.stat().st_size for path in sorted(root.rglob("*")) if path.is_file()
        },
        "card": (root / "README.md").read_text(encoding="utf-8"),
    }


def plan(planned: Mapping[str, Any]) -> str:
    """Put what would be sent into lines."""
    sizes = planned["files"]
    who = "private" if planned["private"] else "public, unless an organisation has it otherwise"
    return "\n".join(
        [
            planned["message"],
            f"Repository: {planned['repository']}, a {planned['kind']}, branch {planned['branch']}, {who}",
            f"Files: {len(sizes)}, {sum(sizes.values()):,} bytes",
            *(f"{size:>13,}  {path}" for path, size in sizes.items()),
            "README.md:",
            "",
            planned["card"],
            "Nothing was sent.",
        ]
    )


def upload(root: Path, repo: Repo, message: str) -> str:
    """Upload a folder, creating the repository and the branch if needed; return the address.

    Raises:
        UserError: the hub refuses, or it cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="maft", library_version=__version__)
    places = [path.parent.relative_to(root) for path in root.rglob("training.json")]
    replaced = [(place / name).as_posix() for place in places for name in WEIGHTS]
    with _explained(repo):
        url = api.create_repo(repo.id, private=repo.private or None, exist_ok=True, repo_type=repo.kind)
        if repo.private and not api.repo_info(repo.id, repo_type=repo.kind).private:
            raise UserError(
                f"{repo.id} exists and is public; --private works for a new repository only. Make it "
                "private on the hub, leave --private out, or choose another REPO_ID."
            )
        if repo.branch is not None:
            api.create_branch(repo.id, branch=repo.branch, exist_ok=True, repo_type=repo.kind)
        present = api.list_repo_files(repo.id, revision=repo.branch, repo_type=repo.kind)
        if repo.kind == "dataset":
            _refuse_to_replace_data(present, repo)
            replaced = [f"{view}/*.parquet" for view in VIEWS]
        else:
            _refuse_to_replace(present, places, repo)
        if any(root.rglob("config.json")) and (repo.branch is not None or Path() not in places):
            _refuse_beside_an_adapter(api.list_repo_files(repo.id), repo)
        api.upload_folder(
            repo_id=repo.id,
            folder_path=root,
            revision=repo.branch,
            commit_message=message,
            repo_type=repo.kind,
            delete_patterns=replaced,
        )
    return str(url) if repo.branch is None else f"{url}/tree/{repo.branch}"


def _refuse_to_replace(present: Sequence[str], places: Sequence[Path], repo: Repo) -> None:
    """Refuse to replace weights that maft did not send; its own have a training.json next to them."""
    for place in places:
        weights = [name for name in present for pattern in WEIGHTS if fnmatch(name, (place / pattern).as_posix())]
        if weights and (place / "training.json").as_posix() not in present:
            raise UserError(
                f"{repo.id} has a model that maft did not send: {weights[0]}. Choose another REPO_ID or --branch."
            )


def _refuse_to_replace_data(present: Sequence[str], repo: Repo) -> None:
    """Refuse to write into a data set that maft did not send."""
    if "README.md" in present and not any(name.startswith("debates/") for name in present):
        raise UserError(f"{repo.id} has a data set that maft did not send. Choose another REPO_ID or --branch.")


def _refuse_beside_an_adapter(present: Sequence[str], repo: Repo) -> None:
    # transformers 5.5 looks for an adapter at the root of main, whatever subfolder and revision it is asked for.
    if "adapter_config.json" in present:
        raise UserError(
            f"{repo.id} has an adapter at its root, which transformers would load in place of whole models in "
            "folders or on branches. Choose another REPO_ID for these."
        )


@contextmanager
def _explained(repo: Repo) -> Iterator[None]:
    """Turn exceptions of the hub's client into one-line errors."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except UserError:
        raise
    except (httpx.HTTPError, OSError, RuntimeError) as error:
        # The client wraps what happens in one of its threads.
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        if isinstance(cause, HfHubHTTPError):
            raise UserError(_refusal(repo, cause)) from None
        if isinstance(cause, OSError) and cause.filename is not None:
            raise  # a file of ours
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise UserError(f"the hub cannot be reached, or the upload broke off: {reason}. {AGAIN}") from None
    except ValueError as error:  # the card's metadata, which it checks first
        raise UserError(f"the hub refuses the card: {' '.join(str(error).split())}") from None


def _refusal(repo: Repo, error: Any) -> str:
    status = error.response.status_code
    reason = error.server_message or error.response.reason_phrase
    answer = f"the hub answers {status} ({reason})"
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
