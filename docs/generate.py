"""Writes the pages of the docs that are generated from the code; `--check` says whether they are current.

python docs/generate.py [--check]
"""

import json
import re
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from maft import config, records
from maft.cli.main import VERBS, maft
from maft.diversity.measures import Diversity
from maft.evaluation.metrics import MethodResult
from maft.method.curate import CurateCounts
from maft.runs import folder

HERE = Path(__file__).parent

DEFAULTS = {"name": "name of the config file; of its folder, if the file is called `config`"}
"""Defaults that the field itself does not have."""

WRITTEN = {
    "Problem": "problems/train.jsonl, problems/eval.jsonl",
    "Debate": "iter_NN/debates.jsonl (training questions), iter_NN/eval/debates.jsonl (held-out questions)",
    "Vote": "iter_NN/votes.jsonl (training questions), iter_NN/eval/votes.jsonl (held-out questions)",
    "Example": "iter_NN/examples/AGENT.jsonl, such as generator_0.jsonl",
    "Score": "iter_NN/eval/METHOD.jsonl, such as majority@3.jsonl",
    "CurateCounts": "iter_NN/examples/summary.json, by agent",
    "MethodResult": "iter_NN/eval/summary.json, a list",
    "Diversity": "iter_NN/eval/diversity.json, after `maft diversity`",
}
"""Where a record is written; the others are parts of these, or are passed between stages in memory."""


RULES = (
    "Relative paths in a config are looked up next to the config file, then in the current folder; maft says which one",
    "it uses. Paths on the command line are relative to the current folder. `section.key=value` on the command line",
    "changes that key only; where `sampling.eval` is not set, it follows `sampling.train`. A key given twice is",
    "refused. Dates, times, `on` and `no` are read as text; `true` and `false` are not numbers.",
)


def config_page() -> str:
    """Return every setting with its default and its sentence."""
    lines = ["# Settings", "", "Made by `make docs` from `src/maft/config/`.", "", *RULES, ""]
    lines.append("| key | default | what it does |")
    lines.append("|---|---|---|")
    for key, field in config.known_keys().items():
        default = "required" if field.is_required() else f"`{_shown(field.get_default(call_default_factory=True))}`"
        if key.startswith("sampling.eval."):
            default = f"`{key.replace('eval', 'train')}`"
        if key.startswith(("train.generator.", "train.critic.")):
            default = f"`train.{key.rpartition('.')[2]}`"
        default = DEFAULTS.get(key, default)
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
        context = click.Context(maft, info_name="maft", **maft.context_settings)
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
    tree = (folder.__doc__ or "").partition("\n\n")[2].partition("\n\n")
    lines = [
        "# Files of a run",
        "",
        "Made by `make docs` from `src/maft/runs/folder.py` and `src/maft/records.py`. `NN` is the iteration, 00 the",
        "untrained society. In a .jsonl file one record is one line of JSON.",
        "",
        "```text",
        textwrap.dedent(tree[0]).strip(),
        "```",
        "",
        tree[2].strip(),
    ]
    kinds = [
        kind
        for kind in (*vars(records).values(), CurateCounts, MethodResult, Diversity)
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in (BaseModel, records.Record)
    ]
    unknown = set(WRITTEN) - {kind.__name__ for kind in kinds}
    assert not unknown, f"WRITTEN names records that do not exist: {unknown}"
    for kind in kinds:
        lines += [
            "",
            f"## {kind.__name__}",
            "",
            (kind.__doc__ or "").strip(),
            *([] if kind.__name__ not in WRITTEN else ["", f"Written to: {_as_code(WRITTEN[kind.__name__])}."]),
            "",
            "| field | type | |",
            "|---|---|---|",
        ]
        for name, field in kind.model_fields.items():
            described = " ".join((field.description or "").split())
            lines.append(f"| `{name}` | `{_type(field.annotation)}` | {described} |")
    return "\n".join(lines) + "\n"


def _as_code(text: str) -> str:
    return re.sub(r"(?<!`)\b[\w@/]+\.jsonl?\b", r"`\g<0>`", text)


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
