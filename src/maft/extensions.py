"""Parts from outside: a task, protocol, equality, sampler, trainer or objective that maft does not ship.

A setting names one in the place of a built-in name:

    my_file.py:Name        a class in a file; a relative path is relative to the working directory
    package.module:Name    a class in an installed package
    name                   an entry point of the group `maft.tasks`, `maft.protocols`, `maft.equalities`,
                           `maft.samplers`, `maft.trainers` or `maft.objectives`

The code is run as any import is. Model output never gets here.
"""

import difflib
import hashlib
import inspect
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module, metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

from maft.errors import ConfigError

GROUPS = {
    "task": "maft.tasks",
    "protocol": "maft.protocols",
    "equality": "maft.equalities",
    "sampler": "maft.samplers",
    "trainer": "maft.trainers",
    "objective": "maft.objectives",
}
"""Entry-point group of each kind of part."""


class Part:
    """Checks the form of a part's name: built in, from a file or package, or an entry point. Nothing is loaded."""

    def __init__(self, kind: str, builtin: Iterable[str]) -> None:
        """Allow the built-in names of a kind, which is a key of `GROUPS`, and those from outside."""
        self.kind = kind
        self.builtin = tuple(builtin)

    def __call__(self, name: str) -> str:
        """Return the name.

        Raises:
            ValueError: it is neither built in nor of the form of a name from outside.
        """
        if name in self.builtin or is_outside(name) or name in entry_points(self.kind):
            return name
        near = difflib.get_close_matches(name, self.builtin, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        article = "an" if self.kind[0] in "aeo" else "a"
        plural = GROUPS[self.kind].removeprefix("maft.")
        raise ValueError(
            f"{name!r} is not {article} {self.kind}.{hint} The {plural} are: {', '.join(self.builtin)}; your "
            "own class is named as my_file.py:Name or package.module:Name."
        )

    def is_outside(self, name: object) -> bool:
        """Say whether a name, which was checked, is not built in."""
        return isinstance(name, str) and name not in self.builtin and (is_outside(name) or ":" not in name)


def is_outside(name: str) -> bool:
    """Say whether a name has the form of a class in a file or a package.

    >>> is_outside("parts/mine.py:Chess"), is_outside("my_package.tasks:Chess"), is_outside("arithmetic")
    (True, True, False)
    """
    place, colon, attribute = name.rpartition(":")
    dotted = all(map(str.isidentifier, place.split("."))) and "." in place
    return bool(colon) and attribute.isidentifier() and (place.endswith(".py") or dotted)


def find(kind: str, name: str, base: type) -> type[Any]:
    """Load a class from outside.

    Args:
        kind: a key of `GROUPS`.
        name: see the head of this file.
        base: what it has to be: an abstract class to inherit from, or a protocol whose methods it must have.

    Raises:
        ConfigError: there is no such file, package or class, it cannot be loaded, or it lacks methods.
    """
    place, _, attribute = name.rpartition(":")
    try:
        found = getattr(_module(place), attribute, None) if place else _entries(name)[0].load()
    except Exception as error:
        raise ConfigError(f"{kind} {name} cannot be loaded: {_told(error, place)}") from error
    if not isinstance(found, type):
        raise ConfigError(f"{kind} {name} cannot be loaded: {place or name} has no class {attribute or name}.")
    is_protocol = getattr(base, "_is_protocol", False)
    if not is_protocol and not issubclass(found, base):
        raise ConfigError(f"{kind} {name} must be a subclass of {base.__module__}.{base.__name__}.")
    wanted = (
        [n for n in vars(base) if not n.startswith("_")] if is_protocol else getattr(found, "__abstractmethods__", ())
    )
    missing = sorted(n for n in wanted if not is_protocol or not callable(getattr(found, n, None)))
    if missing:
        raise ConfigError(f"{kind} {name} lacks {', '.join(missing)}; see {base.__module__}.{base.__name__}.")
    return found


def entry_points(kind: str) -> list[str]:
    """Return the names that installed packages register for a kind."""
    return [entry.name for entry in metadata.entry_points(group=GROUPS[kind])]


def fingerprints(names: Iterable[str]) -> dict[str, str]:
    """Return a digest of the source of each part from outside, by name."""
    return {name: hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for name, text in _sources(names)}


def pack(names: Iterable[str]) -> dict[str, str]:
    """Return the files that parts come from, so that a process on another machine can `unpack` them."""
    return {name.rpartition(":")[0]: text for name, text in _sources(names) if name.rpartition(":")[0].endswith(".py")}


def unpack(files: Mapping[str, str]) -> None:
    """Use these files, which `pack` returned elsewhere, in place of those on this machine."""
    for place, text in files.items():
        copy = Path(tempfile.mkdtemp(prefix="maft-part-")) / Path(place).name
        copy.write_text(text, encoding="utf-8")
        _UNPACKED[place] = copy


_UNPACKED: dict[str, Path] = {}


def _sources(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in dict.fromkeys(names):
        file = inspect.getsourcefile(_module(name.rpartition(":")[0] or _entries(name)[0].module))
        yield name, Path(file).read_text(encoding="utf-8") if file else ""


def _entries(name: str) -> list[metadata.EntryPoint]:
    return [entry for group in GROUPS.values() for entry in metadata.entry_points(group=group) if entry.name == name]


def _module(place: str) -> ModuleType:
    return _file_module(_UNPACKED.get(place, Path(place)).resolve()) if place.endswith(".py") else import_module(place)


@cache
def _file_module(file: Path) -> ModuleType:
    """Load a file as a module of its own; once, so that its classes stay the same."""
    name = f"maft_part_{hashlib.blake2b(str(file).encode(), digest_size=6).hexdigest()}"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file")
    spec = util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _told(error: Exception, place: str) -> str:
    """Return an error in one line, with the line of the user's own file where it has one."""
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == Path(place).name]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "") + "."
