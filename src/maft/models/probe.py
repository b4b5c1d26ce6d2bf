"""A probe of adapters: how likely a fixed text is under a base and an adapter, by PEFT and by the engine that speaks.

An engine may ignore a tensor that it does not know, or apply it in another way, and says nothing. So what an adapter
changes in the log-likelihoods of a text is compared with what PEFT says that it changes, before the adapter speaks.
What PEFT gives is in `training.json` where maft has trained the adapter; for others it is computed once, in a process
of its own, and kept in the cache.
"""

import json
import logging
import math
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maft import files
from maft.errors import DataError
from maft.models import adapters, memory, shapes
from maft.models.packaged import cache_dir, load_quietly
from maft.records import Record

log = logging.getLogger(__name__)

TEXT = """What is 7 * 8 + 3?
First, 7 * 8 is 56, for 7 * 7 is 49. Then 56 + 3 = 59. The answer is \\boxed{59}.

Natalia sold 48 clips in April and half as many in May. How many did she sell altogether?
In May she sold 48 / 2 = 24 clips. Altogether she sold 48 + 24 = 72 clips. So the final answer is \\boxed{72}.

These are the answers of other agents: one says that the train arrives at 9:45, another that it is late.
I do not agree with the second one, since the train left on time. My updated answer is (B).

Solve for x: 2x - 5 = 9. Add 5 to both sides, which gives 2x = 14, and divide by 2: $x = \\frac{14}{2} = 7$.

The capital of France is Paris, and water boils at 100 degrees Celsius at sea level. def area(width): return width * 2
"""
TOLERANCE = 0.25
"""How far an adapter's strength in an engine may be from that in PEFT, which is 1."""
ROUNDING = 0.05
"""Nats that bfloat16 rounds the log-likelihood of a token by, where engine and trainer round the base alike."""
ANOTHER = 1.0
"""Nats by which no rounding changes the log-likelihoods of a base: they are of another model."""
SURE = 4.2
"""Standard errors of the strength beyond which rounding is no explanation: once in 40,000 adapters."""


class Probe(Record):
    """Log-likelihoods (natural) of the tokens of `TEXT` but the first."""

    base: tuple[float, ...]
    adapted: tuple[float, ...]
    exact: bool = True
    """Whether they were computed in float32."""


def token_ids(tokenizer: Any) -> list[int]:
    """Return the tokens of the text, without any that a template would add."""
    ids: list[int] = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    return ids


def measure(model: Any, ids: Sequence[int]) -> tuple[float, ...]:
    """Return the log-likelihoods that a model of transformers or PEFT gives to all tokens but the first."""
    import torch

    with torch.inference_mode():
        row = torch.tensor([ids], device=model.device)
        scores = model(input_ids=row).logits[0, :-1].float().log_softmax(-1)
        return tuple(scores.gather(1, row[0, 1:, None])[:, 0].tolist())


def of_adapter(model: Any, ids: Sequence[int]) -> Probe:
    """Return the probe of a PEFT model that has one adapter, which is switched on."""
    training = model.training
    model.eval()
    with model.disable_adapter():
        base = measure(model, ids)
    adapted = measure(model, ids)
    model.train(training)
    return Probe(base=base, adapted=adapted, exact=is_exact(model))


