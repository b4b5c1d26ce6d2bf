"""Model names to model folders, and the dtype that this hardware supports."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maft.errors import DataError, MaftError
from maft.models.packaged import PACKAGED, PACKAGED_ON_HUB, packaged_revision, prepare_packaged


def resolve(name: str) -> str:
    """Return the folder of a local model, and a hub name as it is.

    Raises:
        DataError: a path that is not a model folder, or a name that no hub model can have.
        MissingExtra: the packaged model is asked for and not installed.
    """
    return str(prepare_packaged()) if name.lower() == PACKAGED else check(name)


def check(name: str) -> str:
    """Return what `resolve` returns, but prepare and fetch nothing: of the packaged model, return its name.

    Raises:
        DataError: as `resolve`.
    """
    if name.lower() == PACKAGED:
        return PACKAGED
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


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn errors of loading a model in this block into one line, which says whether the network is the cause.

    Raises:
        DataError: it cannot be loaded.
    """
    try:
        yield
    except MaftError:
        raise
    except Exception as error:  # without a network, the libraries raise errors of any type
        no_network = offline(error)
        if not no_network and not isinstance(error, OSError | ValueError):
            raise
        text = "the hub cannot be reached, and it is not in the cache of this machine" if no_network else str(error)
        remedy = " Check the network, or give the folder of a model." if no_network else ""
        if "trust_remote_code" in text:
            remedy = " Set engine.trust_remote_code=true to run it."
        raise DataError(f"model {name} cannot be loaded: {text.splitlines()[0].rstrip('.')}.{remedy}") from None


def offline(error: BaseException | None) -> bool:
    """Say whether an error, or one of its causes, is that of a missing network."""
    for _ in range(20):
        if error is None:
            return False
        if _NO_NETWORK.search(f"{type(error).__name__} {error}"):
            return True
        error = error.__cause__ or error.__context__
    return False


_NO_NETWORK = re.compile(
    "ConnectError|ConnectionError|ConnectTimeout|client has been closed|Name or service not known|OfflineMode|couldn't "
    "connect|Network is unreachable|No route to host|Max retries exceeded"
)


def usable_dtype(dtype: str) -> str:
    """Return the dtype to compute in: float32 where the hardware has no bfloat16.

    torch emulates it: a matrix product on two cores with AVX2 alone took over six times as long as in float32.
    """
    import torch
    from transformers.utils import is_torch_bf16_gpu_available

    if dtype != "bfloat16":
        return dtype
    if torch.accelerator.is_available():
        return dtype if is_torch_bf16_gpu_available() else "float32"
    has = torch.cpu.get_capabilities()
    return dtype if any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else "float32"


def is_hub_name(name: str) -> bool:
    """Say whether a name can be a hub name, and is not a path on this machine."""
    return name.count("/") == 1 and not name.startswith((".", "~", "/")) and not Path(name).exists()


def public_name(model: str) -> str:
    """Return a name without paths of this machine: the hub's, or that of the folder.

    >>> public_name("smollm2-135m-instruct")
    'HuggingFaceTB/SmolLM2-135M-Instruct'
    """
    if model.lower() == PACKAGED:
        return PACKAGED_ON_HUB
    return Path(model).name if Path(model).is_dir() else model


def cached() -> list[str]:
    """Return the models that the hub's client keeps on this machine, by name."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return []
    homes = Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/config.json")
    return sorted({home.parts[-4].removeprefix("models--").replace("--", "/", 1) for home in homes})


def revision(name: str) -> str | None:
    """Return what identifies the version of a model; None if the model is not on this machine.

    The hub's commit, the version of the package that carries it, or a digest of the sizes and beginnings of a folder's
    files.
    """
    if name.lower() == PACKAGED:
        return packaged_revision()
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        try:
            from huggingface_hub import try_to_load_from_cache
        except ImportError:
            return None
        cached = try_to_load_from_cache(name, "config.json") if is_hub_name(name) else None
        return Path(cached).parent.name if isinstance(cached, str) else None
    content = hashlib.blake2b(digest_size=8)
    for file in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin")):
        with file.open("rb") as opened:
            content.update(f"{file.name} {file.stat().st_size}\n".encode() + opened.read(2**20))
    return content.hexdigest()
