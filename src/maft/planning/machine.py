"""What this machine has, and which engines a run would use on it."""

import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from maft import __version__, engines, models
from maft.errors import install_line
from maft.models import memory
from maft.models.packaged import packaged_state
from maft.runs import manifest
from maft.sandbox import levels
from maft.sandbox.run import NotConfined

SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "sve", "bf16")
"""Instruction sets that the engines make use of, by the names of Linux."""
NOT_PROGRAMS = ("dev", "docs", "all")
"""Extras that are for working on maft itself, or collections."""


def look(runs_dir: Path) -> dict[str, Any]:
    """Return what a run would find: hardware, packages by extra, engines, the packaged model, disk.

    Sizes are in bytes. torch is loaded where it is installed, to ask it for GPUs, which takes seconds.
    """
    hardware = manifest.machine()
    has_torch = engines.installed("torch") and engines.installed("transformers")
    return {
        "maft": __version__,
        "python": platform.python_version(),
        "environment": sys.prefix,
        "platform": platform.platform(),
        "processor": hardware["processor"],
        "cores": memory.num_cores(),
        "instruction_sets": _instruction_sets(),
        "memory_free": int(memory.free_ram()) if engines.installed("psutil") else None,
        "gpus": hardware["gpus"],
        "dtype": models.usable_dtype("bfloat16") if has_torch else None,
        "extras": {extra: _versions(extra) for extra in _extras()},
        "sampler": engines.auto() if has_torch else None,
        "trainer": None if None in _versions("hf").values() else "local",
        "programs": _level(),
        "packaged_model": packaged_state(),
        "disk_free": {str(place): _disk_free(place) for place in (runs_dir.resolve(), models.cache_dir())},
    }


def lines(seen: dict[str, Any]) -> list[str]:
    """Put what `look` returns into lines."""
    cores, free = seen["cores"], seen["memory_free"]
    out = [
        f"maft {seen['maft']}, Python {seen['python']} in {seen['environment']}",
        f"{seen['platform']}",
        f"processor      {seen['processor']}, {cores} core{'s' if cores > 1 else ''} for this process",
        f"instructions   {' '.join(seen['instruction_sets']) or 'unknown'}",
        f"memory         {'unknown: psutil comes with the extra hf' if free is None else f'{free / 1e9:.1f} GB free'}",
        *(f"GPU            {gpu}" for gpu in seen["gpus"] or ["none that nvidia-smi knows"]),
        *(f"disk           {free / 1e9:.1f} GB free for {place}" for place, free in seen["disk_free"].items()),
        "",
        "A run uses",
        f"  sampler      {_engine(seen['sampler'])}",
        f"  trainer      {_engine(seen['trainer'])}",
        f"  dtype        {seen['dtype'] or 'unknown: torch is not installed'}",
        f"  programs     {seen['programs'] or 'cannot be run'}",
        f"  {models.PACKAGED}: {seen['packaged_model']}",
        "",
        "Extras",
    ]
    width = max(map(len, seen["extras"])) + 2
    for extra, versions in seen["extras"].items():
        missing = [name for name, version in versions.items() if version is None]
        have = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
        out.append(f"  {extra:<{width}}" + (f"lacks {', '.join(missing)}" if missing else have))
    return out


def _engine(name: str | None) -> str:
    return name or f"none but hosted models and the script: {install_line('cpu')}"


def _level() -> str | None:
    """Return the level of protection at which programs of models run; None where they cannot be run."""
    try:
        return f"run at level {levels.strongest().name}"
    except NotConfined:
        return None


def _instruction_sets() -> list[str]:
    """Return the known instruction sets of the processor; none where the system does not list them."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "").split()
    return [name for name in SETS if name in flags]


def _disk_free(place: Path) -> int:
    return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free


def _extras() -> Sequence[str]:
    known = metadata.metadata("maft").get_all("Provides-Extra") or []
    return [extra for extra in known if extra not in NOT_PROGRAMS]


def _versions(extra: str) -> dict[str, str | None]:
    """Return the version of each package that an extra asks for; None where it is not installed."""
    return {name: next((one.version for one in metadata.distributions(name=name)), None) for name in _packages(extra)}


def _packages(extra: str) -> Iterator[str]:
    from packaging.requirements import Requirement

    for requirement in map(Requirement, metadata.requires("maft") or []):
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == "maft":
            for inner in sorted(requirement.extras):
                yield from _packages(inner)
        else:
            yield requirement.name
