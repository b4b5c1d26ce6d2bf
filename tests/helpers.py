"""Records and runs made in one line, for tests; nothing here needs a model."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import maft
from maft import config as config_
from maft import method, tasks
from maft.answers import EQUALITIES
from maft.answers.equality import representative
from maft.cluster.mirror import mirrored
from maft.config import DebateConfig, RoleSampling, RunConfig, TaskConfig, prompts
from maft.evaluation.methods import HeldOut, Scoring, score_all
from maft.evaluation.votes import decide
from maft.method.protocol import Rules
from maft.pipeline import run as pipeline
from maft.records import Call, Debate, Message, Problem, Reply, Request, Score, Society, Turn
from maft.runs import manifest, societies
from maft.runs.folder import RunFolder
from maft.runs.progress import Progress
from maft.samplers import Scripted
from maft.samplers.scripted import guess
from maft.trainers import NullTrainer

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(maft.__file__).parent.parent)}
# Data sets that are too large to be part of the repository; tests that need them are skipped where they are not.
DATA = Path(os.environ.get("MAFT_DATA") or ROOT.parent / "shared" / "data")
SMALL_ENGINE = ("engine.num_threads=1", "engine.dtype=float32", "engine.cache_gb=1")
"""For whole runs with the packaged model: other tests have the other core, openvino loads each adapter once, not in bfloat16
first, which rounds a short training away, and all agents stay loaded."""
CHANGES_WITH_EVERY_START = {"checksums.jsonl", "events.jsonl", "manifest.json", "report.html", ".lock"}


class Quiet(Progress):
    """Shows nothing, and starts no thread of a progress bar."""

    def say(self, text: str) -> None:
        pass

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Any]:
        class Bar:
            def skip(self, count: int) -> None: ...
            def advance(self, count: float = 1) -> None: ...
            def note(self, text: str) -> None: ...

        yield Bar()


def dialogues(text: str, format: str) -> list[tuple[Message, ...]]:
    """Read what `write_dialogues` wrote."""
    if format == "sharegpt":
        roles = {"system": "system", "human": "user", "gpt": "assistant"}
        rows = [[(roles[one["from"]], one["value"]) for one in row["conversations"]] for row in json.loads(text)]
    else:
        lines = [json.loads(line) for line in text.split("\n") if line]
        rows = [[(one["role"], one["content"]) for one in row["messages"]] for row in lines]
    return [tuple(Message(role=role, content=content) for role, content in row) for row in rows]


def settings(runs: Path, *overrides: str, **sections: Any) -> RunConfig:
    """Return a small run of sums without a model."""
    tree = {
        "name": "run",
        "runs_dir": str(runs),
        "task": {"name": "arithmetic", "high": 4, "num_train": 10, "num_eval": 6},
        "engine": {"sampler": "scripted", "trainer": "null", "batch_size": 4},
    }
    return config_.parse(tree | sections, overrides)


def run(config: RunConfig, sampler: Any = None, trainer: Any = None) -> RunFolder:
    """Carry out a run, as `maft run` does, and return its folder."""
    with RunFolder.open(config, mirrored) as folder:
        manifest.write(folder)
        pipeline.run(folder, sampler or Scripted(guess), trainer or NullTrainer(), Quiet())
    return folder


def run_files(folder: Path) -> dict[str, bytes]:
    """Return every file of a run folder that must not differ between runs, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in CHANGES_WITH_EVERY_START
    }


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where a package is not installed; unlike `importorskip`, load it only when a test does."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def data_lines(name: str) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file of `DATA`, or skip the test."""
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in {DATA}; MAFT_DATA says where to look")
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def math500() -> list[dict[str, Any]]:
    """Return the problems of MATH-500, or skip the test."""
    return data_lines("math500.jsonl")


grade = tasks.make(TaskConfig(name="arithmetic")).grade


def group(answers: Sequence[str | None]) -> list[list[int]]:
    """Return the classes of mathematically equal answers as indices, larger ones first."""
    members: dict[int, list[int]] = {}
    for index, number in enumerate(EQUALITIES["mathematics"]().classes(answers)):
        if number is not None:
            members.setdefault(number, []).append(index)
    named = [(-len(of), representative(str(answers[i]) for i in of), of) for of in members.values()]
    return [of for _, _, of in sorted(named)]


def voting_by(num_agents: int = 3, **how: Any) -> RunConfig:
    return config_.parse({"task": {"name": "arithmetic"}, "debate": {"num_agents": num_agents}, "vote": how})


def held_out(debates: Iterable[Debate], problems: Mapping[str, Problem] | None = None, **how: Any) -> HeldOut:
    """Return debates on held-out questions with their votes; `how` is `vote` of a config."""
    debates = list(debates)
    of = problems or {debate.problem_id: problem(debate.problem_id, None) for debate in debates}
    return HeldOut(debates, decide(debates, list(of.values()), voting_by(**how)))


def scored(
    debates: Iterable[Debate], problems: Mapping[str, Problem], iteration: int, num_agents: int = 3, **how: Any
) -> dict[str, list[Score]]:
    return score_all(Scoring(held_out(debates, problems, **how), iteration, voting_by(num_agents, **how)))


def boxed(answer: object) -> str:
    return f"It is \\boxed{{{answer}}}."


def problem(name: str = "7*8", gold: str | None = "56") -> Problem:
    return Problem(id=name, question=f"What is {name}?", gold=gold)


