"""YAML and overrides in, a validated tree out; its JSON; the digest that is the identity of a run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from maft.config.base import identity
from maft.config.run import RunConfig
from maft.config.words import explain
from maft.errors import ConfigError


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML or JSON config and put `section.key=value` overrides on top; values are YAML.

    A run folder stands for its config.json and keeps its place. A relative path inside the file is relative to the
    working directory. A path `recipes/...` that does not exist here is looked up among the recipes that come with maft.
    A run without a name is called after the file, or after its folder if the file is called config.

    Raises:
        ConfigError: no such file, not YAML, or a setting is unknown, has the wrong type or is out of range.
    """
    path = _shipped(path)
    home = path if (path / "config.json").is_file() else None
    try:
        tree = yaml.safe_load((home / "config.json" if home else path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Give the path of a config file, see recipes/.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold settings (key: value), got {type(tree).__name__}.")
    if home:
        tree |= {"name": home.resolve().name, "runs_dir": str(home.parent)}
    tree.setdefault("name", path.resolve().parent.name if path.stem == "config" else path.stem)
    return parse(tree, overrides, source=str(path))


def _shipped(path: Path) -> Path:
    """Return the path, or, where nothing is there, the recipe of that name in the package or in its checkout."""
    package = Path(__file__).parent.parent
    homes = (Path(), package, package.parent.parent) if path.parts[:1] == ("recipes",) else (Path(),)
    return next((home / path for home in homes if (home / path).exists()), path)


def parse(tree: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "config") -> RunConfig:
    """Validate a tree of settings with overrides on top.

    >>> parse({"task": {"name": "arithmetic"}}, ["debate.num_agents=5"]).debate.num_agents
    5

    Raises:
        ConfigError: as `load`.
    """
    try:
        tree = json.loads(json.dumps(tree, default=str))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{source}: settings must be named by texts and must not hold themselves ({error})."
        ) from None
    for override in overrides:
        _override(tree, override)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as errors:
        lines = [explain(tree, error) for error in errors.errors()]
        raise ConfigError(f"{source}:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(lines))) from None


def resolved(config: RunConfig) -> str:
    """Return the whole tree as JSON, defaults included; `load` takes it back."""
    return config.model_dump_json(indent=2) + "\n"


def digest(config: RunConfig) -> str:
    """Return the identity of a run: equal for configs that ask for the same results, wherever they are written."""
    return short_digest(identity(config))


def short_digest(tree: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that say what is in a tree of plain values."""
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=8).hexdigest()


def differences(ours: RunConfig, theirs: RunConfig) -> dict[str, tuple[object, object]]:
    """Return the dotted keys in which two configs differ, with both values."""
    a, b = (_flat(identity(config)) for config in (ours, theirs))
    return {key: (a.get(key), b.get(key)) for key in sorted(a | b) if a.get(key) != b.get(key)}


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"an override must look like section.key=value, got {override!r}.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of {key} is not valid YAML: {text!r}. Quote it if it is text.") from None
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{key} cannot be set: {section} is a value, not a section.")
        node = child
    node[last] = value


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
