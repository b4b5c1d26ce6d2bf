"""Trackers: the real libraries are written to and read back, and none of them can stop a run or reach the network."""

import json
import logging
import socket
import struct
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from helpers import Quiet, settings

from maft import comparison, config, report
from maft.config import RunConfig
from maft.errors import ConfigError, MissingExtra
from maft.evaluation import series as metrics
from maft.pipeline import run as pipeline
from maft.pipeline import tracking
from maft.runs import manifest, status
from maft.runs.folder import RunFolder
from maft.samplers import Scripted
from maft.samplers.scripted import guess
from maft.trainers import NullTrainer, TrainProgress

Curves = dict[str, dict[int, float]]
"""By name and step."""
STEPS = 3


class Learning(NullTrainer):
    """Says that it takes three steps an agent, and may be killed in the second step of one."""

    def __init__(self, killed_at: str = ""):
        self.killed_at = killed_at

    def train(self, jobs, settings, on_progress):
        for job in jobs:
            for step in range(1, STEPS + 1):
                if (job.agent, step) == (self.killed_at, 2):
                    raise KeyboardInterrupt
                said = TrainProgress(agent=job.agent, step=step, num_steps=STEPS, loss=1 / step, tokens=9 * step)
                on_progress(said.model_copy(update={"learning_rate": 0.1 * step}))
            super().train([job], settings, lambda _: None)


class Fake:
    """Remembers what it is told, over all starts of a run; refuses points that it has been told before."""

    def __init__(self):
        self.runs: list[tracking.TrackedRun] = []
        self.curves: Curves = defaultdict(dict)
        self.axes: dict[str, str] = {}
        self.numbers: list[int] = []
        self.closed = 0

    def open(self, run):
        self.runs.append(run)
        return self

    def log(self, measured, number):
        for name, value in measured.values.items():
            assert measured.step not in self.curves[name], f"{name} has step {measured.step} already"
            self.curves[name][measured.step] = value
            self.axes[name] = measured.axis
        assert not self.numbers or number > self.numbers[-1]
        self.numbers.append(number)

    def close(self):
        self.closed += 1


@pytest.fixture
def fake(monkeypatch) -> Fake:
    """A tracker in place of wandb."""
    made = Fake()
    monkeypatch.setitem(tracking.TRACKERS, "wandb", made.open)
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    return made


def tracked(settings: RunConfig, trainer=None) -> RunFolder:
    with RunFolder.open(settings) as folder, tracking.following(folder):
        manifest.write(folder)
        pipeline.run(folder, Scripted(guess), trainer or Learning(), Quiet())
    return folder


def test_every_number_has_the_name_that_metrics_and_report_have(tmp_path, fake):
    folder = tracked(settings(tmp_path, "num_iterations=2", "tracking.to=wandb"))
    for row in report.rows(folder):
        for name in ("accuracy", "ci_low", "ci_high", "unparsed", "calls", "tokens"):
            assert fake.curves[f"{name}/{row['method']}"][row["iteration"]] == row[name]
    for line in metrics.lines(folder):
        for name, value in tracking.named(line).items():
            assert fake.curves[name][line["iteration"]] == value and fake.axes[name] == "iteration"
    labels = {name.removeprefix("pseudo_labels/") for name in fake.curves if name.startswith("pseudo_labels/")}
    assert labels >= {"pseudo_label_accuracy", "coverage", "mean_margin", "unanimity", "abstention"}
    assert {"accuracy/generators", "accuracy/critic_2", "held_out_votes/unanimity"} <= set(fake.curves)
    counts = {n: pipeline.num_examples(folder, n) for n in (1, 2)}
    assert fake.curves["examples/critic_1"] == {n: of["critic_1"] for n, of in counts.items()}
    assert fake.closed == 1


def test_every_step_of_every_agent_is_a_point_and_iterations_stand_end_to_end(tmp_path, fake):
    tracked(settings(tmp_path, "num_iterations=2", "tracking.to=wandb"))
    for agent in ("generator_0", "critic_2"):
        assert fake.curves[f"loss/{agent}"] == {n + 1: 1 / (n % STEPS + 1) for n in range(2 * STEPS)}
        assert fake.curves[f"learning_rate/{agent}"][4] == pytest.approx(0.1)
        assert fake.axes[f"loss/{agent}"] == f"step/{agent}"


def test_rates_are_those_of_the_events(tmp_path, fake):
    folder = tracked(settings(tmp_path, "tracking.to=wandb"))
    events = [event for event in folder.events() if event["event"] == "debated" and event["stage"] == "train"]
    wanted = [(e["prompt_tokens"] + e["completion_tokens"]) / e["seconds"] for e in events if e["seconds"]]
    assert list(fake.curves["tokens_per_second/debate"].values()) == wanted


