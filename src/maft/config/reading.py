"""Reads YAML: no key twice, bounded size and depth; dates, `on` and `no` are text."""

import json
import re
from collections import Counter
from itertools import count
from typing import Any

import yaml

LARGEST = 100_000
"""Values in a tree of settings, each counted as often as an alias repeats it."""
DEEPEST = 50
"""Sections within sections."""
_YAML_1_1 = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "timestamp")}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and truth values: 12:30, 2024-01-01, 010, on and no are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as the base class has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _YAML_1_1]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is given twice, of which YAML would keep the last one."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name, times in Counter(key.value for key in keys).items():
            if times > 1 and name != "<<":
                again = [key for key in keys if key.value == name][1]
                raise yaml.MarkedYAMLError(problem=f"the key {name} is given twice", problem_mark=again.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), "-+0123456789")


def read(text: str) -> Any:
    """Return the values of a YAML or JSON text, see `plain`.

    Raises:
        ValueError: it is not YAML, gives a key twice, or is larger or deeper than any settings; says where.
    """
    try:
        return plain(_json(text) or _Loader(text).get_single_data())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"is not valid YAML: {where}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"is deeper than {DEEPEST} levels") from None


def _json(text: str) -> dict[str, Any] | None:
    """Return the object of a JSON text, which YAML takes a hundred times as long to read; None where it is none."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key is given twice")  # YAML says which, and where
        return dict(pairs)

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        read: dict[str, Any] | None = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def plain(tree: Any) -> Any:
    """Return a copy of settings as JSON has them: names are texts, and no two places share a value.

    Raises:
        ValueError: the tree is larger or deeper than any settings, as when it holds itself.
    """
    numbers = count(1)

    def copy(value: Any, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError(f"is deeper than {DEEPEST} levels, or holds itself")
        if next(numbers) > LARGEST:
            raise ValueError(f"holds more than {LARGEST:,} values")
        if isinstance(value, dict):
            return {str(key): copy(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [copy(inner, depth + 1) for inner in value]
        return value if isinstance(value, bool | int | float | None) else str(value)

    return copy(tree, 0)
