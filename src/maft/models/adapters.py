"""LoRA adapters: whether one is whole and fits a model, its rank, and what tells it from another one."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from maft.errors import DataError
from maft.models.names import is_hub_name
from maft.records import AgentRef


def fingerprint(folder: Path) -> tuple[object, ...]:
    """Return what changes when an adapter's folder is written anew: its path, and the files' numbers, sizes and times.

    Raises:
        DataError: a file is not there.
    """
    found: list[object] = [str(folder)]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        try:
            told = (folder / name).stat()
        except OSError:
            raise DataError(f"adapter {folder} has no {name}. Give a PEFT folder with a LoRA adapter.") from None
        found += [told.st_ino, told.st_size, told.st_mtime_ns]
    return tuple(found)


def rank(folder: Path) -> int:
    """Return the largest rank in a LoRA adapter.

    Raises:
        DataError: its adapter_config.json is not there, or tells no rank.
    """
    try:
        told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return max(int(told["r"]), *map(int, (told.get("rank_pattern") or {}).values()), 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"adapter {folder} has no readable adapter_config.json. Give a PEFT LoRA folder.") from None


def check_adapter(folder: Path, model: str) -> float:
    """Return the scale of a LoRA adapter (alpha / r), after making sure that it is whole and fits `model`.

    Raises:
        DataError: a file is missing or torn, it is another kind of adapter, or its layers are not those of the model.
    """
    again = "Give a PEFT folder with a LoRA adapter of this model, or remove this one to have it trained again."
    weights = folder / "adapter_model.safetensors"
    try:
        adapter = json.loads((folder / "adapter_config.json").read_text())
        shapes = safetensors_shapes(weights)
    except FileNotFoundError as error:
        raise DataError(f"adapter {folder} has no {Path(error.filename).name}. {again}") from None
    except (ValueError, OSError) as error:
        raise DataError(f"adapter {folder} is damaged: {error}. {again}") from None
    unlike = [key for key in shapes if ".lora_A." not in key and ".lora_B." not in key]
    if adapter.get("peft_type") != "LORA" or adapter.get("use_dora") or unlike or not shapes:
        raise DataError(f"adapter {folder} is not plain LoRA: {adapter.get('peft_type')} {unlike[:1]}. {again}")
    for what, its, ours in _sizes(shapes, _config(model)):
        if its != ours:
            raise DataError(f"adapter {folder} is for {what} {its}, model {model} has {ours}. {again}")
    base = str(adapter.get("base_model_name_or_path") or "")
    if is_hub_name(base) and is_hub_name(model) and base.lower() != model.lower():
        raise DataError(f"adapter {folder} is for {base}, not for model {model}. {again}")
    there, here = (_config(name).get("vocab_size") if name else None for name in (base, model))
    if there is not None and here is not None and there != here:  # two models may have layers of the same sizes
        raise DataError(f"adapter {folder} is for a vocabulary of {there}, that of {base}; {model} has {here}. {again}")
    rank = float(adapter["r"])
    return float(adapter["lora_alpha"]) / (rank**0.5 if adapter.get("use_rslora") else rank)


def safetensors_shapes(file: Path) -> dict[str, list[int]]:
    """Read the header of a safetensors file: tensor shapes by name.

    Raises:
        ValueError: the file is shorter than its header says.
    """
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > file.stat().st_size:
            raise ValueError("it is cut short")
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if file.stat().st_size != 8 + size + end:
        raise ValueError("it is cut short")
    return {key: entry["shape"] for key, entry in header.items()}


def _config(model: str) -> dict[str, Any]:
    """Return the config.json of a model folder, of the part that makes text; nothing for a hub name."""
    file = Path(model) / "config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return config.get("text_config") or config


def _sizes(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yield what an adapter and a model must have in common: its name, the adapter's number, the model's number."""
    inputs = {"q_proj": "hidden_size", "gate_proj": "hidden_size", "down_proj": "intermediate_size"}
    for key, shape in shapes.items():
        layer, module = re.search(r"\.layers\.(\d+)\.", key), re.search(r"(\w+)\.lora_A\.weight$", key)
        layers, size = config.get("num_hidden_layers"), config.get(inputs.get(module[1], "") if module else "")
        if layer and layers is not None and int(layer[1]) >= layers:
            yield "number of layers", int(layer[1]) + 1, layers
        if module and isinstance(size, int) and ".experts." not in key:
            yield inputs[module[1]].replace("_", " "), shape[1], size


def weights(agent: AgentRef) -> str:
    """Return what identifies the weights that speak: the model, and the content of the adapter."""
    base = model(agent.model)
    return base if agent.adapter is None else f"{base} {digest(Path(agent.adapter))}"


def model(name: str) -> str:
    """Return what identifies a model: its name, or the content of a folder that full finetuning has made."""
    folder = Path(name)
    return digest(folder) if (folder / "training.json").is_file() else name


@cache
def digest(folder: Path) -> str:
    """Return the digest of all weights in an agent's folder; a finished one never changes."""
    found = hashlib.blake2b(digest_size=16)
    kinds = (".safetensors", ".json", ".bin")
    for file in sorted(path for path in folder.iterdir() if path.suffix in kinds and path.name != "training.json"):
        found.update(file.name.encode())
        with file.open("rb") as opened:
            while part := opened.read(2**20):
                found.update(part)
    return found.hexdigest()