def test_it_is_told_while_the_run_goes(tmp_path, fake):
    told = []

    class Watching(Scripted):
        def _answer(self, request):
            told.append(set(fake.curves))
            return super()._answer(request)

    chosen = settings(tmp_path, "tracking.to=wandb")
    with RunFolder.open(chosen) as folder, tracking.following(folder):
        manifest.write(folder)
        pipeline.run(folder, Watching(guess), Learning(), Quiet())
    assert told[0] == set() and "accuracy/base" in told[-1] and "loss/critic_2" in told[-1]
    assert "accuracy/maft" not in told[-1] and "accuracy/maft" in fake.curves


@pytest.mark.parametrize("agent", ["generator_0", "critic_1"])
def test_a_run_that_was_killed_goes_on_in_the_same_curves_without_a_repeated_step(tmp_path, fake, agent):
    chosen = settings(tmp_path, "num_iterations=2", "tracking.to=wandb")
    with pytest.raises(KeyboardInterrupt):
        tracked(chosen, Learning(killed_at=agent))
    assert fake.closed == 1
    tracked(chosen)
    assert len({one.id for one in fake.runs}) == 1 and len(fake.runs) == 2
    whole = Fake()
    tracking.TRACKERS["wandb"] = whole.open
    tracked(settings(tmp_path / "whole", "num_iterations=2", "tracking.to=wandb"))
    rates = {name for name in whole.curves if name.startswith("tokens_per_second")}
    assert {n: c for n, c in fake.curves.items() if n not in rates} == {
        n: c for n, c in whole.curves.items() if n not in rates
    }
    assert whole.runs[0].id != fake.runs[0].id


def test_a_finished_run_is_told_nothing_and_opens_nothing(tmp_path, fake):
    chosen = settings(tmp_path, "tracking.to=wandb")
    tracked(chosen)
    tracked(chosen)
    assert len(fake.runs) == 1


def test_tracking_may_begin_late_and_is_told_what_it_missed(tmp_path, fake):
    chosen = settings(tmp_path)
    tracked(chosen)
    events = chosen.runs_dir / "run" / "events.jsonl"
    logged = [json.loads(line) for line in events.read_text().splitlines()]
    older = [e for e in logged if e["event"] not in ("evaluated", "voted", "curated")]  # as an older maft wrote it
    events.write_text("".join(f"{json.dumps(e)}\n" for e in older))
    assert fake.runs == []
    folder = tracked(settings(tmp_path, "tracking.to=wandb"))
    assert set(fake.curves) >= {name for line in metrics.lines(folder) for name in tracking.named(line)}
    assert "loss/generator_0" in fake.curves and "examples/generator_0" in fake.curves


def test_it_is_no_part_of_what_the_run_is(tmp_path):
    plain, shown = settings(tmp_path), settings(tmp_path, "tracking.to=[wandb, trackio]", "tracking.project=other")
    assert config.digest(plain) == config.digest(shown) and config.differences(plain, shown) == {}
    assert plain.tracking.to == ()


def test_one_name_is_a_list_of_one_and_a_wrong_one_is_refused(tmp_path):
    assert settings(tmp_path, "tracking.to=trackio").tracking.to == ("trackio",)
    assert settings(tmp_path, "tracking.to=[wandb, wandb]").tracking.to == ("wandb",)
    with pytest.raises(ConfigError, match="tracking.to must be a list of one of tensorboard, trackio, wandb, got"):
        settings(tmp_path, "tracking.to=mlflow")


def test_a_tracker_that_is_not_installed_is_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == "trackio" else True)
    with pytest.raises(MissingExtra, match=r"tracking.to: trackio needs.*pip install .*\[tracking\]"):
        tracked(settings(tmp_path, "tracking.to=trackio"))


@pytest.mark.parametrize("breaks", ["open", "log", "close"])
def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(tmp_path, fake, monkeypatch, caplog, breaks):
    def fail(*_):
        raise OSError("no route to host")

    healthy = Fake()
    monkeypatch.setitem(tracking.TRACKERS, "trackio", healthy.open)
    if breaks == "open":
        monkeypatch.setitem(tracking.TRACKERS, "wandb", fail)
    else:
        monkeypatch.setattr(fake, breaks, fail)
    with caplog.at_level(logging.WARNING, "maft"):
        folder = tracked(settings(tmp_path, "tracking.to=[wandb, trackio]"))
    assert status.complete(folder)
    (warning,) = caplog.messages
    assert warning.startswith("Tracking: wandb failed; the run continues without it: OSError: no route to host.")
    assert "accuracy/maft" in healthy.curves


def test_what_a_failed_tracker_missed_it_is_told_at_the_next_start(tmp_path, fake, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fake, "log", lambda *_: 1 / 0)
        folder = tracked(settings(tmp_path, "tracking.to=wandb"))
    tracked(folder.config)
    assert {name for line in metrics.lines(folder) for name in tracking.named(line)} <= set(fake.curves)


def test_numbers_that_cannot_be_read_are_left_out(tmp_path, fake, monkeypatch, caplog):
    monkeypatch.setattr(metrics, "of_labels", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING, "maft"):
        folder = tracked(settings(tmp_path, "tracking.to=wandb"))
    assert status.complete(folder) and "accuracy/maft" in fake.curves
    assert caplog.messages == ["Tracking: curated of iteration 1 is left out: division by zero"]


