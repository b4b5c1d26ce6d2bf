"""Writes settings as YAML that explains itself: above each setting what it does."""

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from maft.config.run import RunConfig
from maft.config.words import section_of

WIDTH = 100


def written(tree: Mapping[str, Any], unset: Mapping[str, Any] | None = None) -> str:
    """Return settings as commented YAML.

    Args:
        tree: settings by section, as `maft.config.parse` takes them.
        unset: settings to show, commented out, in the sections where they belong.
    """
    return "\n".join(_lines(tree, unset or {}, RunConfig, 0)).replace("\n\n\n", "\n\n").strip() + "\n"


def _lines(tree: Mapping[str, Any], unset: Mapping[str, Any], section: type[BaseModel] | None, depth: int) -> list[str]:
    lines: list[str] = []
    for name, value in {**tree, **{name: value for name, value in unset.items() if name not in tree}}.items():
        field = section.model_fields.get(name) if section else None
        inner = section_of(field.annotation) if field else None
        lines += [""] if depth == 0 else []
        lines += [f"# {line}" for line in textwrap.wrap(_sentence(field.description if field else None), WIDTH)]
        if isinstance(value, Mapping) and (inner or name not in unset) and value:
            below = unset.get(name, {}) if name in tree else value
            inside = _lines(value if name in tree else {}, below, inner, depth + 1)
            lines += [f"{name}:", *(f"  {line}".rstrip() for line in inside)]
            continue
        text = yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=1000).rstrip().split("\n")
        lines += [line if name in tree else f"# {line}" for line in text]
    return lines


def _sentence(description: str | None) -> str:
    """Return the first sentence of a description.

    >>> _sentence("Number of agents, such as 3. More are better.")
    'Number of agents, such as 3.'
    """
    text = " ".join((description or "").split())
    return re.split(r"(?<=\.) (?=[A-Z`])", text)[0]
