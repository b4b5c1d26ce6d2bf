"""What the verbs of single stages share: arguments, and the run folder they work on."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from maft.config import RunConfig
    from maft.runs.folder import RunFolder
    from maft.runs.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
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


def task_or_config(name: str, overrides: Sequence[str], for_task_alone: Sequence[str] = ()) -> "RunConfig":
    """Load a config, or make one for a task of that name, with settings of its own below the overrides."""
    from maft import config

    path = Path(name)
    if path.is_file() or (path / "config.json").is_file() or path.suffix in (".yaml", ".yml", ".json"):
        settings = config.load(path, overrides)
        check_models(settings)
        return settings
    return config.parse({"task": {"name": name}}, [*for_task_alone, *overrides], source=f"task {name}")


def _keys(ctx: click.Context, argument: click.Parameter, incomplete: str) -> list["CompletionItem"]:
    """Complete the keys of settings in a shell."""
    from click.shell_completion import CompletionItem

    from maft.config import known_keys

    return [CompletionItem(f"{key}=") for key in known_keys() if key.startswith(incomplete)]


overrides = click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...", shell_complete=_keys)
prints_json = click.option("--json", "as_json", is_flag=True, help="Print results as JSON.")


def prints(command: F) -> F:
    """Give a verb the options of all that work and print results."""
    quiet = click.option("--quiet", is_flag=True, help="Print results only: no progress, no messages.")
    return prints_json(quiet(command))


class Asked(NamedTuple):
    """The arguments that all stages have."""

    config: Path
    overrides: tuple[str, ...]
    iteration: int | None
    dry_run: bool
    as_json: bool
    quiet: bool

    @contextmanager
    def opened(self) -> Iterator[tuple["RunFolder", "Progress"]]:
        """Open the run folder for work on it; with --dry-run, print what would be done and end the verb."""
        from maft import library

        chosen = settings(self.config, self.overrides, quiet=self.quiet)
        if self.dry_run:
            describe(chosen, as_json=self.as_json)
            raise click.exceptions.Exit(0)
        with library.opened(chosen, quiet=self.quiet) as both:
            yield both

    def say(self, lines: str | Sequence[str], value: Any) -> None:
        """Print results, as lines or as JSON."""
        say(lines, value, as_json=self.as_json)


def arguments(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the arguments of all stages; it is called with `Asked` and its own options."""

    @wraps(function)
    def command(**options: Any) -> None:
        asked = Asked(**{name: options.pop(name) for name in Asked._fields})
        function(asked, **options)

    for decorate in (
        prints,
        click.option(
            "--dry-run",
            is_flag=True,
            help="Check model and files, print the settings, the plan and the next step, and stop.",
        ),
        click.option(
            "--iteration",
            type=click.IntRange(min=0),
            help="Iteration to work on (default: the first unfinished one; for eval, the newest finetuned one).",
        ),
        overrides,
        click.argument("config", type=PATH),
    ):
        command = decorate(command)
    return command


def log_to_stderr(*, quiet: bool) -> None:
    """Print what maft says, and only warnings if `quiet`."""
    logging.getLogger("maft").setLevel(logging.WARNING if quiet else logging.INFO)


def settings(config: Path, overrides: Sequence[str], *, quiet: bool = False) -> "RunConfig":
    """Load a config, with messages on stderr unless `quiet`."""
    from maft.config import load

    log_to_stderr(quiet=quiet)
    return load(config, overrides)


def run(folder: Path, *, quiet: bool) -> "RunFolder":
    """Open a run for reading, with messages on stderr unless `quiet`."""
    from maft.runs.folder import RunFolder

    log_to_stderr(quiet=quiet)
    return RunFolder.existing(folder)


def say(lines: str | Sequence[str], value: Any, *, as_json: bool) -> None:
    """Print results, as lines or as JSON."""
    text = lines if isinstance(lines, str) else "\n".join(lines)
    click.echo(json.dumps(value, indent=2, default=str) if as_json else text)


def describe(settings: "RunConfig", *, as_json: bool) -> None:
    """Check a config, and print its settings, the plan and what the run folder has of it.

    Printed are the settings that are not the defaults, as YAML, or all of them as JSON; either can be run.

    Raises:
        UserError: the model, a file or the questions cannot be used.
    """
    import yaml

    from maft import config
    from maft.planning.plan import at_most
    from maft.runs import status
    from maft.runs.folder import RunFolder

    changed = yaml.safe_dump(settings.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    click.echo((config.resolved(settings) if as_json else changed).rstrip())
    click.echo(at_most(checked(settings)), err=True)
    step = status.next_step(RunFolder(settings.runs_dir / settings.name, settings))
    click.echo("This run is finished." if step is None else f"Next: {step}.", err=True)


def checked(settings: "RunConfig") -> "RunConfig":
    """Make sure that models and questions can be used, and return the settings with the numbers of questions.

    Raises:
        UserError: one cannot.
    """
    from maft import files, tasks
    from maft.records import Problem
    from maft.runs.folder import RunFolder, refuse_other

    check_models(settings)
    folder = RunFolder(settings.runs_dir / settings.name, settings)
    if folder.problems("eval").exists():
        refuse_other(settings, RunFolder.existing(folder.path).config, folder.path)
        sides = [files.read_records(folder.problems(side), Problem) for side in ("train", "eval")]
    else:
        split = tasks.prepare(tasks.make(settings.task))
        sides = [list(split.train), list(split.eval)]
    numbers = {"num_train": len(sides[0]) // settings.task.train_sets, "num_eval": len(sides[1])}
    return settings.model_copy(update={"task": settings.task.model_copy(update=numbers)})


def check_models(settings: "RunConfig") -> None:
    """Make sure that models and adapters which are on this machine can be used; nothing is loaded.

    Raises:
        UserError: one cannot.
    """
    from maft import engines, models
    from maft.method import bases
    from maft.runs import societies

    if settings.engine.sampler not in ("scripted", "openai"):
        for base in bases(settings):
            models.check(base)
    societies.check(settings)
    engines.check_templates(settings)


def run_to_serve(folder: Path, overrides: Sequence[str]) -> "RunFolder":
    """Open a run for its agents to be asked, with another engine or other sampling than in the run.

    Raises:
        UserError: there is no run, or an override is for something else.
    """
    from maft.config import load
    from maft.errors import UserError
    from maft.runs.folder import RunFolder

    opened = RunFolder.existing(folder)
    for override in overrides:
        if not override.startswith(("engine.", "vllm.", "openai.", "sampling.")):
            raise UserError(f"{override}: only engine, vllm, openai and sampling can be changed here.")
    return RunFolder(folder, load(opened.config_file, overrides)) if overrides else opened


def iteration(folder: "RunFolder", asked: int | None) -> int:
    """Return the iteration to work on, and make sure that the society it starts from is there."""
    from maft.errors import UserError
    from maft.runs import societies, status

    if folder.config.train.online_questions:
        raise UserError(
            "single stages do not support train.online_questions (turns within an iteration). Use `maft run`."
        )
    number = status.current(folder) if asked is None else asked
    if not 1 <= number <= folder.config.num_iterations:
        raise UserError(f"--iteration must be 1 to num_iterations = {folder.config.num_iterations}, got {number}.")
    if number > 1 and not societies.finished(folder, number - 1):
        raise UserError(
            f"iteration {number} starts from the agents of iteration {number - 1}, which are not finetuned yet. "
            "Run `maft finetune` first; --dry-run shows what is missing."
        )
    return number
