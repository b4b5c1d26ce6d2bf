"""`maft init`: a config to begin with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maft.cli import stage

if TYPE_CHECKING:
    from maft.tasks.looking import Looked

NUM_TRAIN, NUM_EVAL = 300, 200
"""Maximum numbers of questions to begin with, for a small model on a laptop."""


@click.command(
    epilog="Examples:\n\n  maft init questions.csv\n\n  maft init gsm8k --output gsm8k.yaml model=my/model\n\n"
    "  maft init runs/mine --output again.yaml seed=1"
)
@click.argument("source", metavar="FILE|TASK|RUN")
@stage.overrides
@click.option(
    "--output",
    "--out",
    "out",
    metavar="FILE",
    type=stage.PATH,
    help="The config to write (default: named after the file, task or run, in the current folder).",
)
@stage.prints
def init(source: str, overrides: tuple[str, ...], *, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Write a config with a comment above each setting, for a file of questions, a task, or as a copy of a run.

    From a file of questions (.jsonl, .json, .csv, .tsv, .parquet) maft infers the columns, the kind of answers and a
    task that fits them. No model is loaded, and an existing config is never replaced.
    """
    from maft import config, files
    from maft.config.written import written
    from maft.errors import UserError
    from maft.tasks import looking

    stage.log_to_stderr(quiet=quiet)
    path = Path(source)
    is_run = (path / "config.json").is_file()
    out = out or Path(f"{path.resolve().name}_copy.yaml" if is_run else f"{_stem(path, source)}.yaml")
    if out.exists():
        raise UserError(f"{out} exists. Give another name with --output, or remove it.")
    looked = None
    unset: dict[str, Any] = {}
    if is_run:
        tree = _of_run(path, out)
    elif path.exists():
        looked = looking.look(path)
        tree, unset = _of_file(path, looked, out)
    elif path.suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz"):
        raise UserError(f"{path}: No such file.")
    else:
        tree, unset = _of_task(source, out)
    chosen = config.parse(config.changed(tree, overrides), source=str(out))
    head = _content(path, looked) if looked else [f"For {source}."]
    head += [f"maft validate {out}; maft plan {out}; maft run {out}. `maft schema` lists every setting."]
    comment = "".join(f"# {' '.join(line.split())}\n" for line in head)  # a column's name may hold a line break
    files.write_text(out, comment + "\n" + written(config.changed(tree, overrides), unset))
    lines = [*(_content(path, looked) if looked else []), *(looked.notes if looked else ()), f"Config: {out}"]
    summary = {"config": out, "task": chosen.task.model_dump(mode="json", exclude_defaults=True)}
    stage.say([*lines, f"Next: maft validate {out}"], (looked._asdict() if looked else {}) | summary, as_json=as_json)


def _stem(file: Path, task: str) -> str:
    return file.name.partition(".")[0] if file.exists() else task.replace(":", "_")


def _content(file: Path, looked: "Looked") -> list[str]:
    columns = ", ".join(looked.columns)
    kind = f" ({looked.kind})" if looked.known else ""
    return [
        f"{file}: {looked.rows:,} questions, {looked.known:,} with a known answer{kind}.",
        f"Columns: {columns[:200]}",
    ]


def _of_file(file: Path, looked: "Looked", out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from maft.config import TaskConfig
    from maft.errors import DataError

    if looked.rows < 2:
        raise DataError(f"{file} has one question; a run needs one to train on and one to hold out, at least.")
    place = file.resolve()
    beside = place.relative_to(out.resolve().parent) if place.is_relative_to(out.resolve().parent) else place
    num_train = min(NUM_TRAIN, looked.rows // 2)
    sizes = {"num_train": num_train, "num_eval": min(NUM_EVAL, looked.rows - num_train)}
    if 0 < looked.known < looked.rows:  # those without an answer are for training
        num_eval = max(1, looked.known // 2)
        sizes = {"num_train": min(NUM_TRAIN, looked.rows - num_eval), "num_eval": min(NUM_EVAL, num_eval)}
    defaults = {name: field.default for name, field in TaskConfig.model_fields.items()}
    fields = {name: value for name, value in looked.task.items() if value != defaults[name]}
    task = {"name": looked.task["name"], "train_file": str(beside), **fields, **sizes}
    return _tree(task, out), {"task": {"eval_file": None}}


def _of_task(name: str, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from maft import config

    own = config.parse({"task": {"name": name}}, source=f"task {name}").task
    values = own.model_dump(mode="json")
    unset = {key: values[key] for key in config.TASK_SETTINGS.get(name.partition(":")[0], ())}
    return _tree({"name": name, "num_train": 100, "num_eval": 100}, out), {"task": unset}


def _of_run(run: Path, out: Path) -> dict[str, Any]:
    from maft.runs.folder import RunFolder

    settings = RunFolder.existing(run).config.model_dump(mode="json", exclude_defaults=True)
    settings.pop("runs_dir", None)
    return settings | {"name": out.stem}


def _tree(task: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Return a tree with the settings that are changed first."""
    from maft.config import RunConfig

    default = RunConfig.model_validate({"task": {"name": "arithmetic"}}).model_dump(mode="json")

    def some(section: str, names: Sequence[str]) -> dict[str, Any]:
        return {name: default[section][name] for name in names}

    sampling = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 512}
    return {
        "name": out.stem,
        "model": default["model"],
        "num_iterations": 1,
        "task": dict(task),
        "debate": some("debate", ["protocol", "num_agents", "num_rounds"]) | {"summarizer": "none"},
        "sampling": {"train": {"generator": sampling, "critic": sampling}},
        "vote": some("vote", ["min_agreement"]),
        "train": some("train", ["num_epochs", "learning_rate", "batch_size", "max_length"]),
    }