def society(num_agents: int = 3, summarizer: str = "base", model: str = "tiny") -> Society:
    tree = {"task": {"name": "arithmetic"}, "model": model}
    tree["debate"] = {"num_agents": num_agents, "summarizer": summarizer}
    return societies.untrained(config_.parse(tree))


def rules(
    num_agents: int = 3,
    num_rounds: int = 2,
    *,
    summarizer: str = "base",
    max_others: int = 5,
    run_seed: int = 0,
    iteration: int = 1,
    stage: str = "train",
    **texts: str,
) -> Rules:
    return Rules(
        society=society(num_agents, summarizer),
        debate=DebateConfig(num_agents=num_agents, num_rounds=num_rounds, summarizer=summarizer, max_others=max_others),
        prompts=prompts.build(texts),
        sampling=RoleSampling(),
        run_seed=run_seed,
        iteration=iteration,
        stage=stage,
    )


def play(
    rules: Rules, say: Callable[[Request], str | Reply], problem: Problem | None = None
) -> tuple[Debate, Scripted]:
    """Hold one debate, and return it with the sampler that remembers the requests."""
    from maft.pipeline.rollouts import play_all

    sampler = Scripted(say)
    return play_all([method.play(problem or globals()["problem"](), rules)], sampler)[0], sampler


def debate(
    *rounds: Sequence[str | None],
    samples: Sequence[str | None] = (),
    problem_id: str = "7*8",
    iteration: int = 1,
    error: str | None = None,
) -> Debate:
    """Return a debate with these answers: one sequence for each round, one answer for each agent.

    Samples are further first answers, of agents 0, 1, ..., 0, 1, ...
    """
    more = [
        Turn(agent=n % len(rounds[0]), round=1, answer=answer, call=call("ask again", f"{n}: {boxed(answer)}", "g"))
        for n, answer in enumerate(samples)
    ]
    turns = [
        Turn(agent=n, round=m, answer=answer, call=call(f"ask {n} in {m}", boxed(answer), f"agent_{n}"))
        for m, answers in enumerate(rounds, 1)
        for n, answer in enumerate(answers)
    ]
    return Debate(
        iteration=iteration,
        problem_id=problem_id,
        question=f"What is {problem_id}?",
        system=None,
        turns=tuple(turns),
        samples=tuple(more),
        error=error,
    )


def call(prompt: str, text: str, agent: str = "generator_0") -> Call:
    reply = Reply(text=text, finish_reason="stop", prompt_tokens=10, completion_tokens=4)
    return Call(agent=agent, prompt=prompt, reply=reply, seed=1)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def maft(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Call the command line in a process of its own."""
    start = [sys.executable, "-W", "error", "-c", "from maft.cli import main; main()"]
    return subprocess.run([*start, *arguments], capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, timeout=120)


# `maft` with a sampler that takes its time, and writes down the seeds it was asked for and when it starts.
SLOW_MAFT = """
import os, time
os.fsync = lambda descriptor: None  # a kill, unlike a power cut, loses nothing that was handed to the system
from maft.runs import manifest
from maft.pipeline import run as pipeline
from maft import engines, report
from maft.cli import main
from maft.samplers.scripted import Scripted, guess

class Slow(Scripted):
    def _answer(self, request):
        with open(os.environ["SLOW_MAFT_LOG"], "a") as log:
            log.write(f"{request.seed}\\n")
        time.sleep(float(os.environ["SLOW_MAFT_SECONDS"]))
        return super()._answer(request)

engines.make_sampler = lambda settings: Slow(guess)
report.table = lambda *_: "a table"
report.write_page = lambda folder: folder.path / "report.html"
print("ready", flush=True)
main()
"""

SLOW_CONFIG = """
num_iterations: 2
task: {name: arithmetic, high: 4, num_train: 12, num_eval: 6}
debate: {num_agents: 2}
engine: {sampler: scripted, trainer: "null", batch_size: 2}
"""


class SlowMaft:
    """The command line in a process and a folder of its own, slow enough to be killed at work."""

    def __init__(self, home: Path):
        self.home = home
        self.log = home / "asked.txt"
        self.folder = home / "runs" / "config"
        home.mkdir(exist_ok=True)
        (home / "config.yaml").write_text(SLOW_CONFIG)

    def start(self, *overrides: str, seconds: float = 0.0) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SLOW_MAFT, "run", "config.yaml", "name=config", *overrides],
            cwd=self.home,
            env=ENVIRONMENT | {"SLOW_MAFT_SECONDS": str(seconds), "SLOW_MAFT_LOG": str(self.log)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Where tests run in the background, Ctrl-C is ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    def finish(self, *overrides: str) -> tuple[int, str]:
        process = self.start(*overrides)
        _, complaints = process.communicate(timeout=60)
        return process.returncode, complaints

    def asked(self) -> list[int]:
        """Seeds of all requests that the sampler began to answer, all starts together."""
        return [int(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def finished_seeds(self) -> set[int]:
        """Seeds of every call that is in a whole line of a file of debates."""
        lines = [
            line
            for path in self.folder.rglob("debates.jsonl")
            for line in path.read_bytes().split(b"\n")[:-1]
        ]  # fmt: skip
        return {call.seed for line in lines for call in Debate.from_json(line).calls()}
