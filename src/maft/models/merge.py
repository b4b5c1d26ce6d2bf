"""An adapter merged into its base: one ordinary model, which transformers loads without PEFT."""

from pathlib import Path
from typing import Any

from maft import models
from maft.errors import MissingExtra
from maft.models import memory, shapes
from maft.records import AgentRef

ADVICE = "Close other programs, or merge on a machine with more memory; the adapter can be used as it is, too."


def merge(agent: AgentRef, folder: Path, *, trust: bool = False) -> None:
    """Write the model of an agent into a folder: weights in the base's dtype, config, tokenizer with chat template.

    Raises:
        DataError: the base cannot be loaded or does not fit into memory, or the adapter is not for it.
        MissingExtra: torch, transformers or PEFT are not installed.
    """
    assert agent.adapter is not None, agent
    try:
        import torch
        from peft import PeftModel
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise MissingExtra("merging an adapter into its base", "hf") from None
    models.load_quietly()
    name = models.resolve(agent.model)
    models.check_adapter(Path(agent.adapter), name, trust=trust)
    _refuse_what_does_not_fit(agent.model, name)
    with models.loading(agent.model):
        code = {"trust_remote_code": trust}
        tokenizer: Any = AutoTokenizer.from_pretrained(name, **code)
        dtype = AutoConfig.from_pretrained(name, **code).dtype or torch.float32
        # In float32: each weight and its update are added exactly, and rounded once to the base's dtype.
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **code)
    PeftModel.from_pretrained(model, agent.adapter).merge_and_unload().to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _refuse_what_does_not_fit(model: str, folder: str) -> None:
    shape = shapes.of_model(folder)
    if shape is not None:
        parts = {"of weights in float32": float(shape.weight_bytes("float32"))}
        memory.check(model, parts, memory.free_ram(), "main memory", ADVICE)
