"""One worker against two on a Ray cluster of two nodes of one CPU each, on this machine: the same work, one core each.

    make bench-ray            # or: python -m bench.ray_cluster [--quick]

The work is that of recipes/arithmetic_cpu: its debates, of the untrained society and of one whose agents have an
adapter each, then its six finetunings. Timed are, of the debates, all steps from the first request to the last reply,
with the models loaded before; of the finetunings, everything, with the start of six processes and the loading of six
models in both cases. Two workers are measured between two measurements of one, and stand against their mean. Prints a
table, and as its last line JSON: how many times as fast two workers are.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from maft import config as config_
from maft import engines, models
from maft.config import RoleSampling, RunConfig
from maft.method import learners, play
from maft.pipeline import finetune, rollouts
from maft.pipeline import run as pipeline
from maft.records import Debate, Problem, Society
from maft.runs import manifest, societies
from maft.runs.folder import RunFolder

RECIPE = Path(__file__).parent.parent / "recipes" / "arithmetic_cpu" / "config.yaml"
NODE = {"num_cpus": 1, "object_store_memory": 200 * 2**20}


@contextmanager
def cluster() -> Iterator[str]:
    """Start two nodes, and give the address."""
    # workers would be nicer than this process by 15, and stand back behind anything else on the machine
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    made.add_node(**NODE)
    try:
        yield made.address
    finally:
        ray.shutdown()
        made.shutdown()


def debates(
    folder: RunFolder, society: Society, problems: Sequence[Problem], num_workers: int
) -> tuple[list[Debate], float]:
    """Debate the questions, and return the debates and the seconds that they took."""
    rules = pipeline.debate_rules(folder, 1, society, "train")
    with engines.opened(workers(folder.config, num_workers)) as sampler:
        few = rules._replace(stage="warm-up", sampling=_short(folder.config))
        rollouts.play_all([play(problem, few) for problem in problems[: 2 * num_workers]], sampler)
        began = time.perf_counter()
        held = rollouts.play_all([play(problem, rules) for problem in problems], sampler)
        return held, time.perf_counter() - began


def trainings(folder: RunFolder, society: Society, num_workers: int) -> float:
    """Finetune all agents of the first iteration anew, and return the seconds that it took."""
    config = workers(folder.config, num_workers)
    for agent in learners(config):
        shutil.rmtree(folder.agent(1, agent), ignore_errors=True)
    began = time.perf_counter()
    finetune.finetune(folder, 1, society, pipeline.num_examples(folder, 1), engines.make_trainer(config))
    return time.perf_counter() - began


def workers(config: RunConfig, number: int) -> RunConfig:
    """Return the config with so many workers."""
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"num_workers": number})})


def _short(config: RunConfig) -> RoleSampling:
    how = config.sampling.train
    one = how.generator.model_copy(update={"max_new_tokens": 2})
    return how.model_copy(update={"generator": one, "critic": one, "summarizer": one})


def measure(what: str, numbers: Sequence[int], once: Callable[[int], float]) -> list[float]:
    """Measure something with these numbers of workers, one after the other."""
    seconds = []
    for number in numbers:
        seconds.append(once(number))
        print(f"{what}, workers: {number}, seconds: {seconds[-1]:.1f}", file=sys.stderr, flush=True)
    return seconds


def main(*, quick: bool) -> None:
    """Measure debates and finetunings."""
    small = ["task.num_train=12", "train.num_epochs=1", "curate.max_examples=6"] if quick else []
    numbers = (1, 2) if quick else (1, 2, 1)
    held: list[Debate] = []
    times: dict[str, list[float]] = {}
    models.resolve("smollm2-135m-instruct")
    with tempfile.TemporaryDirectory() as home, cluster() as address:
        config = config_.load(RECIPE, [f"runs_dir={home}", f"cluster.ray={address}", "engine.num_threads=1", *small])
        with RunFolder.open(config) as folder:
            manifest.write(folder)
            problems, untrained = pipeline.questions(folder).train, societies.untrained(config)

            def debating(society: Society) -> Callable[[int], float]:
                def once(number: int) -> float:
                    held[:], seconds = debates(folder, society, problems, number)
                    return seconds

                return once

            times["debates, untrained"] = measure("debates, untrained", numbers, debating(untrained))
            pipeline.make_examples(folder, 1, held, pipeline.vote(folder, 1, held))
            times["six finetunings"] = measure("six finetunings", numbers, lambda n: trainings(folder, untrained, n))
            trained = societies.after(folder, 1)
            times["debates, finetuned"] = measure("debates, finetuned", numbers, debating(trained))
    table = Table(title="One worker of one core against two")
    for column in ("work", "one, seconds", "two, seconds", "times as fast"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for name, (one, two, *again) in times.items():
        table.add_row(name, ", ".join(f"{s:.1f}" for s in (one, *again)), f"{two:.1f}", f"{ratio([times[name]]):.2f}x")
    Console(width=110).print(table)
    both = [times["debates, untrained"], times["debates, finetuned"]]
    print(json.dumps({"rollouts": round(ratio(both), 2), "training": round(ratio([times["six finetunings"]]), 2)}))


def ratio(measured: Sequence[Sequence[float]]) -> float:
    """Return the time of one worker, the mean of what was measured, over that of two."""
    one = sum((first + sum(again)) / (1 + len(again)) for first, _, *again in measured)
    return one / sum(two for _, two, *_ in measured)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
