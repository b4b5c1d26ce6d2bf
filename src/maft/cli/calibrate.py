"""`maft calibrate`: settings of a task that are neither too easy nor too hard for a model."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft calibrate arithmetic --questions 30\n\n"
    "  maft calibrate recipes/arithmetic_cpu/config.yaml --knob high=5,9,25 --knob operators=+-,*\n\n"
    "  maft calibrate reasoning_gym:chain_sum --knob max_terms=2,3 --knob max_digits=1,2"
)
@click.argument("task", metavar="TASK|CONFIG")
@stage.overrides
@click.option(
    "--knob",
    "knobs",
    multiple=True,
    metavar="NAME=A,B,...",
    help="A setting of the task and the values to try, such as 2,5 or 2..5; repeatable.",
)
@click.option(
    "--questions",
    default=40,
    show_default=True,
    type=click.IntRange(min=2),
    help="Number of questions for each combination.",
)
@click.option(
    "--answers", default=12, show_default=True, type=click.IntRange(min=2), help="Number of answers to each question."
)
@click.option("--output", "--out", "out", type=stage.PATH, help="Where to write the config of the best setting.")
@stage.prints
def calibrate(
    task: str,
    overrides: tuple[str, ...],
    *,
    knobs: tuple[str, ...],
    questions: int,
    answers: int,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure how hard a task is for the model under several settings of the task, recommend one, and write its config.

    TASK is the name of a task (replies are then up to 128 tokens long); CONFIG is a YAML file. Knobs are settings under
    `task`, or options of a reasoning-gym data set or of your own task; all combinations are tried. Replies are kept:
    the same command resumes. To measure speed instead of accuracy, use `maft plan --calibrate`.
    """
    import yaml

    from maft import engines, files
    from maft.errors import DataError
    from maft.planning import difficulty
    from maft.runs.progress import Progress

    stage.log_to_stderr(quiet=quiet)
    short = [f"sampling.train.{role}.max_new_tokens=128" for role in ("generator", "critic")]
    settings = stage.task_or_config(task, overrides, for_task_alone=short)
    stage.check_models(settings)
    tried = difficulty.read_knobs(knobs) or difficulty.KNOBS.get(settings.task.name, {})
    home = settings.runs_dir / f"calibrate_{settings.task.name.replace(':', '_').replace('/', '_')}"
    total = len(difficulty.cells(settings, tried)) * questions * answers
    with Progress(quiet=quiet).stage("calibrate", total, "call") as bar, engines.opened(settings) as sampler:
        on_reply = lambda _: bar.advance()  # noqa: E731
        measured = list(difficulty.measure(settings, tried, questions, answers, home, sampler, on_reply))
    if all(one.error is not None for one in measured):
        raise DataError(f"no setting could be measured: {measured[0].error}")
    lines = [difficulty.table(measured), difficulty.recommendation(measured)]
    if (chosen := difficulty.best(measured)) is not None:
        path = out or home / "config.yaml"
        files.write_text(path, yaml.safe_dump(difficulty.ready(settings, chosen), sort_keys=False))
        lines.append(f"Config: {path}")
    rows = [one.model_dump(mode="json") | {"best": one is chosen} for one in measured]
    stage.say(lines, [row | ({"config": str(path)} if row["best"] else {}) for row in rows], as_json=as_json)
