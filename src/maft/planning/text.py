"""A plan as text."""

from collections.abc import Iterator

from maft.planning import hardware
from maft.planning.costs import GIGA, METHODS, Memory
from maft.planning.plan import MISSING, Plan


def render(plan: Plan) -> str:
    """Return the plan as a few short sections."""
    return "\n".join(
        [*_work(plan), *_sizes(plan), *_time(plan), "Assumed", *(f"  {text}" for text in plan.assumptions)]
    )


def _work(plan: Plan) -> Iterator[str]:
    yield (
        f"Work: {plan.iterations} iterations, {plan.train_questions:,} questions, {plan.eval_questions:,} held out, "
        f"{plan.agents} agents, {plan.rounds} rounds"
    )
    yield _line("calls", f"{plan.calls:,}")
    yield _line("prompt tokens", _count(plan.prompt_tokens))
    yield _line("generated tokens", f"{_count(plan.generated_tokens)}   ({plan.mean_reply_tokens:.0f} a call)")
    yield _line("trainings", f"{plan.trainings:,}")
    yield _line("training tokens", _count(plan.training_tokens))
    if plan.usd is not None:
        yield _line("hosted models", f"{plan.usd:,.2f} USD")


def _sizes(plan: Plan) -> Iterator[str]:
    if plan.shape is None or plan.sampling_memory is None or plan.parameters is None or plan.kv_bytes_per_token is None:
        yield f"Nothing is known of model {plan.model}, so memory and compute are not estimated. {MISSING}"
        return
    yield f"Model: {plan.model}, {_count(plan.parameters)} parameters"
    memory, cache = plan.sampling_memory, plan.kv_bytes_per_token
    yield _line("sampling", _flop(plan.sampling_flops or 0.0))
    saved = 1 - plan.training_flops["lora"] / plan.training_flops["full"] if plan.training_flops["full"] else 0.0
    yield _line(
        "finetuning", f"{_flop(plan.training_flops[plan.method])}   (LoRA saves {saved:.0%} of full finetuning)"
    )
    yield _line("KV cache", f"{cache:,} bytes a token; {plan.sequences} sequences: {_gb(memory.cache)}")
    yield _line(
        "sampling memory", f"{_gb(memory.total)}   (weights {_gb(memory.weights)}, adapters {_gb(memory.adapters)})"
    )
    for method in METHODS:
        mark = " *" if method == plan.method else ""
        yield _line(f"{method} memory{mark}", _parts(plan.training_memory[method]))
    yield _line(
        "disk",
        f"{_gb(sum(plan.disk.values()))}   (debates {_gb(plan.disk['debates'])}, agents {_gb(plan.disk['agents'])})",
    )


def _parts(memory: Memory) -> str:
    trained = memory.gradients + memory.optimizer + memory.adapters
    return (
        f"{_gb(memory.total)}   (weights {_gb(memory.weights)}, gradients and optimizer {_gb(trained)}, "
        f"activations {_gb(memory.activations)})"
    )


def _time(plan: Plan) -> Iterator[str]:
    if plan.seconds:
        parts = ", ".join(f"{name.replace('_', ' ')} {_hours(spent / 3600)}" for name, spent in plan.seconds.items())
        yield f"Time on this machine, as calibrated: {_hours(sum(plan.seconds.values()) / 3600)}   ({parts})"
    hours = plan.hours
    if hours is None:
        if not plan.seconds:
            yield "Time: name a GPU (--gpu H100-80GB --num-gpus 8), or measure this machine (--calibrate)."
        return
    parts = f"sampling {_hours(hours.sampling)}, finetuning {_hours(hours.training)}"
    yield f"Time on {hours.num_gpus} x {hours.gpu}: {_hours(hours.total)}   ({parts})"
    engines = hours.num_gpus // hours.gpus_per_engine
    yield _line("sampling", f"{engines} x {hours.gpus_per_engine} GPUs, {hours.sequences} sequences each")
    yield _line("finetuning", f"{hours.trainings_at_once} at a time, {hours.gpus_per_training} GPUs each")
    yield _line("bottleneck", hours.bound_by)
    yield _line(
        "utilisation",
        f"assumed: {hardware.SAMPLING_UTILISATION:.0%} of matrix products and {hardware.BANDWIDTH_UTILISATION:.0%} of "
        f"bandwidth sampling, {hardware.TRAINING_UTILISATION:.0%} finetuning; no prefix cache",
    )


def _line(name: str, value: str) -> str:
    return f"  {name:<18} {value}"


def _count(number: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e7, "M")):
        if number >= limit:
            return f"{number / (1e6 if unit == 'M' else limit):,.1f}{unit}"
    return f"{number:,.0f}"


def _flop(number: float) -> str:
    return f"{number:.2e} FLOP"


def _gb(number: float) -> str:
    return f"{number / GIGA:,.1f} GB" if number >= 1e8 else f"{number / 1e6:,.1f} MB"


def _hours(number: float) -> str:
    if number < 1 / 30:
        return f"{number * 3600:.0f} s"
    return f"{number * 60:.0f} min" if number < 2 else f"{number:,.1f} h"
