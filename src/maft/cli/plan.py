"""`maft plan`: what a run will take, before anything runs."""

from pathlib import Path

import click

from maft.cli import stage


@click.command(
    epilog="Examples:\n\n  maft plan recipes/arithmetic_cpu/config.yaml --calibrate\n\n"
    "  maft plan recipes/math/config.yaml --gpu H100-80GB --num-gpus 8\n\n"
    "  maft plan my.yaml model=my/model --params 70e9 --layers 80 --hidden 8192 --heads 64 --kv-heads 8 --gpu H200"
)
@click.argument("config", type=stage.PATH)
@stage.overrides
@click.option("--gpu", help="Estimate hours on GPUs of this kind, such as H100-80GB.")
@click.option("--num-gpus", type=click.IntRange(min=1), default=1, show_default=True, help="Number of GPUs.")
@click.option("--calibrate", is_flag=True, help="Measure lengths and speed with one batch of the run.")
@click.option("--question-tokens", type=float, help="Mean tokens of a question, instead of reading the questions.")
@click.option("--reply-tokens", type=float, help="Mean tokens of a reply, instead of a measured value.")
@click.option("--params", "given_parameters", type=float, help="Number of parameters, such as 70e9.")
@click.option("--layers", type=int, help="Number of layers.")
@click.option("--hidden", type=int, help="Hidden size.")
@click.option("--heads", type=int, help="Number of attention heads.")
@click.option("--kv-heads", type=int, help="Number of key-value heads.")
@click.option("--head-dim", type=int, help="Width of a head.")
@click.option("--intermediate", type=int, help="Width of the MLP.")
@click.option("--vocab", type=int, help="Vocabulary size.")
@stage.prints_json
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
    """Estimate what a run of CONFIG takes: calls, tokens, compute, memory, disk and time.

    Without --calibrate no model is loaded. A calibration is kept and reused for the same settings with any number of
    questions and iterations. The options from --params to --vocab describe a model that is not on this machine.
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
