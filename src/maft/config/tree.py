"""Reads YAML and overrides into a validated tree; its JSON; the digest that is the identity of a run."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from maft.config import reading
from maft.config.base import PLACE, identity
from maft.config.run import RunConfig
from maft.config.words import explain, section_of
from maft.errors import ConfigError

log = logging.getLogger("maft")

_PATHS = ("model", "adapter", "train_file", "eval_file", "dataset")
"""What names a path in the entries of lists marked `PLACE`."""


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML or JSON config and put `section.key=value` overrides on top; values are YAML.

    A run folder, or the config.json in it, is that run and keeps its place. A relative path in a file is looked for
    beside the file, then in the current folder; one in an override only there. A path `recipes/...` that does not exist
    here is looked up among the recipes that come with maft. A run without a name is called after the file, or after its
    folder if the file is called config.

    Raises:
        ConfigError: no such file, not YAML, or a setting is unknown, has the wrong type or is out of range.
    """
    path = _shipped(path)
    home = next((folder for folder in (path, path.parent) if _is_run(folder, path)), None)
    try:
        tree = reading.read((home / "config.json" if home else path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Give the path of a config file, see recipes/.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not valid YAML: it is not UTF-8.") from None
    except ValueError as error:
        raise ConfigError(f"{path} {error}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold settings (key: value), got {type(tree).__name__}.")
    if home:
        tree |= {"name": home.resolve().name, "runs_dir": str(home.parent)}
    else:
        _look_beside(path.parent, tree, RunConfig)
    tree.setdefault("name", path.resolve().parent.name if path.stem == "config" else path.stem)
    return parse(tree, overrides, source=str(path))


def _shipped(path: Path) -> Path:
    """Return the path, or, where nothing is there, the recipe of that name in the package or in its checkout."""
    package = Path(__file__).parent.parent
    homes = (Path(), package, package.parent.parent) if path.parts[:1] == ("recipes",) else (Path(),)
    return next((home / path for home in homes if (home / path).exists()), path)


def _is_run(folder: Path, path: Path) -> bool:
    """Say whether `path` is the folder of a run, or the config.json in it."""
    if path == folder:
        return (folder / "config.json").is_file()
    return path.name == "config.json" and (folder / "manifest.json").is_file()


def parse(tree: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "config") -> RunConfig:
    """Validate a tree of settings with overrides on top.

    >>> parse({"task": {"name": "arithmetic"}}, ["debate.num_agents=5"]).debate.num_agents
    5

    Raises:
        ConfigError: as `load`.
    """
    try:
        tree = reading.plain(tree)
    except ValueError as error:
        raise ConfigError(f"{source} {error}.") from None
    keys = [_override(tree, override) for override in overrides]
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as errors:
        lines: dict[str, dict[str, None]] = {}
        for wrong in errors.errors():
            place = ".".join(map(str, wrong["loc"]))
            given = any(f"{place}.".startswith(f"{key}.") or key.startswith(f"{place}.") for key in keys)
            lines.setdefault("command line" if given else source, {})[explain(tree, wrong)] = None
        told = (f"{origin}:\n" + "\n".join(f"  {line}" for line in _telling(of)) for origin, of in lines.items())
        raise ConfigError("\n".join(told)) from None


def changed(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a tree of settings with overrides on top."""
    copy: dict[str, Any] = reading.plain(tree)
    for override in overrides:
        _override(copy, override)
    return copy


def _telling(lines: Iterable[str]) -> list[str]:
    """Leave out what a key must be in general where another line says what is wrong with its value."""
    kept = list(lines)
    return [line for line in kept if not any(one.startswith(f"{line.split(' must be ')[0]}: ") for one in kept)]


def _look_beside(folder: Path, tree: dict[str, Any], section: type[BaseModel], prefix: str = "") -> None:
    """Replace relative paths that exist next to the config file by absolute ones, with a message."""

    def whole(value: Any, key: str) -> Any:
        if isinstance(value, list):
            return [whole(each, key) for each in value]
        if isinstance(value, dict):
            return {name: whole(each, key) if name in _PATHS else each for name, each in value.items()}
        if not isinstance(value, str) or not value or value in ("base", "self", "none"):
            return value
        beside = folder / Path(value).expanduser()
        if not beside.exists() or beside.resolve() == Path(value).expanduser().resolve():
            return value
        log.info("%s: using %s, next to the config file.", key, beside)
        return str(beside.resolve())

    for name, value in tree.items():
        field = section.model_fields.get(name)
        if field is not None and PLACE in field.metadata:
            tree[name] = whole(value, prefix + name)
        elif field is not None and isinstance(value, dict) and (inner := section_of(field.annotation)):
            _look_beside(folder, value, inner, f"{prefix}{name}.")


def over(config: RunConfig, settings: Mapping[str, Any], source: str) -> RunConfig:
    """Return a config with dotted keys and values on top; `source` is named where they are refused.

    Raises:
        ConfigError: as `load`.
    """
    tree = config.model_dump(mode="json")
    for key, value in settings.items():
        *sections, last = key.split(".")
        reduce(dict.__getitem__, sections, tree)[last] = value
    return parse(tree, source=source)


def resolved(config: RunConfig) -> str:
    """Return the whole tree as JSON, defaults included; `load` takes it back."""
    return config.model_dump_json(indent=2) + "\n"


def digest(config: RunConfig) -> str:
    """Return the identity of a run: equal for configs with the same results, wherever they are written."""
    return short_digest(identity(config, defaults=False))


def short_digest(tree: Mapping[str, Any]) -> str:
    """Return a digest of a tree of plain values, 16 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=8).hexdigest()


def differences(ours: RunConfig, theirs: RunConfig) -> dict[str, tuple[object, object]]:
    """Return the dotted keys in which two configs differ, with both values."""
    a, b = (_flat(identity(config)) for config in (ours, theirs))
    keys = sorted(a | b)
    return {key: (a.get(key), b.get(key)) for key in keys if not _same(a.get(key), b.get(key))}


def _same(mine: object, theirs: object) -> bool:
    """Say whether two values are equal, or two spellings of the path of one file."""
    if mine == theirs or not (isinstance(mine, str) and isinstance(theirs, str)):
        return mine == theirs
    return os.path.exists(mine) and os.path.realpath(mine) == os.path.realpath(theirs)


def _override(tree: dict[str, Any], override: str) -> str:
    """Set one key, and return it."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"an override must look like section.key=value, got {override!r}.")
    try:
        value = reading.read(text)
    except ValueError as error:
        raise ConfigError(f"the value of {key} {error}. Got {text[:80]!r}; quote it if it is text.") from None
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        child = node.get(section)
        if child is None:
            # Without a section of its own, sampling.eval is as sampling.train: one key is changed, the others stay so.
            start = node.get("train") if key.startswith("sampling.eval.") and node is tree.get("sampling") else None
            child = node[section] = reading.plain(start or {})
        if not isinstance(child, dict):
            raise ConfigError(f"{key} cannot be set: {section} is a value, not a section.")
        node = child
    node[last] = value
    return key


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
