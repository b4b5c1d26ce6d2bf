"""A comparison of methods over several seeds, many processes at a time, within a time limit.

    python -m bench.experiment WORK OUT [--seconds 300] [--seeds 0 1 2] [--reference maft]
                               [--methods single_agent_ft majority_ft] [--at-once 12]
                               [--config recipes/gpu/experiment.yaml] [--runs recipes/gpu/config.yaml] [KEY=VALUE]...

On one GPU most of a small model's time goes into starting processes and into work that leaves the card idle, so runs
beside each other cost little more than one. Each seed's reference goes first, then its other methods, each in a copy of
the folder, since a folder belongs to one process. What is finished when time is up is gathered into one comparison,
WORK/experiment; what is not continues when the same command is given again, also with more iterations. OUT gets its
rows and small files, without adapters and debates. `--runs` adds an ordinary run of another config for each seed.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from maft import comparison, files, report

SMALL = ("config.json", "manifest.json", "events.jsonl", "summary.json", "training.json", "compare.json")


class Processes:
    """Runs of maft, some at a time, all of which end at a point in time."""

    def __init__(self, seconds: float, logs: Path, overrides: Sequence[str], at_once: int) -> None:
        """Start nothing yet."""
        self.end = time.monotonic() + seconds
        self.places = threading.Semaphore(at_once)
        self.logs, self.overrides = logs, list(overrides)
        logs.mkdir(parents=True, exist_ok=True)

    def maft(self, name: str, verb: str, config: str, *arguments: str) -> bool:
        """Carry out a command, and say whether it was finished in time."""
        command = [sys.executable, "-m", "maft", verb, config, *self.overrides, *arguments]
        with self.places:
            return self._carry_out(name, command)

    def _carry_out(self, name: str, command: Sequence[str]) -> bool:
        begun = time.monotonic()
        if begun > self.end - 5:
            print(f"{name}: not begun", flush=True)
            return False
        with (self.logs / f"{name}.txt").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            try:
                code = process.wait(max(0.0, self.end - begun))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                code = -1
        print(
            f"{name}: {'time was up' if code == -1 else f'exit {code}'}, {time.monotonic() - begun:.0f} s", flush=True
        )
        return code == 0


def one_seed(made: Processes, work: Path, config: str, seed: int, reference: str, methods: Sequence[str]) -> None:
    """Carry out the reference with one seed, then the other methods at the same time."""
    home = work / f"seed_{seed}"
    common = ("name=experiment", f"engine.num_threads={max(1, (os.cpu_count() or 1) // 8)}")
    common = (*common, "--reference", reference, "--seeds", str(seed), "--methods")
    if not made.maft(f"{reference}_{seed}", "compare", config, f"runs_dir={home}/{reference}", *common, reference):
        return
    threads = []
    for method in methods:
        target, run = home / method, Path("experiment") / f"seed_{seed}" / reference
        if target.exists():  # it was carried out with fewer iterations, or in part
            shutil.copytree(home / reference / run, target / run, dirs_exist_ok=True)
        else:
            shutil.copytree(home / reference, files.partial(target), dirs_exist_ok=True)
            files.partial(target).rename(target)
        arguments = ("compare", config, f"runs_dir={target}", *common, method)
        threads.append(threading.Thread(target=made.maft, args=(f"{method}_{seed}", *arguments)))
    _all(threads)


def gather(work: Path, out: Path, seeds: Sequence[int], reference: str, methods: Sequence[str]) -> None:
    """Put what there is into one comparison, and its rows and small files into OUT."""
    whole, there = work / "experiment", []
    shutil.rmtree(whole, ignore_errors=True)
    for seed in seeds:
        for method in (reference, *methods):
            run = work / f"seed_{seed}" / method / "experiment" / f"seed_{seed}" / method
            if (run / "iter_00" / "eval" / "summary.json").exists() or (run / "iter_01" / "eval").exists():
                shutil.copytree(run, whole / f"seed_{seed}" / method)
                there.append(seed)
    kept = [seed for seed in seeds if seed in there]
    if not kept:
        print("nothing is finished")
        return
    one = files.read_json(work / f"seed_{kept[0]}" / reference / "experiment" / "compare.json")
    files.write_json(whole / "compare.json", one | {"methods": [reference, *methods], "seeds": kept})
    opened = comparison.existing(whole)._replace(path=whole)
    rows = comparison.results(opened)
    files.write_text(whole / "results.json", comparison.as_json(rows) + "\n")
    (out / "experiment").mkdir(parents=True, exist_ok=True)
    shutil.copy(whole / "results.json", out / "experiment" / "results.json")
    print(report.comparison_table(rows))


def keep_small(folder: Path, target: Path) -> None:
    """Copy the small files of runs."""
    for file in folder.rglob("*"):
        if file.name in SMALL and file.is_file():
            copy = target / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)


def _all(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Carry out what the command line asks for."""
    options = argparse.ArgumentParser()
    options.add_argument("work", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("overrides", nargs="*")
    options.add_argument("--seconds", type=float, default=300)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--reference", default="maft")
    options.add_argument("--at-once", type=int, default=12)
    options.add_argument("--methods", nargs="+", default=["single_agent_ft", "majority_ft"])
    options.add_argument("--config", default="recipes/gpu/experiment.yaml")
    options.add_argument("--runs")
    asked = options.parse_intermixed_args()
    asked.methods = [method for method in asked.methods if method != asked.reference]
    begun = time.monotonic()
    made = Processes(asked.seconds, asked.out / "logs", asked.overrides, asked.at_once)
    threads = [
        threading.Thread(target=one_seed, args=(made, asked.work, asked.config, seed, asked.reference, asked.methods))
        for seed in asked.seeds
    ]
    if asked.runs:
        threads += [
            threading.Thread(target=made.maft, args=(f"run_{seed}", "run", asked.runs, f"runs_dir={asked.work}/runs",
                                                     f"name=seed_{seed}", f"seed={seed}"))
            for seed in asked.seeds
        ]  # fmt: skip
    _all(threads)
    seconds = time.monotonic() - begun
    for seed, method in itertools.product(asked.seeds, (asked.reference, *asked.methods)):
        run = asked.work / f"seed_{seed}" / method / "experiment" / f"seed_{seed}" / method
        keep_small(run, asked.out / "experiment" / f"seed_{seed}" / method)
    keep_small(asked.work / "runs", asked.out / "runs")
    print(json.dumps({"seconds": seconds, "runs": len(list(asked.out.rglob("config.json")))}), flush=True)
    gather(asked.work, asked.out, asked.seeds, asked.reference, asked.methods)


if __name__ == "__main__":
    main()