def is_exact(model: Any) -> bool:
    """Say whether a model computes in float32."""
    import torch

    return all(weights.dtype == torch.float32 for weights in model.parameters())


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Have the weights of a model on a CPU in float32 meanwhile, which is exact, where there is memory for it."""
    import torch

    narrow = [weights for weights in model.parameters() if weights.dtype in (torch.bfloat16, torch.float16)]
    if model.device.type != "cpu" or 5 * sum(weights.numel() for weights in narrow) > memory.free_ram():
        narrow = []
    before = [weights.data for weights in narrow]
    for weights in narrow:
        weights.data = weights.data.float()
    try:
        yield
    finally:
        for weights, data in zip(narrow, before, strict=True):
            weights.data = data


def of_training(model: Any, tokenizer: Any) -> Probe:
    """Return the probe of a PEFT model that has been trained."""
    with in_float32(model):
        return of_adapter(model, token_ids(tokenizer))


def check(adapter: Path, expected: Probe, engine: Probe) -> None:
    """Refuse an adapter that an engine applies in another way than PEFT does, or not at all.

    Measured is the adapter's strength: the least-squares factor by which the changes that PEFT expects give those in
    the engine. It is 1 for the same adapter, 0 for one that is ignored, 0.5 at half the scale, and the correlation for
    another agent's. How sure it is follows from what the engine's rounding does to the base.

    Raises:
        DataError: the strength is not 1, or the changes are others.
    """
    changes, here = _differences(expected.adapted, expected.base), _differences(engine.adapted, engine.base)
    rounding = _differences(engine.base, expected.base)
    effect, floor = _size(changes), 0.0 if expected.exact else ROUNDING
    noise, off = max(_size(rounding), floor), _size(_differences(here, changes))
    if not noise <= ANOTHER:
        raise DataError(
            f"adapter {adapter} does not work here as it does in PEFT: it was trained on another base model, whose "
            f"log-likelihoods of a test text differ by {noise:.2f} from those here."
        )
    strength, most, error = 1.0, 1.0, 0.0
    if effect:
        product = sum(x * y for x, y in zip(here, changes, strict=True)) / len(changes)
        strength = product / effect**2
        variance = sum(2 * x * x * max(y * y, floor**2) for x, y in zip(changes, rounding, strict=True))
        error = math.sqrt(variance) / effect**2 / len(changes)
        most = strength
        if not expected.exact:
            # Rounding in the expected changes makes them larger, and the strength smaller, than they are.
            true = effect**2 - max(noise**2, 2 * floor**2)
            most = product / true if true > SURE * error * effect**2 else math.inf
    allowed = max(TOLERANCE, SURE * error)
    right = strength <= 1 + allowed and most >= 1 - allowed and off <= effect / 2 + 3 * noise + 0.01
    if not right:  # NaN is refused
        raise DataError(
            f"adapter {adapter} does not work here as it does in PEFT: in PEFT it changes the log-likelihoods of a "
            f"test text by {effect:.3f}, here by {strength:.2f} times that, with an error of {off:.3f}. It was trained "
            "on another base model, or this engine cannot apply it: use engine.sampler=transformers, or merge it into "
            "its base."
        )
    if error > 0.5 / (SURE + 3) or most - strength > TOLERANCE:  # half of it might be taken for right
        log.warning(
            "The effect of adapter %s (%.4f) is too small beside rounding (%.4f) to check that it is applied fully. It "
            "is used. engine.dtype=float32 rounds less.",
            *(adapter, effect, noise),
        )


def refuse_changed_base(adapter: Path, before: Sequence[float], after: Probe) -> None:
    """Refuse an adapter that has changed its base: what others say would come from other weights.

    Raises:
        DataError: without the adapter the likelihoods are not those from before it was loaded.
    """
    if not _size(_differences(before, after.base)) <= 0.05:  # a GPU may round differently from one call to the next
        raise DataError(f"adapter {adapter} changes the weights of its base. Convert it to a plain LoRA adapter.")


def expected(adapter: Path, model: str, name: str, num_tokens: int, *, trust: bool = False) -> Probe | None:
    """Return what PEFT gives for an adapter; None where that would take more memory than is free.

    Args:
        adapter: a PEFT folder that fits `model`.
        model: the base's folder or hub name.
        name: tells the content of the base.
        num_tokens: of the text.
        trust: run the model's own Python code.

    Raises:
        DataError: PEFT cannot load it.
    """
    if (known := recorded(adapter, num_tokens)) is not None:
        return known
    file = _cached(f"{name}-{adapters.digest(adapter)}")
    if not file.is_file():
        shape = shapes.of_model(model)
        if shape is not None and shape.weight_bytes("float32") > memory.free_ram():
            log.warning(
                "Adapter %s is used without a comparison with PEFT, since there is not enough memory for it.", adapter
            )
            return None
        log.info("Comparing adapter %s with PEFT; this is done once.", adapter)
        command = [sys.executable, "-P", "-m", "maft.models.probe", model, str(adapter), str(int(trust))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(f"adapter {adapter} cannot be loaded by PEFT: {last}")
        files.write_text(file, done.stdout)
    return Probe.from_json(file.read_text(encoding="utf-8"))


def recorded(adapter: Path, num_tokens: int) -> Probe | None:
    """Return the probe from the training of an adapter; None where it was trained elsewhere, or by an old version."""
    try:
        probe = Probe.model_validate(json.loads((adapter / "training.json").read_text(encoding="utf-8"))["probe"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return probe if len(probe.base) == num_tokens - 1 else None


def of_base(name: str, measured: Callable[[], Sequence[float]]) -> tuple[float, ...]:
    """Return the log-likelihoods that an engine gives with its base alone; measured once, and kept in the cache.

    Args:
        name: tells the content of the base and how the engine computes.
        measured: asks the engine.
    """
    file = _cached(name)
    if not file.is_file():
        files.write_text(file, json.dumps(list(measured())))
    return tuple(json.loads(file.read_text(encoding="utf-8")))


def _cached(name: str) -> Path:
    return cache_dir() / f"probes-{zlib.crc32(TEXT.encode()):08x}" / f"{name}.json"


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _size(values: Sequence[float]) -> float:
    """Return the root of the mean square."""
    return math.sqrt(sum(value * value for value in values) / len(values))


def main(model: str, adapter: str, trust: str) -> None:
    """Print what PEFT gives for an adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    load_quietly()
    with_code = {"trust_remote_code": trust == "1"}
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **with_code)
    ids = token_ids(AutoTokenizer.from_pretrained(model, **with_code))
    before = measure(base, ids)
    result = of_adapter(PeftModel.from_pretrained(base, adapter), ids)
    refuse_changed_base(Path(adapter), before, result)
    sys.stdout.write(result.to_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
