"""LoRA adapters: which ones every engine applies alike, whether one fits a model, its scale, and what identifies one.

An engine that cannot represent a setting of PEFT would sample wrong text without a word. So settings are on an
allow-list, and names and shapes of the tensors must be just those that PEFT expects on this model.
"""

import hashlib
import json
import logging
import math
import re
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from maft import files
from maft.errors import DataError
from maft.models.names import is_hub_name, revision
from maft.models.packaged import cache_dir
from maft.records import AgentRef

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Shapes = Mapping[str, tuple[int, ...]]

_NOT_OF_THE_WEIGHTS = ("auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode", "lora_dropout",
                       "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config")  # fmt: skip
"""Settings that do not change what a stored adapter does, or only with another setting that is refused."""
_READ_HERE = ("alpha_pattern", "exclude_modules", "layers_pattern", "layers_to_transform", "lora_alpha", "r",
              "rank_pattern", "target_modules", "use_rslora")  # fmt: skip
_ALLOWED: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),  # the others change the base's weights
}
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def check_adapter(folder: Path, model: str, *, trust: bool = False) -> dict[str, float]:
    """Return the scale of an adapter on each layer, after making sure that it is plain LoRA, whole, and fits `model`.

    Args:
        folder: a PEFT folder.
        model: a model folder or hub name. Its layers are compared where PEFT is installed and its config is on disk.
        trust: run the model's own Python code, see `engine.trust_remote_code`.

    Raises:
        DataError: a file is missing or torn, a setting is none that every engine applies alike, or the tensors are
            not those that PEFT expects on this model.
    """
    config, shapes = _config(folder), _shapes(folder)
    _refuse_settings(folder, config)
    layers = _layers(folder, shapes)
    scales = {layer: _scale(folder, config, layer, rank) for layer, rank in layers.items()}
    base = str(config.get("base_model_name_or_path") or "")
    if is_hub_name(base) and is_hub_name(model) and base.lower() != model.lower():
        raise _unusable(folder, f"is for {base}, not for model {model}")
    vocabularies = [_vocabulary(name) for name in (base, model) if name]
    if None not in vocabularies and len(set(vocabularies)) > 1:  # two models may have layers of the same sizes
        theirs, ours = vocabularies
        raise _unusable(folder, f"is for a vocabulary of {theirs}, that of {base}; {model} has {ours}")
    _refuse_other_layers(folder, model, shapes, trust=trust)
    return scales


def uniform(folder: Path, scales: Mapping[str, float]) -> tuple[Path, float]:
    """Return an adapter with one rank and one scale, and that scale, for engines that know no patterns.

    It is the same adapter where it has no patterns, else a copy in the cache that does the same with the scale 1.
    """
    if not has_patterns(folder):
        return folder, next(iter(scales.values()))
    import torch
    from safetensors.torch import load_file, save_file

    home = cache_dir() / "adapters" / digest(folder)

    def rewrite(scratch: Path) -> None:
        tensors, most = load_file(folder / WEIGHTS), rank(folder)
        for layer, scale in scales.items():
            a, b = (f"base_model.model.{layer}.lora_{side}.weight" for side in "AB")
            more = most - len(tensors[a])
            tensors[a] = torch.nn.functional.pad(tensors[a].float(), (0, 0, 0, more))
            tensors[b] = torch.nn.functional.pad(tensors[b].float() * scale, (0, more))
        scratch.mkdir()
        save_file(tensors, scratch / WEIGHTS, {"format": "pt"})
        config = _config(folder) | {"r": most, "lora_alpha": most, "use_rslora": False}
        files.write_json(scratch / CONFIG, config | {"rank_pattern": {}, "alpha_pattern": {}})

    if not home.exists():
        files.make_whole(home, rewrite)
    return home, 1.0


def has_patterns(folder: Path) -> bool:
    """Say whether ranks or scales of an adapter differ from layer to layer."""
    config = _config(folder)
    return bool(config.get("rank_pattern") or config.get("alpha_pattern"))


def fingerprint(folder: Path) -> tuple[object, ...]:
    """Return what changes when an adapter's folder is written anew: its path, and the files' numbers, sizes and times.

    Raises:
        DataError: a file is not there.
    """
    parts: list[object] = [str(folder)]
    for name in (CONFIG, WEIGHTS):
        try:
            status = (folder / name).stat()
        except OSError:
            raise _missing(folder, name) from None
        parts += [status.st_ino, status.st_size, status.st_mtime_ns]
    return tuple(parts)


def rank(folder: Path) -> int:
    """Return the largest rank in a LoRA adapter.

    Raises:
        DataError: a file is missing or damaged, or the tensors are not those of plain LoRA.
    """
    return max(_layers(folder, _shapes(folder)).values())


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a safetensors file, by name; only its header is read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(folder, CONFIG) from None
    except (ValueError, OSError, RecursionError) as error:
        raise _unusable(folder, f"is damaged: {CONFIG}: {error}") from None
    if not isinstance(config, dict):
        raise _unusable(folder, f"is damaged: {CONFIG} is not a JSON object")
    return config


def _shapes(folder: Path) -> Shapes:
    try:
        return shapes_of(folder / WEIGHTS)
    except FileNotFoundError:
        raise _missing(folder, WEIGHTS) from None
    except (ValueError, OSError) as error:
        raise _unusable(folder, f"is damaged: {WEIGHTS}: {error}") from None


