"""What maft itself takes, without a model: seconds and memory of a run and its page, for more and more questions.

    python -m bench.overhead [--quick]

Each size runs in a process of its own, for its peak memory: debate, vote, curate, "finetune" and evaluate with scripted
replies, then the report. Time should grow as the number of questions does, and memory should not.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from maft import report
from maft.config import RunConfig, parse
from maft.pipeline import run as pipeline
from maft.runs import manifest
from maft.runs.folder import RunFolder
from maft.runs.progress import Progress
from maft.samplers.scripted import Scripted, guess
from maft.trainers import NullTrainer

SIZES = (500, 5_000, 20_000)
HELD_OUT = 100


def settings(home: Path, num_questions: int) -> RunConfig:
    """Return a run of so many training questions, three agents and two rounds."""
    task = {"name": "arithmetic", "shape": "a+b*c", "high": 99, "num_train": num_questions, "num_eval": HELD_OUT}
    engine = {"sampler": "scripted", "trainer": "null"}
    return parse({"name": "overhead", "runs_dir": str(home), "task": task, "engine": engine})


def peak_mb() -> float:
    """Return the largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(num_questions: int) -> None:
    """Carry out one run and print its figures."""
    with tempfile.TemporaryDirectory(prefix="maft-overhead-") as home:
        began = time.perf_counter()
        with RunFolder.open(settings(Path(home), num_questions)) as folder:
            manifest.write(folder)
            pipeline.run(folder, Scripted(guess, remember=False), NullTrainer(), Progress(quiet=True))
        ran, memory = time.perf_counter() - began, peak_mb()
        report.write_metrics(folder)
        report.table(folder)
        page = report.write_page(folder)
        seconds = time.perf_counter() - began
        print(f"{num_questions:>9,} {ran:>7.1f} {memory:>7.0f} {seconds - ran:>7.1f} {peak_mb():>7.0f} ", end="")
        print(f"{page.stat().st_size / 1e6:>7.1f}", flush=True)


def main(arguments: list[str]) -> None:
    """Measure all sizes, or the smallest one."""
    if arguments[:1] == ["one"]:
        return measure(int(arguments[1]))
    print("questions   run s  run MB  page s peak MB page MB", flush=True)
    for size in SIZES[:1] if arguments == ["--quick"] else SIZES:
        subprocess.run([sys.executable, "-m", "bench.overhead", "one", str(size)], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