def test_every_arm_of_a_comparison_is_a_run_of_its_own(tmp_path, fake):
    chosen = settings(tmp_path, "name=compared", "tracking.to=wandb")
    made = comparison.begin(chosen, ["majority_ft"], [0, 1])
    several: dict[str, Fake] = {}

    def opened(run: tracking.TrackedRun) -> Fake:
        assert run.name not in several
        return several.setdefault(run.name, Fake()).open(run)

    tracking.TRACKERS["wandb"] = opened
    comparison.compare(made, Scripted(guess), NullTrainer(), Quiet())
    assert list(several) == [f"compared/seed_{seed}/{arm}" for seed in (0, 1) for arm in ("maft", "majority_ft")]
    assert {one.runs[0].group for one in several.values()} == {"compared"}
    assert all("accuracy/maft_single" in one.curves for one in several.values())


def test_on_the_command_line_single_stages_are_tracked_too(home, call, fake):
    for verb in ("eval", "debate", "curate", "finetune", "eval"):
        code, _, err = call(verb, "sums.yaml", "tracking.to=wandb", "--quiet")
        assert (code, err) == (0, ""), verb
    assert {"accuracy/base", "accuracy/maft", "pseudo_labels/coverage", "examples/generator_0"} <= set(fake.curves)


# The real ones


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No account, no server to reach, and no connection but within this machine."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "HF_TOKEN", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    connect, asked = socket.socket.connect, []

    def connect_nearby(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            asked.append(address)
            raise OSError(f"a test must not reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_nearby)
    yield
    assert asked == []


def read_tensorboard(folder: RunFolder, run: tracking.TrackedRun) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    read = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"tensors": 0})
    read.Reload()
    return {
        name: [(event.step, float(make_ndarray(event.tensor_proto))) for event in read.Tensors(name)]
        for name in read.Tags()["tensors"]
    }


def read_trackio(folder: RunFolder, run: tracking.TrackedRun) -> dict[str, list[tuple[int, float]]]:
    from trackio.sqlite_storage import SQLiteStorage

    found = defaultdict(list)
    for line in SQLiteStorage.get_logs(run.project, f"{run.name}-{run.id}"):
        step = line.pop("step")
        line.pop("timestamp")
        for name, value in line.items():
            found[name].append((step, value))
    return found


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, after seven bytes that are wandb's own: blocks of 32 KiB, in each
    parts with a checksum (4 bytes), a length (2) and a kind (1): whole, first, middle, last."""
    at, record = 7, b""
    while at + 7 <= len(log):
        room = -at % 2**15 or 2**15
        length, kind = struct.unpack_from("<HB", log, at + 4)
        if room < 7 or kind == 0:
            at += room
            continue
        record += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def read_wandb(folder: RunFolder, run: tracking.TrackedRun) -> dict[str, list[tuple[int, float]]]:
    from wandb.proto.wandb_internal_pb2 import Record

    found, axes, steps = defaultdict(list), {}, []
    starts = sorted((folder.path / "wandb").glob("offline-run-*"))
    assert starts and all(start.name.endswith(f"-{run.id}") for start in starts)
    for start in starts:
        for raw in leveldb_records((start / f"run-{run.id}.wandb").read_bytes()):
            record = Record.FromString(raw)
            if record.metric.name:
                axes[record.metric.name] = record.metric.step_metric
            items = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
            if items:
                steps.append(record.history.step.num)
                for name in items.keys() & axes.keys():
                    found[name].append((items[axes[name]], items[name]))
    assert steps == sorted(set(steps))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "read"), [("tensorboard", read_tensorboard), ("trackio", read_trackio), ("wandb", read_wandb)]
)
def test_the_real_trackers_hold_every_point_once(tmp_path, offline, monkeypatch, caplog, name, read):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    opened, real = [], tracking.TRACKERS[name]
    monkeypatch.setitem(tracking.TRACKERS, name, lambda run: opened.append(run) or real(run))
    chosen = settings(tmp_path, "num_iterations=2", f"tracking.to={name}", f"tracking.project={tmp_path.name}-{name}")
    with pytest.raises(KeyboardInterrupt):
        tracked(chosen, Learning(killed_at="critic_1"))
    folder = tracked(chosen)
    warned = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warned == [] and len(opened) == 2
    found = read(folder, opened[0])
    for line in metrics.lines(folder):
        for metric, value in tracking.named(line).items():
            points = dict(found[metric])
            assert points[line["iteration"]] == pytest.approx(value, rel=1e-6), metric
    for agent in ("generator_0", "critic_1"):
        assert [step for step, _ in found[f"loss/{agent}"]] == list(range(1, 2 * STEPS + 1))
        assert dict(found[f"learning_rate/{agent}"])[5] == pytest.approx(0.2)
    for metric, points in found.items():
        assert len({step for step, _ in points}) == len(points), f"{metric} has a step twice"
