"""Writes the parts of the docs that are read off the code; `--check` says whether they are current.

python docs/generate.py [--check]
"""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from maft import config, records
from maft.cli.main import VERBS, maft

HERE = Path(__file__).parent


def config_page() -> str:
    """Return every setting with its default and its sentence."""
    lines = ["# Settings", "", "Made by `make docs` from `src/maft/config/`.", "", "| key | default | what it does |"]
    lines.append("|---|---|---|")
    for key, field in config.known_keys().items():
        default = "required" if field.is_required() else f"`{_shown(field.get_default(call_default_factory=True))}`"
        lines.append(f"| `{key}` | {default} | {' '.join((field.description or '').split())} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    """Return a default as YAML would have it."""
    if isinstance(value, tuple | dict) or value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)


def cli_page() -> str:
    """Return the help text of every verb."""
    parts = ["# Command line", "", "Made by `make docs` from `maft ... --help`.", ""]
    for words in ((), *((verb,) for verb in VERBS)):
        context = click.Context(maft, info_name="maft")
        command: click.Command = maft
        if words:
            found = maft.get_command(context, words[0])
            assert found is not None
            command, context = found, click.Context(found, info_name=words[0], parent=context)
        title = " ".join(("maft", *words))
        parts += [f"## {title}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(parts)


def formats_page() -> str:
    """Return every record with its fields."""
    head = "Made by `make docs` from `src/maft/records.py`. One record is one line of JSON."
    lines = ["# Data formats", "", head]
    kinds = [
        kind
        for kind in vars(records).values()
        if isinstance(kind, type) and issubclass(kind, records.Record) and kind is not records.Record
    ]
    for kind in kinds:
        lines += [
            "",
            f"## {kind.__name__}",
            "",
            (kind.__doc__ or "").strip(),
            "",
            "| field | type | |",
            "|---|---|---|",
        ]
        for name, field in kind.model_fields.items():
            described = " ".join((field.description or "").split())
            lines.append(f"| `{name}` | `{_type(field.annotation)}` | {described} |")
    return "\n".join(lines) + "\n"


def _type(annotation: Any) -> str:
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    return text.replace("maft.records.", "").replace("typing.", "").replace("|", "or").replace("NoneType", "None")


def scale_page() -> str:
    """Return the page on scale, with what its commands print below each."""

    def printed(block: re.Match[str]) -> str:
        from click.testing import CliRunner

        done = CliRunner().invoke(maft, shlex.split(block["command"])[1:], catch_exceptions=False)
        return f"```console\n$ {block['command']}\n{done.stdout}```"

    text = (HERE / "scale.md").read_text(encoding="utf-8")
    return re.sub(r"```console\n\$ (?P<command>.*)\n(?:.*\n)*?```", printed, text)


PAGES = {"config.md": config_page, "cli.md": cli_page, "formats.md": formats_page, "scale.md": scale_page}


def main(*, check: bool) -> int:
    """Write the pages, or name those that are not current."""
    stale = [name for name, page in PAGES.items() if not _current(HERE / name, page())]
    for name in stale:
        if check:
            print(f"docs/{name} is not current; run: make docs", file=sys.stderr)
        else:
            (HERE / name).write_text(PAGES[name](), encoding="utf-8")
    return int(check and bool(stale))


def _current(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv))
