"""Measure maft beside other ways to do the same work, on this machine, in one run.

    make bench            # or: python -m bench [--quick]

Prints a table, and as its last line JSON: debates per minute against the manner of the released code and against
transformers in batches of 64, training tokens per second against a plain TRL script, the share of the rate of matrix
products that sampling reaches, and the peak memory.
"""

import json
import subprocess
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

PARAMETERS = 134_515_008  # SmolLM2-135M, tied embeddings counted once


def measure(module: str, *arguments: str) -> dict[str, Any]:
    """Run one measurement in a process of its own and return what it prints last."""
    done = subprocess.run([sys.executable, "-m", f"bench.{module}", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bench.{module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def matmul_rate() -> float:
    """Return the machine's bfloat16 matrix product rate in FLOP/s, the best of several."""
    import torch

    size, best = 2048, 0.0
    a, b = (torch.randn(size, size).bfloat16() for _ in range(2))
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def main(*, quick: bool) -> None:
    """Run all measurements; ours stands before and after the others, and the mean counts."""
    console = Console(width=110)
    few, some, many = ("2", "12", "24") if quick else ("4", "40", "100")
    before = measure("rollouts", "maft", many)
    released = measure("rollouts", "released", few)
    batched = measure("rollouts", "batched", some)
    after = measure("rollouts", "maft", many)
    ours = {key: (before[key] + after[key]) / 2 for key in before}
    training = measure("training", *(["--quick"] if quick else []))
    rate = matmul_rate()

    table = Table(title="Debates (3 agents, 2 rounds, at most 128 new tokens, SmolLM2-135M, untrained)")
    for column in ("manner", "debates / min", "generated tok/s", "peak GB", "maft is"):
        table.add_column(column, justify="left" if column == "manner" else "right")
    for name, rates in (
        ("released: transformers fp32, one at a time", released),
        ("transformers bf16, batches of 64", batched),
        ("maft: openvino bf16", ours),
    ):
        times = ours["debates_per_minute"] / rates["debates_per_minute"]
        table.add_row(
            name,
            f"{rates['debates_per_minute']:.1f}",
            f"{rates['generated_per_second']:.0f}",
            f"{rates['peak_rss_gb']:.1f}",
            f"{times:.1f}x",
        )
    console.print(table)
    table = Table(title="Finetuning (LoRA r=16, all linear layers, same data, steps and settings)")
    for column in ("manner", "tok/s", "mean loss", "peak GB", "maft is"):
        table.add_column(column, justify="left" if column == "manner" else "right")
    for name, key in (
        ("plain TRL SFTTrainer", "trl"),
        ("maft", "maft"),
        ("plain TRL KTOTrainer", "trl_kto"),
        ("maft, kto", "maft_kto"),
        ("plain TRL DPOTrainer", "trl_dpo"),
        ("maft, dpo", "maft_dpo"),
    ):
        row = training[key]
        times = training[key.replace("trl", "maft")]["tokens_per_second"] / row["tokens_per_second"]
        table.add_row(
            name, f"{row['tokens_per_second']:.0f}", f"{row['loss']:.3f}", f"{row['peak_rss_gb']:.1f}", f"{times:.1f}x"
        )
    console.print(table)
    share = 2 * PARAMETERS * ours["tokens_per_second"] / rate
    console.print(
        f"bfloat16 matrix products: {rate / 1e9:.0f} GFLOP/s; sampling reaches {share:.0%} of it "
        "(2 FLOP per parameter and token, prompt tokens included)"
    )
    print(
        json.dumps(
            {
                "rollouts_vs_released": round(ours["debates_per_minute"] / released["debates_per_minute"], 2),
                "rollouts_vs_transformers_64": round(ours["debates_per_minute"] / batched["debates_per_minute"], 2),
                **{
                    f"training_vs_trl{of}": round(
                        training[f"maft{of}"]["tokens_per_second"] / training[f"trl{of}"]["tokens_per_second"], 2
                    )
                    for of in ("", "_kto", "_dpo")
                },
                "share_of_matmul_rate": round(share, 3),
                "peak_rss_gb": round(max(ours["peak_rss_gb"], training["maft"]["peak_rss_gb"]), 2),
            }
        )
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
