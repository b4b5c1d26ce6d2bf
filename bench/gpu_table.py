"""Gather what the parts of recipes/gpu/check.sh have printed: JSON into a file, and a short table.

python -m bench.gpu_table FOLDER RESULTS.json
"""

import json
import sys
from pathlib import Path
from typing import Any


def read(folder: Path) -> dict[str, Any]:
    """Return the last line of JSON of each part's output."""
    parts = {}
    for file in sorted(folder.glob("*.txt")):
        for line in reversed(file.read_text(errors="replace").splitlines()):
            if line.startswith("{"):
                try:
                    parts[file.stem] = json.loads(line)
                except ValueError:
                    continue
                break
    return parts


def rows(parts: dict[str, Any]) -> list[str]:
    """Return the lines of the table."""
    lines = []
    card = parts.get("card") or parts.get("steps", {}).get("card") or {}
    if card:
        lines.append(f"{card['name']}: {card['tflops']:.0f} TFLOP/s, {card['copy_tb']:.2f} TB/s, torch {card['torch']}")
    rates = {"released, one at a time": parts.get("released")}
    for part in ("plain", "batched", "vllm"):
        rates |= {f"{part}: {name}": value for name, value in parts.get(part, {}).items() if isinstance(value, dict)}
    first = (parts.get("released") or {}).get("generated_per_second")
    for name, value in rates.items():
        if value and "generated_per_second" in value:
            rate = value["generated_per_second"]
            times = f"{rate / first:8.1f}x" if first else ""
            lines.append(f"{name:32} {rate:10.0f} tok/s {value['seconds']:8.2f} s {times}")
    for part in ("steps", "shapes"):
        for name, value in parts.get(part, {}).items():
            if isinstance(value, dict) and "ms_step" in value:
                lines.append(
                    f"{part}: {name:24} {value['ms_step']:8.2f} ms/step {value['tokens_per_second']:9.0f} tok/s "
                    f"{value['share_of_limit']:5.0%} of the limit, reading {value['prefill_share']:4.0%}"
                )
            elif isinstance(value, dict) and "error" in value:
                lines.append(f"{part}: {name:24} {value['error'][:80]}")
    for name, value in parts.get("training", {}).items():
        if "error" in value:
            lines.append(f"training: {name:15} {value['error'][:80]}")
            continue
        for manner in ("sequential", "together"):
            run = value[manner]
            lines.append(
                f"training: {name:6} {manner:12} {run['tokens_per_second']:9.0f} tok/s {run['seconds']:7.2f} s "
                f"{run['peak_gb']:6.1f} GB"
            )
        ratios = {key: round(value[key], 2) for key in sorted(value) if "_over_" in key}
        lines.append(f"training: {name:6} {json.dumps(ratios)}")
    return lines


if __name__ == "__main__":
    gathered = read(Path(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(gathered, indent=1))
    print("\n".join(rows(gathered)))
