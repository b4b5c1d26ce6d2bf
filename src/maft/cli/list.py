"""`maft list`: the names that settings and options take."""

import inspect
from collections.abc import Iterator

import click

from maft.cli import stage

KINDS = ("tasks", "methods", "models", "protocols", "engines")


@click.command(epilog="Examples:\n\n  maft list tasks\n\n  maft list methods --json")
@click.argument("kind", metavar="|".join(KINDS), type=click.Choice(KINDS))
@stage.prints_json
def list(kind: str, *, as_json: bool) -> None:
    """List the available names of a kind, one per line, including entry points of installed packages.

    They are values for task.name, debate.protocol, engine.sampler and engine.trainer, model, and `maft compare
    --methods`.
    """
    rows = dict(_ROWS[kind]())
    width = max(map(len, rows)) + 2
    stage.say(
        [f"{name:<{width}}{what}" for name, what in rows.items()],
        [{"name": name, "what": what} for name, what in rows.items()],
        as_json=as_json,
    )


def _tasks() -> Iterator[tuple[str, str]]:
    from maft.tasks import TASKS, Task

    yield from ((name, _first_line(kind)) for name, kind in TASKS.items())
    yield from _outside("task", Task)


def _methods() -> Iterator[tuple[str, str]]:
    from maft.comparison import ARMS

    yield from ((arm.name, arm.what) for arm in ARMS.values())


def _models() -> Iterator[tuple[str, str]]:
    from maft import models

    yield models.PACKAGED, "fetched once from the package index, 94 MB; Apache-2.0"
    yield from ((name, "in the cache of the Hugging Face hub on this machine") for name in models.cached())


def _protocols() -> Iterator[tuple[str, str]]:
    from maft.method import PROTOCOLS, Protocol

    yield from ((name, _first_line(kind)) for name, kind in PROTOCOLS.items())
    yield from _outside("protocol", Protocol)


def _engines() -> Iterator[tuple[str, str]]:
    from maft.config import SAMPLERS, TRAINERS
    from maft.samplers.base import Sampler
    from maft.trainers.base import Trainer

    yield from ((f"engine.sampler={name}", what) for name, what in SAMPLERS.items())
    yield from ((f"engine.sampler={name}", what) for name, what in _outside("sampler", Sampler))
    yield from ((f"engine.trainer={name}", what) for name, what in TRAINERS.items())
    yield from ((f"engine.trainer={name}", what) for name, what in _outside("trainer", Trainer))


def _outside(kind: str, base: type) -> Iterator[tuple[str, str]]:
    """Yield the entry points of installed packages; one that cannot be loaded, with the reason."""
    from maft import extensions
    from maft.errors import ConfigError

    for name in extensions.entry_points(kind):
        try:
            yield name, _first_line(extensions.find(kind, name, base))
        except ConfigError as error:
            yield name, str(error)


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0].rstrip(".")


_ROWS = {"tasks": _tasks, "methods": _methods, "models": _models, "protocols": _protocols, "engines": _engines}
