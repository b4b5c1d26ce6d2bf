"""Hold `maft plan --calibrate` against what runs then take, on this machine.

    make bench-plan            # or: python -m bench.plan [--quick]

Two runs: for each, one calibration, the forecast, then the run itself, in processes of their own. Prints every figure,
and as its last line JSON: for each run the largest relative error of its token figures (prompt, generated, training),
and the relative error of its time.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPE = str(ROOT / "recipes" / "arithmetic_cpu" / "config.yaml")
RUNS = {
    "recipe": ("num_iterations=1",),
    "rounds": ("num_iterations=1", "seed=2", "debate.num_rounds=3", "task.num_train=80", "task.num_eval=80"),
}
QUICK = {"quick": ("num_iterations=1", "task.num_train=24", "task.num_eval=24", "train.num_epochs=1")}
FIGURES = ("prompt_tokens", "generated_tokens", "training_tokens")


def maft(*arguments: str) -> tuple[str, float]:
    """Call the command line, and return what it prints and the seconds it takes."""
    began = time.monotonic()
    call = "from maft.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", call, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"maft {' '.join(arguments)} failed.")
    return done.stdout, time.monotonic() - began


def outcome(events: Path) -> dict[str, float]:
    """Return the tokens that a run wrote down."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    debated = [line for line in lines if line["event"] == "debated"]
    return {
        "prompt_tokens": sum(line["prompt_tokens"] for line in debated),
        "generated_tokens": sum(line["completion_tokens"] for line in debated),
        "training_tokens": sum(line["tokens"] for line in lines if line["event"] == "trained"),
    }


def error(told: float, came: float) -> float:
    """Return the relative error of a forecast."""
    return round(abs(told - came) / came, 3) if came else 0.0


def main(*, quick: bool) -> None:
    """Calibrate, run and compare."""
    tokens_error, time_error = [], []
    for name, overrides in (QUICK if quick else RUNS).items():
        with tempfile.TemporaryDirectory() as home:
            asked = (RECIPE, f"name={name}", f"runs_dir={home}", *overrides)
            printed, calibrating = maft("plan", *asked, "--calibrate", "--json")
            plan = json.loads(printed)
            _, seconds = maft("run", *asked, "--quiet")
            came = outcome(Path(home) / name / "events.jsonl") | {"seconds": seconds}
        told = {figure: plan[figure] for figure in FIGURES} | {"seconds": sum(plan["seconds"].values())}
        print(f"{name}: {' '.join(overrides)}; calibrated in {calibrating:.0f} s")
        for figure, value in told.items():
            print(f"  {figure:<18}{value:>10,.0f} told {came[figure]:>10,.0f} came {error(value, came[figure]):>7.1%}")
        tokens_error.append(max(error(told[figure], came[figure]) for figure in FIGURES))
        time_error.append(error(told["seconds"], came["seconds"]))
    print(json.dumps({"tokens_error": tokens_error, "time_error": time_error}))


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
