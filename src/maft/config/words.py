"""The keys of the tree, and error messages for wrong settings."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from maft.config.base import Section
from maft.config.run import RunConfig
from maft.extensions import Part


def known_keys() -> dict[str, Any]:
    """Return every dotted key of the tree with its field, in the order of the file."""
    keys: dict[str, Any] = {}

    def walk(section: type[BaseModel], prefix: str) -> None:
        for name, field in section.model_fields.items():
            inner = section_of(field.annotation)
            if inner is None:
                keys[prefix + name] = field
            else:
                walk(inner, f"{prefix}{name}.")

    walk(RunConfig, "")
    return keys


def parts(config: Section) -> list[str]:
    """Return the names of the parts from outside that a config uses, see `maft.extensions`."""
    names: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            names += parts(value)
        elif (part := _part(field.annotation, field.metadata)) is not None:
            names += [leaf for leaf in (value if isinstance(value, tuple) else (value,)) if part.is_outside(leaf)]
    return list(dict.fromkeys(names))


def _part(annotation: Any, metadata: Sequence[Any]) -> Part | None:
    """Return the check of a setting, or of the entries of its list, if it names a part."""
    checks = [mark.func for mark in metadata if isinstance(getattr(mark, "func", None), Part)]
    inner = (_part(arg, getattr(arg, "__metadata__", ())) for arg in get_args(annotation))
    return checks[0] if checks else next((part for part in inner if part is not None), None)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation names, if it names one."""
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def explain(tree: object, error: ErrorDetails) -> str:
    """Return one line with the key, what it allows and what was given."""
    section: type[BaseModel] | None = RunConfig
    path: list[str] = []
    allowed = ""
    for part in error["loc"]:
        if section is None and not isinstance(tree, dict):
            break  # what follows names a branch of a union or a place in a list
        fields = section.model_fields if section else {}
        path.append(str(part))
        tree = tree.get(part) if isinstance(tree, dict) else None
        if part in fields:
            allowed = _allowed(fields[str(part)].annotation, fields[str(part)].metadata)
            section = section_of(fields[str(part)].annotation)
        else:
            section, allowed = None, _allowed(str, [])
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return _unknown(path)
    if error["type"] == "missing":
        return f"{key} is missing."
    if error["type"] == "value_error":
        wording = error["msg"].removeprefix("Value error, ")
        place = next((f"[{part}]" for part in error["loc"] if isinstance(part, int)), "")
        return f"{key}{place}: {wording}" if key and not wording.startswith(f"{key}.") else wording
    quotes = " Put it in quotes." if allowed.startswith("text") and isinstance(tree, int | float) else ""
    return f"{key} must be {allowed}, got {_shown(tree)}.{quotes}"


def _shown(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _unknown(path: Sequence[str]) -> str:
    key, keys = ".".join(path), list(known_keys())
    sections = list(dict.fromkeys(known.rpartition(".")[0] for known in keys if "." in known))
    candidates = [known for known in keys + sections if not key.startswith(f"{known}.")]
    near = difflib.get_close_matches(key, candidates, n=1, cutoff=0.6) or [
        known for known in keys if known.split(".")[-1] == path[-1]
    ]
    if near:
        return f"{key} is not a setting. Did you mean {near[0]}?"
    home = "".join(f"{part}." for part in path[:-1])
    beside = dict.fromkeys(known.removeprefix(home).split(".")[0] for known in keys if known.startswith(home))
    return f"{key} is not a setting. {home.removesuffix('.') or 'The top level'} has: {', '.join(beside)}."


_LIMITS = {"ge": "of at least {}", "gt": "above {}", "le": "at most {}", "min_length": "that is not empty"}
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


def _allowed(annotation: Any, metadata: Sequence[Any]) -> str:
    """Put a type into words, such as "a whole number of at least 1, or null"."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return _allowed(inner, [limit for field in metadata for limit in getattr(field, "metadata", [field])])
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        parts = [_allowed(part, ()) for part in get_args(annotation) if part is not NoneType]
        parts = ["a list of these" if part == f"a list of {parts[0]}" else part for part in parts]
        return ", or ".join(parts + ["null"] * (NoneType in get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "a list of " + _allowed(get_args(annotation)[0], ())
    if (section := section_of(annotation)) is not None:
        return "a section with settings such as " + ", ".join(list(section.model_fields)[:3])
    if get_origin(annotation) is dict:
        return f"a section of {'texts' if str in get_args(annotation)[1:] else 'settings'} by name"
    limits = {name: getattr(limit, name) for limit in metadata for name in _LIMITS if hasattr(limit, name)}
    wording = " and ".join(_LIMITS[name].format(value) for name, value in limits.items())
    return f"{_KINDS.get(annotation, str(annotation))} {wording}".rstrip()
