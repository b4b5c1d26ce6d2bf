"""Hold `maft plan --gpu H200` against what was measured on one.

    python -m bench.gpu_plan [FOLDER]

Reads shapes.json, steps.json and training.json of `recipes/gpu/check.sh` from FOLDER (docs/data/gpu_2026_11 by
default), and prints for each measurement what the planner's formulas give, and the error: planned / measured - 100 %.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu import QWEN_7B
from bench.training import SHAPES
from maft import config
from maft.models import shapes
from maft.models.shapes import Shape
from maft.planning import costs, hardware, hours
from maft.planning.forecast import Forecast, Stage, Training

ROOT = Path(__file__).parent.parent
PROMPT, STEPS = 192, 128
"""Tokens of a prompt, and of the longest reply, in the measurements of bench/gpu.py."""
SEEN = PROMPT + 32
"""Tokens in the cache, in the mean over the steps that were timed."""


class Row(NamedTuple):
    """A planned and a measured figure."""

    name: str
    unit: str
    planned: float
    measured: float

    @property
    def error(self) -> float:
        """As a share of what was measured."""
        return self.planned / self.measured - 1


def shape_of(name: str) -> Shape:
    """Return the shape that a measurement names."""
    for size, sizes in ({"7B": QWEN_7B} | SHAPES).items():
        if name.startswith(size):
            return shapes.of_config(sizes | {"model_type": "qwen2"})
    found = shapes.known("smollm2-135m")
    assert found is not None
    return found


def sampling(name: str, measured: dict[str, Any]) -> Iterator[Row]:
    """Yield a decoding step, the reading of all prompts, and the memory."""
    settings = config.load(ROOT / "recipes/gpu/config.yaml")
    shape, slots, gpu = shape_of(name), measured["slots"], hardware.gpu("H200")
    society = int(measured["agents"] > 0)
    stage = Stage(
        stage="eval", iteration=0, debates=slots, calls=slots, prompt_tokens=slots * PROMPT,
        generated_tokens=slots, society=society,
    )  # fmt: skip
    seconds = hours.of_stage(settings, shape, gpu, stage, SEEN, slots)
    yield Row(name, "ms a step", 1000 * (seconds.total - seconds.reading), measured["ms_step"])
    yield Row(name, "ms of reading", 1000 * seconds.reading, 1000 * measured["seconds_prefill"])
    bare = settings.model_copy(update={"train": settings.train.model_copy(update={"method": "full"})})
    memory = costs.sampling_memory(settings if society else bare, shape, PROMPT + STEPS, slots)
    yield Row(name, "GB of sampling", memory.total / 1e9, measured["peak_gb"])


def training(size: str, measured: dict[str, Any]) -> Iterator[Row]:
    """Yield the finetuning of six agents of a size: one after the other, and together."""
    settings = config.load(ROOT / "recipes/gpu/config.yaml", ["num_iterations=1", "train.num_epochs=1"])
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"batch_size": 16})})
    shape, gpu = shape_of(size), hardware.gpu("H200")
    tokens = measured["alone"]["tokens"]
    rows = {"generator": 118.0, "critic": 362.0}
    trainings = [
        Training(iteration=1, role=role, jobs=3, examples=sum(its) / row / 3, tokens=sum(its), row=row)
        for (role, row), its in zip(rows.items(), (tokens[::2], tokens[1::2]), strict=True)
    ]
    answers = Stage(stage="train", iteration=1, debates=1, calls=1, prompt_tokens=60, generated_tokens=60, society=0)
    usable = gpu.memory_gb * costs.GIGA * hardware.USABLE_MEMORY
    for manner in (False, "auto"):
        how = settings.model_copy(update={"train": settings.train.model_copy(update={"together": manner})})
        name = f"{size}, six agents " + ("together" if manner else "one after the other")
        run = Forecast(stages=(answers,), trainings=tuple(trainings), longest=400, mean=200)
        found = measured["together" if manner else "sequential"]
        yield Row(name, "s of steps", hours.finetuning(how, shape, run, gpu, 1, 1, "lora"), found["seconds"])
        memory = costs.training_memory(how, shape, run, "lora", usable)
        yield Row(name, "GB of finetuning", memory.total / 1e9, found["peak_gb"])


def rows(folder: Path) -> list[Row]:
    """Return all rows."""
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("shapes", "steps", "training")}
    made: list[Row] = []
    for part in ("shapes", "steps"):
        for name, measured in read[part][part].items():
            if isinstance(measured, dict) and "ms_step" in measured and "torch" not in name:
                made += sampling(name if part == "shapes" else f"135M, {name}", measured)
    for size, measured in read["training"]["training"].items():
        made += training(size, measured)
    return made


if __name__ == "__main__":
    for row in rows(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/data/gpu_2026_11"):
        print(f"{row.name:34} {row.unit:18} {row.planned:9.2f} / {row.measured:9.2f}  {row.error:+5.0%}")
