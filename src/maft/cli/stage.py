"""What the verbs of single stages share: arguments, and the run folder they work on."""

import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from maft.config import RunConfig
    from maft.runs.folder import RunFolder
    from maft.runs.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])

_OVERRIDE = re.compile(r"[a-z_.]+=")


class ListsOfAgents(click.Command):
    """A command whose repeatable options take several values at once: `--generators A B C --critics D E F`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the option's name before each of its values, as click wants it."""
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        return super().parse_args(ctx, spread(args, lists))


def spread(args: Sequence[str], lists: set[str]) -> list[str]:
    """Repeat the name of a list option before each of its values; another option or an override ends a list.

    >>> spread(["x.yaml", "--critics", "D", "E", "seed=1"], {"--critics"})
    ['x.yaml', '--critics', 'D', '--critics', 'E', 'seed=1']
    """
    out: list[str] = []
    option = ""
    values = 0
    for arg in [*args, "--"]:
        if arg.startswith("-") or _OVERRIDE.match(arg):
            if option and not values:
                out.append(option)  # click says that the value is missing
            option, values = (arg, 0) if arg in lists else ("", 0)
            out += [] if option else [arg]
        else:
            out += [option, arg] if option else [arg]
            values += 1
    return out[:-1]


def arguments(command: F) -> F:
    """Give a verb the arguments that all stages have."""
    for decorate in (
        click.option("--quiet", is_flag=True, help="Show no progress."),
        click.option("--dry-run", is_flag=True, help="Print the resolved config and what is owed, and stop."),
        click.option(
            "--iteration", type=click.IntRange(min=0), help="Which iteration; the one the run has come to if not given."
        ),
        click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]..."),
        click.argument("config", type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


def log_to_stderr(*, quiet: bool) -> None:
    """Print what maft says, and only warnings if `quiet`."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("maft").setLevel(logging.WARNING if quiet else logging.INFO)


@contextmanager
def opened(settings: "RunConfig", *, quiet: bool) -> Iterator[tuple["RunFolder", "Progress"]]:
    """Open the folder of a run for work on it, with progress and messages on stderr."""
    from maft import library

    log_to_stderr(quiet=quiet)
    with library.opened(settings, quiet=quiet) as both:
        yield both


def describe(settings: "RunConfig") -> None:
    """Print the resolved config, the plan and what the run folder has of it."""
    from maft import config
    from maft.planning.bounds import plan
    from maft.runs import status
    from maft.runs.folder import RunFolder

    click.echo(config.resolved(settings), nl=False)
    click.echo(plan(settings), err=True)
    click.echo(status.status(RunFolder(settings.runs_dir / settings.name, settings)), err=True)


def iteration(folder: "RunFolder", asked: int | None) -> int:
    """Return the iteration to work on, and make sure that the society it starts from is there."""
    from maft.errors import UserError
    from maft.runs import societies, status

    number = status.current(folder) if asked is None else asked
    if not 1 <= number <= folder.config.num_iterations:
        raise UserError(f"--iteration must be 1 to num_iterations = {folder.config.num_iterations}, got {number}.")
    if number > 1 and not societies.finished(folder, number - 1):
        raise UserError(
            f"iteration {number} starts from the agents of iteration {number - 1}, and these are not finetuned yet. "
            "Do `maft finetune` first; --dry-run shows what is owed."
        )
    return number
