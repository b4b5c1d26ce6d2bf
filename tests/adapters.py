"""LoRA adapters of every kind, made with PEFT on a model folder."""

import json
from pathlib import Path
from typing import Any

from maft.models import probe

PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
PATTERNS: dict[str, dict[str, Any]] = {
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"layers.1.mlp.down_proj": 32}},
    "both": {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"v_proj": 1, "q_proj": 24}},
    "both_rslora": {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"v_proj": 1}, "use_rslora": True},
    "rslora": {"use_rslora": True},
    "some_layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
}
"""Settings beside PLAIN that every engine applies as PEFT does."""
REFUSED: dict[str, dict[str, Any]] = {
    "lora_bias": {"lora_bias": True},
    "use_dora": {"use_dora": True},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "init_lora_weights olora": {"init_lora_weights": "olora"},
    "alora_invocation_tokens": {"alora_invocation_tokens": [3, 4]},
    "bias": {"bias": "all"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [1, 2]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
}
"""Settings that some engine applies wrongly; the key begins with the name that the refusal says."""


def make(
    folder: Path, model: str, seed: int = 1, strength: float = 0.3, *, probed: bool = False, **settings: Any
) -> Path:
    """Save an adapter with random weights on a model; `probed` has what PEFT gives with it, as the trainer writes it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    peft = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **PLAIN | settings))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * strength / parameter.shape[-1] ** 0.5)
    peft.save_pretrained(folder, save_embedding_layers=False)
    if probed:
        write_probe(folder, peft, model)
    return folder


def write_probe(folder: Path, peft: Any, model: str) -> None:
    """Write what PEFT gives with an adapter, for which an engine would else start a process."""
    from transformers import AutoTokenizer

    with probe.in_float32(peft):
        result = probe.of_adapter(peft, probe.token_ids(AutoTokenizer.from_pretrained(model)))
    (folder / "training.json").write_text(f'{{"probe": {result.to_json()}}}')


def rename(folder: Path, old: str, new: str) -> Path:
    """Give the tensors of an adapter other names."""
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    save_file({name.replace(old, new): tensor for name, tensor in load_file(file).items()}, file)
    return folder


def settings(folder: Path, **changes: Any) -> Path:
    """Change settings of an adapter, and leave its tensors as they are."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder
