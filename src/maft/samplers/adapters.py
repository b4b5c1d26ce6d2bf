"""What engines that hold many adapters must know of each: whether it is still the same one, and how large it is."""

import json
from pathlib import Path

from maft.errors import DataError


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
