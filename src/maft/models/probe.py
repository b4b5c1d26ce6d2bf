"""A probe of adapters: how likely a fixed text is under a base and an adapter, by PEFT and by the engine that speaks.

An engine may ignore a tensor that it does not know, or apply it in another way, and says nothing. So its likelihoods
of one short text are compared with PEFT's before an adapter speaks. What PEFT gives is in `training.json` where maft
has trained the adapter; for others it is computed once, in a process of its own, and kept in the cache.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maft import files
from maft.errors import DataError
from maft.models import adapters, memory, shapes
from maft.models.packaged import cache_dir, load_quietly
from maft.records import Record

log = logging.getLogger(__name__)

TEXT = "What is 7 * 8 + 3?\nFirst, 7 * 8 is 56, for 7 * 7 is 49. Then 56 + 3 = 59. The answer is \\boxed{59}."
ROUNDING = 0.25
"""Nats that the log-likelihood of a token may be off by in bfloat16, as a root mean square."""
SHARE = 0.2
"""Share of the adapter's own effect that an engine's result may be off by."""


class Probe(Record):
    """Log-likelihoods (natural) of the tokens of `TEXT` but the first, by PEFT."""

    base: tuple[float, ...]
    adapted: tuple[float, ...]


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
    return Probe(base=base, adapted=adapted)


def check(adapter: Path, expected: Probe, engine: Sequence[float]) -> None:
    """Refuse an adapter that an engine applies in another way than PEFT does, or not at all.

    Raises:
        DataError: the engine's log-likelihoods differ from PEFT's by more than rounding can.
    """
    effect, off = _distance(expected.adapted, expected.base), _distance(engine, expected.adapted)
    if not off <= ROUNDING + SHARE * effect:  # NaN is refused
        raise DataError(
            f"adapter {adapter} does not work here as it does in PEFT: on a test text it changes the log-likelihood of "
            f"a token by {effect:.2f}, and here it is {off:.2f} off. It was trained on another base model, or this "
            "engine cannot apply it: use engine.sampler=transformers, or merge it into its base."
        )


def refuse_changed_base(adapter: Path, before: Sequence[float], after: Probe) -> None:
    """Refuse an adapter that has changed its base: what others say would come from other weights.

    Raises:
        DataError: without the adapter the likelihoods are not those from before it was loaded.
    """
    if not _distance(before, after.base) <= 0.05:  # a GPU may round differently from one call to the next
        raise DataError(f"adapter {adapter} changes the weights of its base. Convert it to a plain LoRA adapter.")


def expected(adapter: Path, model: str, name: str, *, trust: bool = False) -> Probe | None:
    """Return what PEFT gives for an adapter; None where that would take more memory than is free.

    Args:
        adapter: a PEFT folder that fits `model`.
        model: the base's folder or hub name.
        name: tells the content of the base.
        trust: run the model's own Python code.

    Raises:
        DataError: PEFT cannot load it.
    """
    if (known := recorded(adapter)) is not None:
        return known
    file = cache_dir() / "probes" / f"{name}-{adapters.digest(adapter)}.json"
    if not file.is_file():
        shape = shapes.of_model(model)
        if shape is not None and shape.weight_bytes("float32") > memory.free_ram():
            log.warning("Adapter %s is used without comparing it with PEFT, for which there is no memory.", adapter)
            return None
        log.info("Comparing adapter %s with PEFT, once.", adapter)
        command = [sys.executable, "-P", "-m", "maft.models.probe", model, str(adapter), str(int(trust))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(f"adapter {adapter} cannot be loaded by PEFT: {last}")
        files.write_text(file, done.stdout)
    return Probe.from_json(file.read_text(encoding="utf-8"))


def recorded(adapter: Path) -> Probe | None:
    """Return the probe from the training of an adapter; None where it was trained elsewhere, or by an old version."""
    try:
        return Probe.model_validate(json.loads((adapter / "training.json").read_text(encoding="utf-8"))["probe"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the root of the mean squared difference."""
    return float((sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)) ** 0.5)


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
