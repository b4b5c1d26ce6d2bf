"""Puts a plan together from the config, the model's shape, and what is known of lengths and speed."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from maft import tasks
from maft.config import HOSTED, RunConfig
from maft.config.prompts import Prompts
from maft.config.training import EXAMPLES
from maft.errors import UserError
from maft.hosted.service import BYTES_PER_TOKEN, MILLION
from maft.method import bases, protocol_of
from maft.models import shapes
from maft.models.shapes import Shape
from maft.planning import costs, hardware, hours
from maft.planning.calibration import Calibration
from maft.planning.costs import METHODS, Memory
from maft.planning.forecast import (
    LEARNED_SHARE,
    Forecast,
    assumed_behaviour,
    assumed_texts,
    forecast,
    maximal_behaviour,
)
from maft.planning.hours import Hours
from maft.records import Record
from maft.tasks import prepare

MISSING = (
    "Give a folder with its config.json, or the numbers: --params, --layers, --hidden, --heads, --kv-heads, "
    "--head-dim, --intermediate, --vocab."
)


class Plan(Record):
    """All estimates for a run."""

    model: str
    iterations: int
    agents: int
    rounds: int
    train_questions: int
    eval_questions: int
    calls: int
    prompt_tokens: float
    generated_tokens: float
    training_tokens: float
    trainings: int
    mean_reply_tokens: float
    method: str
    """`lora`, `qlora` or `full`."""
    run: Forecast
    shape: Shape | None
    parameters: int | None = None
    sampling_flops: float | None = None
    training_flops: dict[str, float] = Field(default_factory=dict)
    """By method."""
    kv_bytes_per_token: int | None = None
    sequences: int = 0
    sampling_memory: Memory | None = None
    training_memory: dict[str, Memory] = Field(default_factory=dict)
    disk: dict[str, float] = Field(default_factory=dict)
    hours: Hours | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    """Seconds of each part of the run, on the machine that calibrated."""
    usd: float | None = None
    measured: int = 0
    """Questions that the lengths were measured with; 0 where they are assumed."""
    assumptions: tuple[str, ...] = ()


def make(
    config: RunConfig,
    *,
    gpu: str | None = None,
    num_gpus: int = 1,
    shape: Shape | None = None,
    question_tokens: float | None = None,
    reply_tokens: float | None = None,
    calibration: Calibration | None = None,
) -> Plan:
    """Make the plan of a run.

    Where nothing was measured, `question_tokens` and `reply_tokens` are mean lengths: None reads the questions, and
    takes replies to be half as long as allowed. `shape` is looked up if None.

    Raises:
        UserError: the numbers of questions are not known, or the GPU is not in the table.
    """
    num_train, num_eval = _questions(config, read=question_tokens is None)
    if calibration is not None:
        texts, societies = calibration.texts, calibration.societies
    else:
        texts, societies = assumed_texts(config, question_tokens), (assumed_behaviour(config, reply_tokens),)
    run, shape = forecast(config, num_train, num_eval, texts, societies), shape or shapes.of_model(config.model)
    chosen = hardware.gpu(gpu) if gpu else None
    if shape is None and chosen:
        raise UserError(f"nothing is known of model {config.model}. {MISSING}")
    return Plan(
        model=config.model,
        iterations=config.num_iterations,
        agents=config.debate.num_agents,
        rounds=protocol_of(config.debate).rounds(config.debate),
        train_questions=num_train,
        eval_questions=num_eval,
        calls=run.calls,
        prompt_tokens=run.prompt_tokens,
        generated_tokens=run.generated_tokens,
        training_tokens=run.training_tokens,
        trainings=run.jobs,
        mean_reply_tokens=run.generated_tokens / max(1, run.calls),
        method=config.train.method,
        run=run,
        shape=shape,
        seconds=_seconds(config, run, calibration) if calibration else {},
        usd=_usd(config, run),
        measured=calibration.questions if calibration else 0,
        assumptions=(
            *_assumptions(config, calibration, reply_tokens, question_tokens),
            *_of_judge(config, num_train, num_eval),
        ),
        **(_sizes(config, shape, run, chosen, num_gpus) if shape else {}),
    )


def at_most(config: RunConfig) -> str:
    """Return the largest work of a run as text: calls, tokens, finetunings, and money for hosted models."""
    num_train, num_eval = config.task.num_train, config.task.num_eval
    if num_train is None or num_eval is None:
        return "Plan: set task.num_train and task.num_eval for an estimate of calls and tokens."
    hosted = _is_hosted(config)
    texts = assumed_texts(config, None if hosted else 0.0, maximal=True)
    run = forecast(config, num_train, num_eval, texts, [maximal_behaviour(config)])
    text = (
        f"Plan: {config.num_iterations} iteration{'s' * (config.num_iterations > 1)} of {num_train} debates, "
        f"{config.num_iterations + 1} evaluations of "
        f"{num_eval} debates; {run.calls:,} calls, at most {run.generated_tokens:,.0f} generated tokens; "
        f"{run.jobs} finetunings."
    )
    text = " ".join([text, *_of_judge(config, num_train, num_eval)])
    if not hosted:
        return text
    text += (
        f"\nAt most {run.prompt_tokens:,.0f} prompt tokens, {run.generated_tokens:,.0f} generated tokens and "
        f"{run.training_tokens:,.0f} tokens of finetuning, if all replies are as long as allowed and learned; of "
        f"the questions, {BYTES_PER_TOKEN} bytes are taken for a token"
    )
    usd, limit = _usd(config, run), config.openai.spending_limit
    if usd is None:
        return f"{text}. Set openai.prompt_price, completion_price and training_price for an estimate in US dollars."
    bound = "no limit is set" if limit is None else f"the limit is {limit} USD"
    return f"{text}: at most {usd:,.2f} USD; {bound} (openai.spending_limit)."


def shape_of_options(numbers: Mapping[str, float | None], base: Shape | None) -> Shape | None:
    """Return a model's shape with the numbers of the command line on top.

    Raises:
        UserError: numbers are missing, and nothing is known of the model without them.
    """
    given = {name: int(value) for name, value in numbers.items() if value is not None}
    if not given:
        return base
    if base is not None:
        reset = {} if "given_parameters" in given else {"given_parameters": 0}
        return base.model_copy(update={**reset, **given})
    lacking = [name for name in ("layers", "hidden", "heads") if name not in given]
    if lacking:
        raise UserError(
            f"the shape of a model needs at least --layers, --hidden and --heads; missing: {', '.join(lacking)}."
        )
    hidden, heads = given["hidden"], given["heads"]
    usual = {"kv_heads": heads, "head_dim": hidden // heads, "intermediate": 4 * hidden, "vocab": 128_000}
    return Shape.model_validate({**usual, **given})


def _sizes(config: RunConfig, shape: Shape, run: Forecast, gpu: hardware.Gpu | None, num_gpus: int) -> dict[str, Any]:
    """Return the fields of a plan that follow from the shape of the model."""
    method = config.train.method
    if num_gpus > 1:  # each trains agents of its own
        config = config.model_copy(update={"train": config.train.model_copy(update={"together": False})})
    usable = gpu.memory_gb * costs.GIGA * hardware.USABLE_MEMORY if gpu else 0.0
    time = hours.on_gpus(config, shape, run, gpu, num_gpus, method) if gpu else None
    widest = min(config.engine.max_sequences or costs.SEQUENCES, config.engine.batch_size * costs.most_at_once(config))
    sequences = time.sequences if time else widest
    if gpu and time is None:
        one = costs.sampling_memory(config, shape, run.longest, 1).total
        train = costs.training_memory(config, shape, run, method, hardware.NO_MEMORY).total
        raise UserError(
            f"{config.model} does not fit on {num_gpus} x {gpu.name}: sampling needs {one / costs.GIGA:,.1f} GB, "
            f"{method} finetuning {train / costs.GIGA:,.1f} GB, and {num_gpus} have "
            f"{num_gpus * gpu.memory_gb * hardware.USABLE_MEMORY:,.1f} GB to use. Use more GPUs (1, 2, 4, "
            "...), larger ones, a smaller train.batch_size, or another train.method."
        )
    return {
        "parameters": shape.parameters,
        "sampling_flops": costs.sampling_flops(shape, run),
        "training_flops": {each: costs.training_flops(config, shape, run, each) for each in METHODS},
        "kv_bytes_per_token": shape.kv_bytes_per_token(config.engine.dtype),
        "sequences": sequences,
        "sampling_memory": costs.sampling_memory(config, shape, run.mean, sequences),
        "training_memory": {each: costs.training_memory(config, shape, run, each, usable) for each in METHODS},
        "disk": costs.disk(config, shape, run, method),
        "hours": time,
    }


def _questions(config: RunConfig, *, read: bool) -> tuple[int, int]:
    """Return how many questions a run trains on and holds out."""
    task = config.task
    if read:
        split = prepare(tasks.make(task))
        return len(split.train) // task.train_sets, len(split.eval)
    if task.num_train is None or task.num_eval is None:
        raise UserError("with --question-tokens the questions are not read: set task.num_train and task.num_eval.")
    return task.num_train, task.num_eval


def _seconds(config: RunConfig, run: Forecast, calibration: Calibration) -> dict[str, float]:
    """Return the seconds of a run on the machine that calibrated."""
    speed, size = calibration.speed, config.engine.batch_size
    questions = config.train.online_questions
    trained = max((stage.debates for stage in run.stages if stage.stage == "train"), default=0)
    turns = math.ceil(trained / questions) if questions else 1
    changes = sum(
        max(math.ceil(stage.debates / size), turns if stage.stage == "train" else 1)
        for stage in run.stages
        if stage.society
    )
    tokens = run.prompt_tokens + run.generated_tokens
    return {
        "loading": speed.start + config.num_iterations * (turns * speed.restart + speed.train_start),
        "sampling": tokens / speed.sampling if speed.sampling else 0.0,
        "changing_agents": changes * speed.changing,
        "training": sum(
            training.tokens / rate for training in run.trainings if (rate := speed.training.get(training.role, 0.0))
        ),
    }


def _is_hosted(config: RunConfig) -> bool:
    return config.engine.sampler == "openai" or config.engine.trainer in HOSTED


def _usd(config: RunConfig, run: Forecast) -> float | None:
    prices = (config.openai.prompt_price, config.openai.completion_price, config.openai.training_price)
    if not _is_hosted(config) or None in prices:
        return None
    tokens = (run.prompt_tokens, run.generated_tokens, run.training_tokens)
    return sum(count * (price or 0.0) for count, price in zip(tokens, prices, strict=True)) / MILLION


def _of_judge(config: RunConfig, num_train: int, num_eval: int) -> Iterator[str]:
    """Say how many calls of a judge come on top of those of the debates."""
    if config.task.equality != "judge":
        return
    settings, protocol = config.debate, protocol_of(config.debate)
    more = (settings.num_samples, settings.num_eval_samples or settings.num_samples)
    train, held_out = (
        sum(
            kind.times
            for kind in protocol.kinds(settings.model_copy(update={"num_samples": n}), Prompts())
            if kind.kind == "answer"
        )
        for n in more
    )
    calls = config.num_iterations * num_train * train * (train - 1)
    calls += (config.num_iterations + 1) * num_eval * (held_out + 1) * held_out
    yield f"The judge's calls come on top and are in no other number: at most {calls:,}, if no two answers are alike."


def _assumptions(
    config: RunConfig, calibration: Calibration | None, reply_tokens: float | None, question_tokens: float | None
) -> Iterator[str]:
    varying = [kind for kind in protocol_of(config.debate).kinds(config.debate, Prompts()) if kind.share < 1]
    if varying and calibration is None:
        name, share = config.debate.protocol, varying[0].share
        yield f"With debate.protocol = {name}, {share:.0%} of the critics' calls are taken to be made."
    if config.train.method == "full":
        yield "Fully finetuned agents are models of their own, loaded in turn; the time of that is not counted."
    if bases(config) != (config.model,):
        yield (
            f"The weights of all base models ({len(bases(config))}) are counted for sampling; otherwise all agents are "
            f"taken to be as large as {config.model}."
        )
    if calibration is not None:
        yield (
            f"Lengths and shares are those of {calibration.questions} questions of this run, before and after one "
            "finetuning; from the second finetuning on, replies are taken to be as long as the examples of it."
        )
        if config.num_iterations > 2:
            yield "Societies do not change any more after the second finetuning."
        if config.cluster.ray is not None:
            yield "The time is that of this machine alone; the workers of a cluster share it."
        return
    replies = f"{reply_tokens:g} tokens" if reply_tokens else "half as long as allowed"
    asked = "given" if question_tokens else "estimated from their characters"
    yield f"Replies are taken to be {replies}, the same in all iterations; questions are {asked}."
    yield f"Of the responses, {LEARNED_SHARE:.0%} are taken to agree with the label and to be learned."
    if config.train.online_questions:
        yield "Replies are taken to change from iteration to iteration, not from turn to turn (train.online_questions)."
    shapes = {EXAMPLES.get(name) for name in config.train.objectives(config.num_iterations).values()}
    if "judged" in shapes:
        yield "kto: all responses are taken to be learned; the time of reference and mismatched rows is not counted."
    if "advantages" in shapes:
        yield "grpo: all first answers are taken to be learned; the time of the reference is not counted."
    if "pairs" in shapes:
        yield f"dpo: {1 - LEARNED_SHARE:.0%} of the questions give a pair; the time of the reference is not counted."
    yield "`--calibrate` measures all of this with one batch."
