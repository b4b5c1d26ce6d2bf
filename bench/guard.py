"""How often the guard stops a finetuning that ruins agents, and how often one that does not.

    python -m bench.guard [--runs runs/guard] [--seeds 20] [--kinds healthy learning_rate ...]

Small runs of the arithmetic recipe with the real model: three generators, 30 training and 40 held-out questions, one
iteration; untrained replies are shared. Runs that are there are read, so the same command resumes. Prints a row for
each run, and as its last line JSON: stopped and finished runs of each kind, and the accuracy of a single answer in
percent before and after finetuning, by run.

    python -m bench.guard --finished runs/results/seed_*/maft ...

Looks at finished runs in place of that, without asking a model: prints every iteration that the guard would stop, and
how many there are.
"""

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path

from maft import config, engines, files
from maft.config import RunConfig
from maft.errors import StageFailed
from maft.evaluation import guard
from maft.evaluation.votes import held_out
from maft.pipeline import run as pipeline
from maft.runs import manifest
from maft.runs.folder import RunFolder
from maft.runs.progress import Progress
from maft.samplers.base import Sampler
from maft.samplers.cached import CachedSampler

RECIPE = Path(__file__).parent.parent / "recipes/arithmetic_cpu/config.yaml"
SMALL = ("num_iterations=1", "debate.protocol=vote", "task.num_train=30", "task.num_eval=40")
KINDS: Mapping[str, Sequence[str]] = {
    "healthy": (),
    "learning_rate": ("train.learning_rate=0.06",),  # 100 times the recipe's
    "one_sided": (
        "train.objective=kto",
        "train.desirable_weight=0.001",
        "train.undesirable_weight=10",
        "train.num_epochs=8",
    ),
    "label_noise": ("vote.label=random", "vote.min_agreement=plurality", "train.num_epochs=8"),
}
"""What each kind of run has instead of the recipe's settings."""


def of_kind(kind: str, seed: int, runs: Path) -> RunConfig:
    """Return the config of a run."""
    return config.load(RECIPE, (*SMALL, *KINDS[kind], f"seed={seed}", f"name={kind}_{seed}", f"runs_dir={runs}"))


def stopped(settings: RunConfig, sampler: Sampler) -> bool:
    """Carry out a run, or read what is there, and say whether the guard stopped it.

    Raises:
        StageFailed: it ended for another reason.
    """
    place = RunFolder(settings.runs_dir / settings.name, settings)
    if place.collapse(1).exists() or place.evaluated(1):
        return place.collapse(1).exists()
    with RunFolder.open(settings) as folder:
        manifest.write(folder)
        try:
            pipeline.run(folder, sampler, engines.make_trainer(settings), Progress(quiet=True))
        except StageFailed:
            if not folder.collapse(1).exists():
                raise
    return place.collapse(1).exists()


def largest_rises(settings: RunConfig) -> str:
    """Return the largest rise of each measure over the agents, as text."""
    folder = RunFolder(settings.runs_dir / settings.name, settings)
    before, after = (guard.measures(held_out(folder, number)) for number in (0, 1))

    def mean(values: Mapping[str, float]) -> float:
        return sum(values.values()) / len(values) if values else 0.0

    rises = {
        name: max(mean(after[agent].get(name, {})) - mean(before[agent].get(name, {})) for agent in after)
        for name in guard.NAMES
    }
    return ", ".join(f"{name} {rise:+.2f}" for name, rise in rises.items())


def accuracies(settings: RunConfig) -> tuple[float, float]:
    """Return the accuracy of a single answer in percent, before and after finetuning."""
    folder = RunFolder(settings.runs_dir / settings.name, settings)
    before, after = (
        next(one["accuracy"] for one in files.read_json(folder.results(number)) if one["method"] == method)
        for number, method in ((0, "base"), (1, "maft_single"))
    )
    return round(100 * before, 1), round(100 * after, 1)


def finished(folders: Sequence[Path]) -> None:
    """Print which iterations of finished runs the guard would stop."""
    would_stop, iterations = 0, 0
    for path in folders:
        folder = RunFolder.existing(path)
        numbers = takewhile(folder.evaluated, range(folder.config.num_iterations + 1))
        measured = [guard.measures(held_out(folder, number)) for number in numbers]
        for number, (before, after) in enumerate(pairwise(measured), start=1):
            iterations += 1
            if collapsed := guard.collapses(before, after, folder.config.guard):
                would_stop += 1
                print(f"{path}: {guard.sentence(collapsed, number)}")
    print(json.dumps({"would_stop": would_stop, "iterations": iterations, "runs": len(folders)}))


def main(runs: Path, kinds: Sequence[str], num_seeds: int) -> None:
    """Carry out all runs, seed by seed, and print what was stopped."""
    counts = {kind: [0, 0] for kind in kinds}
    singles: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    first = of_kind(kinds[0], 0, runs)
    runs.mkdir(parents=True, exist_ok=True)
    with engines.opened(first) as sampler:
        shared = CachedSampler(sampler, runs / "replies.sqlite", keep_tokens=False)
        for seed in range(num_seeds):
            for kind in kinds:
                settings = of_kind(kind, seed, runs)
                was_stopped = stopped(settings, shared)
                counts[kind][0] += was_stopped
                counts[kind][1] += 1
                before, after = accuracies(settings)
                singles[kind].append((before, after))
                print(
                    f"{kind} {seed}: {'stopped' if was_stopped else 'went on'}, single answer {before} to {after} "
                    f"({largest_rises(settings)})",
                    flush=True,
                )
    result = {kind: {"stopped": k, "runs": n, "single": singles[kind]} for kind, (k, n) in counts.items()}
    files.write_json(runs / "guard.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/guard"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--finished", type=Path, nargs="+", metavar="RUN")
    given = parser.parse_args()
    if given.finished:
        finished(given.finished)
        raise SystemExit
    main(given.runs, given.kinds, given.seeds)
