"""`maft plan`: what a run will take, before anything runs."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft plan recipes/arithmetic_cpu/config.yaml --calibrate\n\n"
    "  maft plan recipes/math/config.yaml --gpu H100-80GB --num-gpus 8\n\n"
    "  maft plan my.yaml model=my/model --params 70e9 --layers 80 --hidden 8192 --heads 64 --kv-heads 8 --gpu H200"
)
@click.argument("config", type=click.Path(path_type=Path))
@stage.overrides
@click.option("--gpu", help="Estimate hours on GPUs of this kind, such as H100-80GB.")
@click.option("--num-gpus", type=click.IntRange(min=1), default=1, show_default=True, help="Number of GPUs.")
@click.option("--calibrate", is_flag=True, help="Measure lengths and speed with one batch of the run, and keep them.")
@click.option("--question-tokens", type=float, help="Mean length of a question, instead of reading the questions.")
@click.option("--reply-tokens", type=float, help="Mean length of a reply, instead of a measured one.")
@click.option(
    "--params",
    "given_parameters",
    type=float,
    help="Number of parameters of a model that is not on this machine, such as 70e9.",
)
@click.option("--layers", type=int, help="Its layers.")
@click.option("--hidden", type=int, help="Its hidden size.")
@click.option("--heads", type=int, help="Its attention heads.")
@click.option("--kv-heads", type=int, help="Its key-value heads.")
@click.option("--head-dim", type=int, help="Width of a head.")
@click.option("--intermediate", type=int, help="Width of its MLP.")
@click.option("--vocab", type=int, help="Size of its vocabulary.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def plan(
    config: Path,
    overrides: tuple[str, ...],
    *,
    gpu: str | None,
    num_gpus: int,
    calibrate: bool,
    question_tokens: float | None,
    reply_tokens: float | None,
    as_json: bool,
    **numbers: float | None,
) -> None:
    """Estimate what a run of CONFIG takes: calls, tokens, compute, memory, disk, time.

    Nothing is loaded or run without --calibrate. A calibration is kept, and used for runs with the same settings and
    other numbers of questions and iterations.
    """
    from maft import planning
    from maft.models import shapes
    from maft.planning import calibration
    from maft.planning.plan import shape_of_options
    from maft.runs.progress import Progress

    settings = stage.settings(config, overrides)
    stage.check_models(settings)
    measured = calibration.cached(settings) if reply_tokens is None and question_tokens is None else None
    if calibrate:
        measured = calibration.calibrate(settings, progress=Progress(quiet=False))
    estimate = planning.make(
        settings,
        gpu=gpu,
        num_gpus=num_gpus,
        shape=shape_of_options(numbers, shapes.of_model(settings.model)),
        question_tokens=question_tokens,
        reply_tokens=reply_tokens,
        calibration=measured,
    )
    click.echo(estimate.model_dump_json(indent=2) if as_json else planning.render(estimate))
