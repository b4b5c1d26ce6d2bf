"""Errors that maft raises on purpose.

    MaftError
    ├── UserError        asked wrongly: one clean line, exit code 2
    │   ├── ConfigError      a setting is unknown, of a wrong type or out of range
    │   ├── DataError        a question set, a record file or a model folder cannot be used
    │   │   └── TooLarge         a model does not fit into memory
    │   └── MissingExtra     an optional dependency is not installed
    └── StageFailed      asked rightly, but a stage could not finish: one clean line, exit code 1

Anything else is a bug of ours and keeps its traceback. A message says what was wrong, what was got, what is
allowed and what to do. A failure of one question is not an exception at all: it is a record with an `error` in it.
"""


class MaftError(Exception):
    """Base of all errors that maft raises on purpose."""

    exit_code = 1


class UserError(MaftError, ValueError):
    """The request cannot be carried out as asked; the message says what to change."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, has the wrong type or is out of range."""


class DataError(UserError):
    """A question set, a record file, a model or an adapter cannot be used."""


class TooLarge(DataError):
    """A model does not fit into memory; told before it is loaded."""


class MissingExtra(UserError, ImportError):
    """An optional dependency is not installed.

    >>> print(MissingExtra("the openvino sampler", "openvino"))  # doctest: +ELLIPSIS
    the openvino sampler needs packages that are not installed. Install them with: pip install ...[openvino]...
    """

    def __init__(self, what: str, extra: str) -> None:
        self._given = (what, extra)
        super().__init__(f"{what} needs packages that are not installed. Install them with: {install_line(extra)}")

    def __reduce__(self) -> tuple[type["MissingExtra"], tuple[str, str]]:
        """Travel between processes."""
        return type(self), self._given


def install_line(extra: str) -> str:
    """Return the command that adds an extra to maft from where maft was installed: a checkout, a wheel or an index."""
    import json
    from importlib import metadata
    from urllib.parse import unquote

    try:
        source = json.loads(metadata.distribution("maft").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        source = {}
    url = str(source.get("url", ""))
    if source.get("dir_info", {}).get("editable"):
        return f'pip install -e "{unquote(url.removeprefix("file://"))}[{extra}]"'
    if vcs := source.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return f'pip install "maft[{extra}]{" @ " + url if url else ""}"'


class StageFailed(MaftError, RuntimeError):
    """A stage could not finish; finished work is kept, and the same command resumes it."""
