"""What all tests share."""

import os
import signal
import ssl
import sys
from contextlib import closing
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory

# Workers of xdist share the cores: more threads than cores wait for each other. Set before any library counts the cores.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))

import pytest
import tiny as tiny_
from helpers import run, settings

from maft import report
from maft.answers import verify
from maft.cli import main
from maft.report import plots
from maft.runs.folder import RunFolder


def pytest_configure(config):
    """Give trackio a folder before it is imported, which training libraries do, too."""
    home = TemporaryDirectory(prefix="maft-trackio-")
    config.add_cleanup(home.cleanup)
    os.environ["TRACKIO_DIR"] = home.name


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """A kill, unlike a power cut, loses nothing that was handed to the system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard():
    """Tests in the background or under nohup were started to ignore it or a hangup, and their processes would, too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGHUP, before[1])


@pytest.fixture(autouse=True, scope="session")
def _no_certificates_are_read():
    """No test speaks TLS, and every client of a service would read those of the system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None, raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _equal_charts_are_drawn_once():
    """A drawing is a function of its chart (`test_report_charts.py`), and takes a tenth of a second."""
    drawn: dict[str, str] = {}

    @wraps(draw := plots.for_page)
    def for_page(chart):
        key = repr(chart)
        drawn[key] = drawn.get(key) or draw(chart)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "for_page", for_page)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_process_compares_answers():
    """Each takes more than a second to start."""
    with pytest.MonkeyPatch.context() as patch, closing(verify.Verifier(1)) as verifier:
        patch.setattr(verify, "verifier", verifier)
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> RunFolder:
    """A finished run of two iterations; tests only read it."""
    return run(settings(tmp_path_factory.mktemp("runs"), "num_iterations=2"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """The folder of a model of a few thousand parameters."""
    return tiny_.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def exact(tmp_path_factory, tiny) -> str:
    """The folder of a small model that can be computed in float64 throughout."""
    return tiny_.build_exact(tmp_path_factory.mktemp("exact"), tiny)


DEAREST = (
    "resume",  # forks, which takes long once models are loaded
    "ray",
    "end_to_end",
    "samplers_adapters",
    "samplers",
    "mixed_society",
    "objectives_end_to_end",
    "code",
    "trainers_launch",
    "report_browser",
    "trainers_sft",
)
"""Files whose slow tests take longest; two workers that begin with them end at about the same time."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Tests with a small model or the `datasets` library load torch."""
    if config.option.markexpr == "slow":
        place = {f"test_{name}": number for number, name in enumerate(DEAREST)}
        items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    for item in items:
        if {"tiny", "exact", "hub_datasets"} & {*getattr(item, "fixturenames", ())} and not item.get_closest_marker(
            "slow"
        ):
            item.add_marker(pytest.mark.torch)
        if item.get_closest_marker("torch"):
            item.add_marker(pytest.mark.slow)


CONFIG = """
task: {name: arithmetic, high: 3, num_train: 6, num_eval: 4}
engine: {sampler: scripted, trainer: "null"}
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty working folder with a config in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the command line in this process; return exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maft", *arguments])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def without_torch(monkeypatch):
    """Adapters are not compared with what PEFT expects, which takes seconds to load; `test_adapters.py` does."""
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture
def no_page(monkeypatch):
    """Plots take a second; the report has tests of its own."""
    monkeypatch.setattr(report, "write_page", lambda folder: folder.path / "report.html")