def _refuse_settings(folder: Path, config: Mapping[str, Any]) -> None:
    for name, value in {"peft_type": None, **config}.items():
        if name in _NOT_OF_THE_WEIGHTS + _READ_HERE:
            continue
        allowed = _ALLOWED.get(name, (None, False, [], {}))
        if value not in allowed:
            what = ", ".join(json.dumps(choice) for choice in allowed)
            raise _unusable(
                folder, f"has {name} = {json.dumps(value)}, which not every engine applies (allowed: {what})"
            )


def _layers(folder: Path, shapes: Shapes) -> dict[str, int]:
    """Return the rank of each layer, by name, from the tensors alone."""
    ranks: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        match = _TENSOR.fullmatch(name)
        if match is None or len(shape) != 2:
            raise _unusable(
                folder,
                f"has a tensor {name} of shape {list(shape)}, not matrices named base_model.model.LAYER.lora_A.weight "
                "and lora_B",
            )
        ranks.setdefault(match[1], {})[match[2]] = shape[match[2] == "B"]
    for layer, sides in ranks.items():
        if len(sides) < 2 or sides["A"] != sides["B"]:
            raise _unusable(folder, f"lacks lora_A or lora_B of {layer}, or their ranks differ: {sides}")
    if not ranks:
        raise _unusable(folder, "has no tensors")
    return {layer: sides["A"] for layer, sides in ranks.items()}


def _scale(folder: Path, config: Mapping[str, Any], layer: str, rank: int) -> float:
    """Return alpha / r of a layer, or alpha / sqrt(r) with rsLoRA, where patterns may set both."""
    try:
        r = _of_layer(config.get("rank_pattern"), layer, config.get("r"))
        alpha = _of_layer(config.get("alpha_pattern"), layer, config.get("lora_alpha"))
    except re.error as error:
        raise _unusable(folder, f"has a pattern in {CONFIG} that is no regular expression: {error}") from None
    if r != rank:
        raise _unusable(folder, f"has r = {r} for {layer} in {CONFIG}, and tensors of rank {rank}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise _unusable(folder, f"has lora_alpha = {alpha} for {layer}, which is no number")
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _of_layer(pattern: object, layer: str, default: Any) -> Any:
    """Return what a pattern of PEFT says of a layer: its keys are ends of layers' names, or regular expressions."""
    entries = pattern.items() if isinstance(pattern, dict) else ()
    return next((value for key, value in entries if re.match(rf"(.*\.)?({key})$", layer)), default)


def _refuse_other_layers(folder: Path, model: str, shapes: Shapes, *, trust: bool) -> None:
    """Compare the tensors with those that PEFT expects, on the model without its weights."""
    try:
        import torch
        from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("meta"):
            loaded = AutoConfig.from_pretrained(model, trust_remote_code=trust, local_files_only=True)
            base = AutoModelForCausalLM.from_config(loaded, trust_remote_code=trust)
    except ImportError:  # whoever loads the model says what is missing
        return
    except Exception as error:  # a model of another kind, or one that is not here
        log.warning("The layers of adapter %s are not compared with those of %s: %s", folder, model, error)
        return
    try:
        config = LoraConfig.from_pretrained(str(folder))
        config.init_lora_weights = True  # the others need data, or weights
        with warnings.catch_warnings(action="ignore"):
            inject_adapter_in_model(config, base, low_cpu_mem_usage=True)
            expected = get_peft_model_state_dict(base, save_embedding_layers=False)
    except Exception as error:  # PEFT raises errors of any kind
        raise _unusable(folder, f"cannot be put on model {model}: {str(error).splitlines()[0]}") from None
    wanted = {f"base_model.model.{name}": tuple(tensor.shape) for name, tensor in expected.items()}
    for name in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(name) != shapes.get(name):
            got, right = (list(some[name]) if name in some else "none" for some in (shapes, wanted))
            raise _unusable(
                folder, f"does not fit model {model}: of {name} it has shape {got}, and PEFT expects {right}"
            )


def _vocabulary(model: str) -> int | None:
    """Return the size of a model folder's vocabulary; None for a hub name."""
    file = Path(model) / "config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return (config.get("text_config") or config).get("vocab_size")


def _unusable(folder: Path, what: str) -> DataError:
    again = ", or remove this folder to have it trained again" if (folder / "training.json").is_file() else ""
    return DataError(
        f"adapter {folder} {what}. Give a PEFT folder with a plain LoRA adapter of this model, or merge this one into "
        f"its base with PEFT and give the result as a model{again}."
    )


def _missing(folder: Path, name: str) -> DataError:
    if name == WEIGHTS and (folder / "adapter_model.bin").is_file():
        return DataError(
            f"adapter {folder} has adapter_model.bin, a pickle, which is not read. Load it with PEFT and save it "
            f"again: save_pretrained writes {WEIGHTS}."
        )
    return _unusable(folder, f"has no {name}")


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
    """Return the digest of all weights and settings in a model's or adapter's folder.

    Computed once in a process: a folder that changes while a run uses it is noticed by the next one.
    """
    content = hashlib.blake2b(digest_size=16)
    kinds = (".safetensors", ".json", ".bin", ".py")
    for file in sorted(path for path in folder.iterdir() if path.suffix in kinds and path.name != "training.json"):
        content.update(file.name.encode())
        with file.open("rb") as opened:
            while part := opened.read(2**20):
                content.update(part)
    return content.hexdigest()


def content_name(name: str) -> str:
    """Return a name for the content of a model folder, or for the revision of a hub model that would be loaded."""
    if Path(name).is_dir():
        return f"{Path(name).name}-{digest(Path(name))}"
    return f"{name.replace('/', '--')}-{revision(name)}"
